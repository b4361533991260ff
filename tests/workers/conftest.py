"""Workers to drive."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from driven import Worker, Zygote, a_zygote


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with a_zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture
def worker(zygote: Zygote, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(zygote, tmp_path / "output")
    yield worker
    worker.close()
