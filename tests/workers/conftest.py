"""Workers to drive."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from card import Card
from driven import Worker, Zygote, a_zygote
from gpu_bench import Bench, Gpu
from onecopy.workers.pinned import PinnedRing
from onecopy.workers.transfers import Transfers

PIECE_BYTES = 4096


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with a_zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture
def worker(zygote: Zygote, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(zygote, tmp_path / "output")
    yield worker
    worker.close()


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def bench(gpu: Gpu) -> Iterator[Bench]:
    ring = PinnedRing(torch.zeros(4 * PIECE_BYTES, dtype=torch.uint8), gpu.copy, PIECE_BYTES)
    with Card(), Bench(Transfers(gpu, ring)) as bench:
        yield bench
