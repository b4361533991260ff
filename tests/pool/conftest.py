"""What several modules of these tests have in common."""

import pytest
import request_models
from module_pool import shared_pool


@pytest.fixture(scope="module")
def module_pool(tmp_path_factory):
    """One pool with a quick model, for tests that change nothing in it; some modules have one of their own."""
    with shared_pool(tmp_path_factory, {"model": request_models.Quick()}) as pool:
        pool.run("model", 0)
        yield pool
