"""Slots in memory of a GPU that the processor can use as its own: torch's CPU takes them as it takes any slot."""

from __future__ import annotations

import pytest
from cuda_driver import build

PROGRAM = """
import ctypes
ctypes.CDLL({driver!r}, ctypes.RTLD_GLOBAL)
from onecopy.protocol import cuda
from onecopy.protocol.gpu import Gpu
from onecopy.protocol.messages import MapSlot, Run, UnmapSlot, Used
from onecopy.workers.slot import Workspace

told = []
workspace = Workspace([], told.append, Gpu(0, torch.device("cpu")))
fd = cuda.create(64 * MB, 0)
region = os.dup(fd)
workspace.map(MapSlot(1, 64 * MB), [fd])

def run(call):
    return workspace.run(Run(1, 1, "", [], 0, 0, 1, 64 * MB, 0), call, is_strict=False)
"""


@pytest.fixture
def on_device(preloaded, tmp_path):
    """Run a program where a slot of such memory is mapped."""
    driver = str(build(tmp_path))
    return lambda program: preloaded(PROGRAM.format(driver=driver) + program)


def test_a_run_takes_its_memory_out_of_the_region(on_device):
    on_device("""
def call(stay):
    assert not stay.is_outside
    tensor = torch.full((8 * MB,), 7, dtype=torch.uint8)
    return os.pread(region, 10, 0)

assert run(call) == bytes([7] * 10)  # at once: there is nothing on it to be warm before
assert [(one.footprint_bytes, one.spilled_bytes) for one in told] == [(8 * MB, 0)]
workspace.unmap(UnmapSlot(1))
""")


def test_what_does_not_fit_is_private_and_what_escapes_is_taken_out(on_device):
    on_device("""
kept = []
def call(stay):
    kept.append(torch.full((MB,), 5, dtype=torch.uint8))
    torch.ones(100 * MB, dtype=torch.uint8)

run(call)
[used] = told
assert (used.spilled_bytes, used.escaped_bytes) == (100 * MB, MB)
workspace.unmap(UnmapSlot(1))
assert bool((kept[0] == 5).all())
""")
