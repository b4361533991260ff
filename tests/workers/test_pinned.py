"""The ring of pinned memory, with a GPU that copies as late as it may."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onecopy.workers.pinned import PinnedRing

PIECE = 256


class LateGpu:
    """Copies what it is told to in order, but only when somebody waits for it."""

    def __init__(self):
        self.told = deque()
        self.begun = 0
        self.ended = 0
        self.most_at_once = 0

    def copy(self, destination, source):
        assert destination.numel() == source.numel()
        self.told.append((destination, source))
        self.begun += 1
        self.most_at_once = max(self.most_at_once, self.begun - self.ended)
        number = self.begun
        return lambda: self.run_until(number)

    def run_until(self, number):
        while self.ended < number:
            destination, source = self.told.popleft()
            destination.copy_(source)
            self.ended += 1


def a_ring(gpu, pieces=4, piece_bytes=PIECE):
    return PinnedRing(torch.zeros(pieces * piece_bytes, dtype=torch.uint8), gpu.copy, piece_bytes)


def numbered(seed, size_bytes):
    return np.random.default_rng(seed).integers(0, 256, size_bytes, dtype=np.uint8)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5 * PIECE)), max_size=40), st.integers(2, 5))
def test_all_bytes_arrive_whatever_goes_through_it(transfers, pieces):
    gpu = LateGpu()
    ring = a_ring(gpu, pieces)
    arrived = []
    for seed, (is_sent, size_bytes) in enumerate(transfers):
        content = numbered(seed, size_bytes)
        if is_sent:
            source, there = content.copy(), torch.zeros(size_bytes, dtype=torch.uint8)
            ring.send(source, there)
            source[:] = 0  # it may be written into as soon as this has returned
            arrived.append((there.numpy(), content))
        else:
            here = np.zeros(size_bytes, np.uint8)
            ring.fetch(torch.from_numpy(content.copy()), here)
            arrived.append((here, content))
    ring.finish()
    gpu.run_until(gpu.begun)
    for result, content in arrived:
        assert np.array_equal(result, content)


def test_what_is_larger_than_a_piece_goes_while_the_next_is_filled():
    gpu = LateGpu()
    ring = a_ring(gpu)
    content, there = numbered(1, 20 * PIECE), torch.zeros(20 * PIECE, dtype=torch.uint8)
    ring.send(content, there)
    assert gpu.begun == 20
    assert gpu.ended == 16, "of the ring, nothing was waited for but for room"
    assert gpu.most_at_once == 4
    ring.finish()
    assert np.array_equal(there.numpy(), content)
    here = np.zeros(20 * PIECE, np.uint8)
    ring.fetch(there, here)
    assert gpu.ended == 36
    ring.finish()
    assert gpu.ended == 40
    assert np.array_equal(here, content)


def test_small_ones_share_the_ring_and_wait_for_nothing():
    gpu = LateGpu()
    ring = a_ring(gpu)
    for _ in range(16):
        ring.send(numbered(1, 40), torch.zeros(40, dtype=torch.uint8))
    assert gpu.ended == 0
    ring.send(numbered(1, 40), torch.zeros(40, dtype=torch.uint8))
    assert gpu.ended == 1


def test_a_failure_of_the_gpu_comes_to_whoever_waits():
    def fail():
        raise RuntimeError("CUDA error")

    ring = PinnedRing(torch.zeros(4 * PIECE, dtype=torch.uint8), lambda *_: fail, PIECE)
    ring.send(numbered(1, 4 * PIECE), torch.zeros(4 * PIECE, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="CUDA error"):
        ring.send(numbered(1, PIECE), torch.zeros(PIECE, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="CUDA error"):
        ring.finish()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_can_be_pinned_where_there_is_no_gpu():
    from onecopy.workers.pinned import pinned_ring

    with pytest.raises(RuntimeError, match=r"[Cc]annot access accelerator|CUDA|NVIDIA|pin"):
        pinned_ring()
