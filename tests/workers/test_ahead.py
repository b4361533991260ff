"""Inputs that are brought while the GPU computes: each call gets its own, and none but its own."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import on_a_card
import pytest
import torch
from card import DEVICE, Card, OnCard
from driven import call
from gpu_bench import Bench, Gpu, Model
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol.messages import UnmapMailbox
from onecopy.workers.ahead import LEAST_BYTES, Ahead
from onecopy.workers.pinned import PinnedRing
from onecopy.workers.transfers import Transfers

PIECE_BYTES = 4096
ROOM_BYTES = 4 * LEAST_BYTES
MAPS = Path("/proc/self/maps")
#: Of bytes, so many that it is worth it.
LARGE = LEAST_BYTES


def numbered(seed, size=LARGE):
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Sums(Model):
    """Returns the sum of what it is given, which it notes."""

    def __call__(self, x):
        self.given.append(x)
        return x.to(torch.int64).sum()


class Nothing:
    """Looks at nothing that it is given."""

    def __call__(self, *_):
        return 0


class LateCopies:
    """Copies when what was begun is joined, and no sooner; counts both."""

    def __init__(self):
        self.count = self.joins = 0
        self._begun = deque()

    def begin(self, destination, source):
        self.count += 1
        self._begun.append((destination, source))

    def join(self):
        self.joins += 1
        while self._begun:
            destination, source = self._begun.popleft()
            destination.copy_(source)


@pytest.fixture
def brought():
    return LateCopies()


@pytest.fixture
def bench(gpu, brought):
    ring = PinnedRing(torch.zeros(4 * PIECE_BYTES, dtype=torch.uint8), gpu.copy, PIECE_BYTES)
    pinned = torch.zeros(2 * ROOM_BYTES, dtype=torch.uint8)
    with Card(), Bench(Transfers(gpu, ring, Ahead(pinned, pinned.to(DEVICE), brought))) as bench:
        yield bench


# --- attempts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_mailbox", [True, False])
def test_what_the_next_attempt_is_given_is_brought_while_the_one_before_runs(bench, brought, in_mailbox):
    model, values = Sums(), [numbered(seed) for seed in range(4)]
    for number, value in enumerate(values):
        at = number % 2 * LARGE
        bench.send(1 + number, bench.in_mailbox(value, at=at) if in_mailbox else call(value))
        if number:  # it has come before the one before it runs
            (result,) = bench.run_next(model)
            assert result == values[number - 1].sum()
    (result,) = bench.run_next(model)
    assert result == values[-1].sum()
    assert brought.count == 3, "all but the first"
    assert {type(one) for one in model.given} == {OnCard}


def test_what_is_in_its_place_when_it_runs_is_what_counts_if_it_was_not_for_this_attempt(bench, brought):
    model = Sums()
    bench.send(1, call(numbered(1)))
    bench.send(2, bench.in_mailbox(numbered(2)))
    bench.run_next(model)
    assert bench.inbox.next().message.attempt == 2, "it is cancelled, and its place another's"
    bench.send(3, bench.in_mailbox(numbered(3)))
    assert bench.run_next(model) == [numbered(3).sum()]
    assert (brought.count, brought.joins) == (1, 0)


def test_a_model_that_writes_into_what_it_was_given_changes_nothing_else(bench, brought):
    class Spoiling:
        def __call__(self, x):
            x -= x
            return x.sum()

    value = numbered(1)
    bench.send(1, call(numbered(0)))
    bench.send(2, bench.in_mailbox(value))
    bench.run_next(Spoiling())
    bench.run_next(Spoiling())
    assert brought.count == 1
    assert bench.mailbox(LARGE) == value.numpy().tobytes()
    bench.send(3, bench.in_mailbox(value))
    assert bench.run_next(Sums()) == [value.sum()]


def test_several_tensors_are_brought_as_far_as_there_is_room(bench, brought):
    class Total:
        def __call__(self, xs):
            return sum(x.to(torch.int64).sum() for x in xs)

    values = [numbered(seed, LARGE + seed) for seed in range(6)]
    bench.send(1, call([numbered(9)]))
    bench.send(2, bench.in_mailbox([*values, values[0]]))
    bench.run_next(Total())
    assert bench.run_next(Total()) == [sum(value.sum() for value in (*values, values[0]))]
    assert brought.count == 3


@pytest.mark.parametrize(
    "part",
    [call(numbered(1, LEAST_BYTES - 1)), call(numbered(1).numpy()), call([[]] * 70_000, numbered(1))],
    ids=["small", "numpy", "with much besides"],
)
def test_what_is_not_worth_it_is_left_until_its_turn(bench, brought, part):
    bench.send(1, call(1))
    bench.send(2, part)
    bench.run_next(Nothing())
    assert bench.run_next(Nothing()) == [0]
    assert brought.count == 0


def test_what_is_wrong_with_the_next_attempt_does_not_harm_this_one(bench):
    bench.send(1, call(numbered(1)))
    bench.send(2, ([b"\xc1", [[1, 0, LARGE]], [], 0, 0], []))
    model = Sums()
    assert bench.run_next(model) == [numbered(1).sum()]
    (error,) = bench.run_next(model)
    assert error.code == "invalid_request"


@pytest.mark.parametrize("runs", [True, False])
def test_a_mailbox_can_be_unmapped_when_what_was_brought_from_it_has_run_or_is_forgotten(bench, brought, runs):
    bench.send(1, call(numbered(1)))
    bench.send(2, bench.in_mailbox(numbered(2)))
    bench.run_next(Sums())
    if runs:
        bench.run_next(Nothing())
        assert brought.joins == 1
    else:
        bench.inbox.next()  # it is cancelled
        bench.transfers.ahead.forget()
    assert "memfd:mailbox" in MAPS.read_text()
    bench.mailboxes.unmap(UnmapMailbox(1))
    assert "memfd:mailbox" not in MAPS.read_text()


# --- a GPU that copies late ----------------------------------------------------------------------------------


class LateGpu:
    """Computes when it is waited for, and copies beside that no sooner than what it computes waits for it."""

    def __init__(self):
        self.copying = deque()
        self.computing = deque()
        self._begun = 0

    def begin(self, destination, source):
        self.copying.append((destination, source))
        self._begun += 1

    def join(self):
        self.computing.append(self._begun)

    def compute(self, destination, source):
        self.computing.append((destination, source))

    def wait(self):
        while self.computing:
            match self.computing.popleft():
                case int() as begun:
                    while self._begun - len(self.copying) < begun:
                        destination, source = self.copying.popleft()
                        destination.copy_(source)
                case destination, source:
                    destination.copy_(source)


@given(st.lists(st.tuples(st.sampled_from(["runs", "cancelled", "late"]), st.integers(0, 3)), max_size=30))
@settings(deadline=None)
def test_whatever_is_brought_and_runs_or_not_each_attempt_gets_its_own(attempts):
    """As soon as an attempt has ended, what it was given is written over."""
    gpu = LateGpu()
    pinned = torch.zeros(2 * ROOM_BYTES, dtype=torch.uint8)
    ahead = Ahead(pinned, torch.zeros_like(pinned), gpu)
    sources = [[numbered(9 * index + one) for one in range(count)] for index, (_, count) in enumerate(attempts)]
    for index, (fate, _) in enumerate(attempts):
        ahead.begin(1 + index) if fate != "cancelled" else None
        there = []
        for source in sources[index]:
            there.append(torch.zeros_like(source))
            landed = ahead.landed(source) if fate != "cancelled" else None
            gpu.compute(there[-1], source.clone() if landed is None else landed)
        if index + 1 < len(attempts) and attempts[index + 1][0] != "late" and fate != "cancelled":
            ahead.bring(2 + index, sources[index + 1])
        gpu.wait()
        ahead.end()
        expected = [numbered(9 * index + one) for one in range(len(there))]
        assert all(torch.equal(to, one) for to, one in zip(there, expected, strict=True))
        for source in sources[index]:
            source.zero_()


def test_what_is_tried_on_a_card_holds_without_one(bench, brought):
    on_a_card.check_ahead(bench.transfers)
    assert brought.joins == 5


def test_without_a_gpu_of_its_own_nothing_is_brought():
    assert Transfers(Gpu(torch.device("cpu")), None).ahead is None
