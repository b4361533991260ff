"""Which parts of a mailbox are free: never the same bytes twice, and all of them in the end."""

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from onecopy.pool.blocks import Blocks
from onecopy.protocol.tensors import aligned

SIZE_BYTES = 4096


class BlocksMachine(RuleBasedStateMachine):
    """Whatever is taken and given back, in whole or in parts."""

    def __init__(self):
        super().__init__()
        self.blocks = Blocks(SIZE_BYTES)
        self.taken = []

    @rule(size_bytes=st.integers(1, 1500))
    def take(self, size_bytes):
        start = self.blocks.take(size_bytes)
        if start is not None:
            end = start + aligned(size_bytes)
            assert start % 64 == 0
            assert 0 <= start < end <= SIZE_BYTES
            assert all(end <= one or other <= start for one, other in self.taken), "bytes are taken twice"
            self.taken.append((start, end))
        else:
            ends = [0, *sorted(end for _, end in self.taken)]
            starts = [*sorted(start for start, _ in self.taken), SIZE_BYTES]
            gaps = [start - end for end, start in zip(ends, starts, strict=True)]
            assert max(gaps) < aligned(size_bytes), "there is room, and it is refused"

    @precondition(lambda self: self.taken)
    @rule(place=st.integers(0, 50), cut=st.integers(0, 20))
    def give(self, place, cut):
        start, end = self.taken.pop(place % len(self.taken))
        middle = min(start + cut * 64, end)
        if middle > start:
            self.blocks.give(start, middle - start)
        if end > middle:
            self.taken.append((middle, end))

    @invariant()
    def sums_up(self):
        assert self.blocks.free_bytes == SIZE_BYTES - sum(end - start for start, end in self.taken)
        assert self.blocks.is_empty == (not self.taken)

    def teardown(self):
        for start, end in self.taken:
            self.blocks.give(start, end - start)
        assert self.blocks.take(SIZE_BYTES) == 0, "neighbours are not joined"


TestBlocks = BlocksMachine.TestCase


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_what_was_given_back_is_taken_again(sizes_bytes):
    blocks = Blocks(1 << 20)
    for size_bytes in sizes_bytes:
        first = blocks.take(size_bytes)
        blocks.give(first, size_bytes)
        assert first == 0


def test_a_block_of_everything_fits_and_nothing_beside_it():
    blocks = Blocks(SIZE_BYTES)
    assert blocks.take(SIZE_BYTES + 1) is None
    assert blocks.take(SIZE_BYTES) == 0
    assert blocks.take(1) is None
    assert repr(blocks) == "<Blocks 0 of 4,096 bytes free, in 0 parts>"
