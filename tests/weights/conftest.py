"""Large libraries are imported before the first test, which would otherwise seem to take what they do."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    import transformers

    assert transformers.BertModel is not None  # its modules are imported when a name of theirs is asked for
