"""Which parts of a mailbox are free.

First fit from the start, and free neighbours are one: a client with little under way uses the same few pages again
and again, warm in caches and mapped everywhere, and leaves the rest of the mailbox untouched. Any part of what was
taken may be given back alone.
"""

from __future__ import annotations

from bisect import bisect_left

from ..protocol.tensors import aligned


class Blocks:
    """The free and taken parts of so many bytes. Sizes are rounded up to where the next block may begin."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.free_bytes = size_bytes
        self._starts = [0]  # of what is free, in order
        self._ends = [size_bytes]

    def __repr__(self) -> str:
        return f"<Blocks {self.free_bytes:,} of {self.size_bytes:,} bytes free, in {len(self._starts)} parts>"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is taken."""
        return self.free_bytes == self.size_bytes

    def take(self, size_bytes: int) -> int | None:
        """Return the offset of so many bytes that are taken now, or None if they are not free in one part."""
        size_bytes = aligned(size_bytes)
        if size_bytes > self.free_bytes:
            return None
        for index, start in enumerate(self._starts):
            left_bytes = self._ends[index] - start - size_bytes
            if left_bytes < 0:
                continue
            if left_bytes:
                self._starts[index] = start + size_bytes
            else:
                del self._starts[index], self._ends[index]
            self.free_bytes -= size_bytes
            return start
        return None

    def give(self, offset_bytes: int, size_bytes: int) -> None:
        """Take back what was taken, or a part of it."""
        start, end = offset_bytes, offset_bytes + aligned(size_bytes)
        self.free_bytes += end - start
        index = bisect_left(self._starts, start)
        joins_next = index < len(self._starts) and self._starts[index] == end
        if index and self._ends[index - 1] == start:
            if joins_next:
                self._ends[index - 1] = self._ends[index]
                del self._starts[index], self._ends[index]
            else:
                self._ends[index - 1] = end
        elif joins_next:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)
