"""Torch in a slot, in real processes: what lands there, what it computes, and what becomes of what escapes."""

from __future__ import annotations

import pytest

MODELS = """
def conv():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)), (4, 3, 64, 64)

def mlp():
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)), (512, 256)

def transformer():
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (8, 64, 64)

def made(build):
    torch.manual_seed(0)
    model, shape = build()
    return model.eval(), torch.rand(shape)
"""


def test_torch_takes_its_memory_from_a_slot_and_nobody_else_does(preloaded):
    preloaded("""
import numpy
assert arena.probe() is None
fd, slot = slot_of(64 * MB)
slot.enter(64 * MB)
ours = bytearray(8 * MB), numpy.zeros(MB), numpy.random.rand(1000, 1000) @ numpy.random.rand(1000, 1000), "x" * MB
assert slot.usage().peak_bytes == 0
tensor = torch.full((MB,), 7, dtype=torch.uint8)
usage = slot.usage()
assert (usage.live_blocks, usage.live_bytes, usage.footprint_bytes) == (1, MB, MB)
assert os.pread(fd, 3, 0) == bytes([7, 7, 7])
del tensor
assert slot.leave() == (usage.peak_bytes, MB, 0, 0, 0, 0)
outside = torch.zeros(MB)
assert slot.usage().live_blocks == 0
slot.detach()
""")


@pytest.mark.parametrize("build", ["conv", "mlp", "transformer"])
@pytest.mark.parametrize("threads", [1, 2])
def test_models_compute_the_same_in_a_slot_large_or_too_small(preloaded, build, threads):
    preloaded(
        MODELS
        + f"""
torch.set_num_threads({threads})
model, x = made({build})
with torch.inference_mode():
    expected = model(x)
    for limit_bytes in (64 * MB, MB, 0):
        fd, slot = slot_of(64 * MB)
        os.pwrite(fd, b"\\xff" * 64 * MB, 0)  # what others have left there
        for _ in range(3):
            slot.enter(limit_bytes)
            result = model(x)
            assert torch.equal(result, expected)
            del result
            usage = slot.leave()
            assert usage.live_blocks == 0
            assert (usage.spilled_bytes == 0) == (limit_bytes == 64 * MB)
            assert usage.footprint_bytes <= limit_bytes
        slot.detach()
        os.close(fd)
"""
    )


def test_a_backward_pass_runs_in_a_slot(preloaded):
    preloaded(
        MODELS
        + """
model, x = made(mlp)
model(x).sum().backward()
expected = [one.grad.clone() for one in model.parameters()]
model.zero_grad()
fd, slot = slot_of(64 * MB)
slot.enter(64 * MB)
model(x).sum().backward()
assert all(torch.equal(one.grad, wanted) for one, wanted in zip(model.parameters(), expected, strict=True))
model.zero_grad()
assert slot.leave().live_blocks == 0
"""
    )


def test_a_second_run_takes_no_new_pages(preloaded):
    preloaded(
        MODELS
        + """
import resource
model, x = made(mlp)
fd, slot = slot_of(64 * MB)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    slot.enter(64 * MB)
    with torch.inference_mode():
        model(x)
    assert slot.leave().live_blocks == 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
assert first > 500
faults()
assert faults() < 100
pages = os.fstat(fd).st_blocks * 512
faults()
assert os.fstat(fd).st_blocks * 512 == pages
"""
    )


def test_what_escapes_keeps_its_address_and_contents_whatever_others_write(preloaded):
    preloaded("""
fd, slot = slot_of(8 * MB)
slot.enter(2 * MB)
inside, spilled, passing = torch.arange(100_000), torch.arange(500_000), torch.ones(50_000)
del passing
places = inside.data_ptr(), spilled.data_ptr()
assert slot.leave().live_blocks == 2
slot.keep()
if os.fork() == 0:  # another process has the slot now
    os.pwrite(fd, b"\\xff" * 8 * MB, 0)
    os._exit(0)
os.wait()
assert (inside.data_ptr(), spilled.data_ptr()) == places
assert torch.equal(inside, torch.arange(100_000)) and torch.equal(spilled, torch.arange(500_000))
assert 4_800_000 <= arena.kept_bytes() < 4_820_000
slot.enter(2 * MB)
other = torch.zeros(100)
inside += other.sum().long()
del other
assert slot.leave().live_blocks == 0
del inside
assert arena.kept_bytes() < 4_010_000
del spilled
assert arena.kept_bytes() == 0
""")


def test_a_cycle_is_no_escape(preloaded):
    preloaded("""
fd, slot = slot_of(8 * MB)
gc.disable()
slot.enter(8 * MB)
class Node:
    pass
node = Node()
node.itself, node.tensor = node, torch.ones(1000)
del node
assert slot.leave().live_blocks == 1
gc.collect()
assert slot.leave().live_blocks == 0
slot.detach()
""")


def test_a_model_may_fork_in_a_slot(preloaded):
    preloaded("""
from torch.utils.data import DataLoader, TensorDataset
fd, slot = slot_of(64 * MB)
slot.enter(64 * MB)
data = torch.arange(1000.0)
loader = DataLoader(TensorDataset(data), batch_size=100, num_workers=2, multiprocessing_context="fork")
total = sum(batch.sum() for batch, in loader)
assert total == data.sum()
assert os.pread(fd, 8, 0) != bytes(8)
data += 1  # private since the fork: the slot keeps what it had
assert os.pread(fd, 4, 0) == bytes(4)
del data, loader, total
gc.collect()
usage = slot.leave()
assert usage.live_blocks == 0, usage
assert usage.spilled_bytes >= 4000
slot.enter(64 * MB)
again = torch.full((10,), 1.0)
assert os.pread(fd, 4, 0) == bytes([0, 0, 128, 63])
del again
assert slot.leave().live_blocks == 0
""")


def test_a_model_may_start_programs_in_a_slot(preloaded):
    preloaded("""
import subprocess, sys
fd, slot = slot_of(8 * MB)
slot.enter(8 * MB)
tensor = torch.ones(1000)
printed = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, check=True).stdout
assert printed == b"42\\n"
assert slot.usage().spilled_bytes == 0  # that was no fork that copies
del tensor
slot.leave()
""")


def test_blocks_may_be_freed_by_other_threads(preloaded):
    preloaded("""
fd, slot = slot_of(64 * MB)
def take(all):
    for size in range(1, 2000):
        all.append(torch.full((size,), size))
        if size % 3 == 0:
            del all[0]
for _ in range(3):
    slot.enter(64 * MB)
    lists = [[], [], []]
    threads = [threading.Thread(target=take, args=(one,)) for one in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, torch.full_like(one, len(one))) for all_ in lists for one in all_)
    assert slot.usage().live_blocks >= 3 * 1332
    del lists, threads, thread
    assert slot.leave().live_blocks == 0
""")


def test_mistakes_are_named(preloaded):
    preloaded("""
def refused(kind, call, *args):
    try:
        call(*args)
    except kind as error:
        return str(error)
    raise AssertionError(call)
fd, slot = slot_of(MB)
assert "-5 bytes was asked for" in refused(ValueError, arena.attach, fd, -5)
assert "cannot map a slot of 1048576 bytes" in refused(OSError, arena.attach, 9999, MB)
assert "memfd or its window is smaller" in refused(ValueError, slot.enter, MB + 1)
assert "-1 bytes" in refused(ValueError, slot.enter, -1)
assert "cannot keep" in refused(RuntimeError, slot.keep)
slot.enter(MB)
assert "is entered, and not left yet" in refused(RuntimeError, slot.enter, MB)
assert "is entered, and not left yet" in refused(RuntimeError, slot.detach)
slot.leave()
if os.fork() == 0:
    assert "belongs to the process that forked this one" in refused(RuntimeError, slot.enter, MB)
    os._exit(0)
assert os.wait()[1] == 0
slot.detach()
assert "it is detached" in refused(RuntimeError, slot.enter, MB)
""")
