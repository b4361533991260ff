"""Torch's pool in a slot, on a GPU: what of it is believed elsewhere is looked at where there is one."""

import subprocess
import sys

import pytest
import torch
from onecopy.workers.arena import built

#: In a process of its own: one with a CUDA context must not fork, and tests do.
PRELUDE = """
import os
import torch
from onecopy.protocol import cuda
from onecopy.protocol.gpu import begin
from onecopy.workers.device_slot import DeviceSlot

MB = 1 << 20
gpu = begin(0)
torch.cuda.set_stream(torch.cuda.Stream(gpu.device))  # as a worker does
fd = cuda.create(256 * MB, 0)
weights = torch.rand(1024, 1024, device="cuda")
weights @ weights  # libraries take what they keep
slot = DeviceSlot(gpu, fd, 256 * MB)
base = slot._memory[0].storage(0, 1).data_ptr()

def is_inside(tensor):
    return base <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= base + 256 * MB
"""


@pytest.fixture
def on_gpu():
    """Run a program where a slot is mapped."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU, or this torch was built without CUDA")
    if built().path is None:
        pytest.skip(built().reason)
    return lambda program: subprocess.run([sys.executable, "-c", PRELUDE + program], check=True)


def test_tensors_lie_in_the_slot_and_what_is_computed_there_is_right(on_gpu):
    on_gpu("""
expected = (weights @ weights).relu().sum().item()
for _ in range(100):
    slot.enter(256 * MB, is_strict=True)
    made = weights @ weights
    assert is_inside(made) and not is_inside(weights)
    assert made.relu().sum().item() == expected
    small = [torch.empty(100, device="cuda") for _ in range(50)]
    assert all(map(is_inside, small))
    del made, small
    assert slot.try_leave(), slot.usage()
assert 4 * MB <= slot.usage().peak_bytes <= 16 * MB
assert not is_inside(torch.empty(MB, device="cuda"))
slot.detach()
""")


def test_what_does_not_fit_is_outside_and_goes_back_with_the_pool(on_gpu):
    on_gpu("""
for _ in range(3):
    before = torch.cuda.mem_get_info()[0]
    slot.enter(256 * MB)
    tensors = [torch.full((100 * MB,), at, dtype=torch.uint8, device="cuda") for at in range(3)]
    assert [is_inside(one) for one in tensors] == [True, True, False]
    del tensors
    usage = slot.leave()
    assert usage.live_blocks == 0 and usage.spilled_bytes >= 100 * MB, usage
    assert torch.cuda.mem_get_info()[0] >= before - 2 * MB
slot.detach()
""")


def test_a_strict_run_is_refused_what_does_not_fit(on_gpu):
    on_gpu("""
slot.enter(256 * MB, is_strict=True)
try:
    torch.empty(300 * MB, dtype=torch.uint8, device="cuda")
    raise AssertionError("it was not refused")
except torch.OutOfMemoryError:
    assert slot.take_refusal() == 556 * MB
torch.empty(100 * MB, dtype=torch.uint8, device="cuda")
assert slot.try_leave()
slot.detach()
""")


def test_what_lives_in_the_slot_is_seen_and_stays(on_gpu):
    on_gpu("""
slot.enter(256 * MB)
escaped = torch.full((3 * MB,), 5, dtype=torch.uint8, device="cuda")
assert not slot.try_leave()
usage = slot.usage()
assert (usage.live_blocks, usage.live_bytes) == (1, 3 * MB), usage
slot.keep()
other = DeviceSlot(gpu, cuda.create(64 * MB, 0), 64 * MB)
other.enter(64 * MB)
torch.full((50 * MB,), 9, dtype=torch.uint8, device="cuda")
assert other.try_leave()
other.detach()
assert bool((escaped == 5).all())
""")


def test_a_block_that_another_stream_had_is_no_reason_to_keep_the_slot(on_gpu):
    on_gpu("""
stream = torch.cuda.Stream()
slot.enter(256 * MB)
tensor = torch.rand(4096, 4096, device="cuda")
with torch.cuda.stream(stream):
    tensor @ weights.repeat(4, 4)
tensor.record_stream(stream)
del tensor
assert slot.try_leave(), slot.usage()
slot.detach()
""")


def test_a_graph_that_is_captured_in_the_slot_does_not_write_there_later(on_gpu):
    on_gpu("""
given = torch.rand(1024, 1024, device="cuda")
expected = given @ given
slot.enter(256 * MB)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    made = (given + 0) @ given
assert not is_inside(made)
assert slot.try_leave(), slot.usage()
slot.enter(256 * MB)
others = torch.full((200 * MB,), 9, dtype=torch.uint8, device="cuda")
graph.replay()
assert bool((others == 9).all()) and torch.equal(made, expected)
del others
assert slot.try_leave()
slot.detach()
""")


def test_gradients_are_computed_in_the_slot(on_gpu):
    on_gpu("""
weights.requires_grad_()
slot.enter(256 * MB, is_strict=True)
(weights @ weights).sum().backward()
assert is_inside(weights.grad)
weights.grad = None
assert slot.try_leave(), slot.usage()
slot.detach()
""")


def test_many_slots_come_and_go(on_gpu):
    on_gpu("""
slot.detach()
before = torch.cuda.mem_get_info()[0]
for _ in range(50):
    one = DeviceSlot(gpu, fd, 256 * MB)
    one.enter(256 * MB)
    torch.empty(200 * MB, dtype=torch.uint8, device="cuda")
    assert one.try_leave()
    one.detach()
assert torch.cuda.mem_get_info()[0] >= before - 2 * MB
""")
