"""The heap of a process that forks: children neither reuse what they share nor copy it for what they allocate."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: 2,000 pages, half of each free.
_HOLES = """
import ctypes, os, resource
from onecopy.workers import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.mallinfo2.restype = heap._Figures

def allocated(size_bytes):
    place = libc.malloc(size_bytes)
    libc.memset(place, 1, size_bytes)
    return place

def free_bytes():
    figures = libc.mallinfo2()
    return figures.fordblks - figures.keepcost

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults_of_child():
    ours, theirs = os.pipe()
    if os.fork() == 0:
        before = faults()
        for _ in range(2000):
            allocated(1500)
        os.write(theirs, b"%d" % (faults() - before))
        os._exit(0)
    os.wait()
    return int(os.read(ours, 100))

blocks = [allocated(2000) for _ in range(4000)]
for hole in blocks[::2]:
    libc.free(hole)
"""


@pytest.fixture
def with_holes():
    """Return a function that runs code in a process whose heap has holes."""

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", _HOLES + code], check=True)

    return run


def test_a_child_of_a_settled_process_copies_no_page_to_allocate(with_holes):
    with_holes("""
copying = faults_of_child()
assert copying > 1800, copying
heap.settle()
settled = faults_of_child()
assert settled < 1000, settled  # 730 pages are what it takes
""")


def test_what_is_settled_has_no_holes_until_it_is_unsettled(with_holes):
    with_holes("""
assert free_bytes() > 3_000_000
for _ in range(3):
    heap.settle()
    assert free_bytes() < 100_000, free_bytes()
    heap.unsettle()
    assert free_bytes() > 3_000_000, free_bytes()
assert all(ctypes.string_at(block, 2000) == bytes([1]) * 2000 for block in blocks[1::2])
""")


def test_to_settle_takes_no_memory(with_holes):
    with_holes("""
heap.trim()
before_bytes = heap.anonymous_bytes()
heap.settle()
assert heap.anonymous_bytes() < before_bytes + 500_000, heap.anonymous_bytes() - before_bytes
""")
