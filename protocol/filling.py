"""Filling regions with a frozen object's memory: each content once, copied by the kernel, hashed on the way.

Whoever holds the object (a loader, an app) is the *filler*; the supervisor makes the regions and knows what is in
those that others filled. They talk like this, for some regions at a time::

    filler                                supervisor
      │ size and digest of each ────────────► │  looks the content up
      │ ◄──── "fill" (empty region)           │  nobody has it
      │ ◄──── "compare" (sealed region)       │  somebody filled one of equal digest
      │ ◄──── "wait"                          │  another loader is filling it just now: ask again, alone
      │ filled ─────────────────────────────► │  seals it; from here on others find it

A digest only says where to look: what is to be shared is compared byte for byte, and if it differs the region is
asked for again without a digest. Another thread computes digests ahead of the copying, so that hashing costs no
second pass; what is found elsewhere is never copied. A GPU copies faster than one thread hashes: there several do.

Nothing is mapped to be written: a region with a writable shared mapping cannot be sealed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from .contents import Content
from .uploads import Uploads

#: Regions whose digests may be known before they are copied.
_HASHED_AHEAD: Final = 8
#: So many threads compute them for a GPU: each does some 5 GB/s, and pinned memory is copied at 50.
_MOST_THREADS: Final = 12

GrantState = Literal["fill", "compare", "wait"]


class Want(NamedTuple):
    """A region that is asked for; an empty digest means that it is not to be shared."""

    size_bytes: int
    digest: bytes
    on_gpu: bool = False


class Grant(NamedTuple):
    """The answer to a `Want`; the descriptor, which the filler closes, is -1 where it must wait."""

    number: int
    state: GrantState
    fd: int


class Granter(Protocol):
    """Who has the regions: the supervisor, over a channel."""

    def need(self, wants: Sequence[Want]) -> list[Grant]:
        """Ask for regions. A single one that another is filling is answered when that is done.

        Raises:
            PoolError: there is not enough memory, or the supervisor is gone.
        """
        ...

    def filled(self, number: int) -> None:
        """Tell that a region has its content; it is not written any more."""
        ...

    def offer(self, path: str) -> int:
        """Make a file a region, or find the region that it is; return its number.

        Raises:
            OSError: it cannot be opened.
            PoolError: the supervisor is gone.
        """
        ...


class Filling(NamedTuple):
    """What one region is to hold: contents, and where in it each begins; and who copies, if it is on a GPU."""

    size_bytes: int
    contents: list[tuple[int, Content]]
    uploads: Uploads | None = None

    def want(self, digest: bytes) -> Want:
        """Return what is to be asked for."""
        return Want(self.size_bytes, digest, self.uploads is not None)

    def digest(self) -> bytes:
        """Return the xxh3-128 of all contents in their order."""
        import xxhash

        state = xxhash.xxh3_128()
        for _, content in self.contents:
            for chunk in content.chunks():
                state.update(cast("Any", chunk))
        return state.digest()

    def write(self, fd: int) -> None:
        """Write all contents."""
        if self.uploads is not None:
            self.uploads.write(fd, self.size_bytes, self.contents)
            return
        for offset_bytes, content in self.contents:
            content.copy_to(fd, offset_bytes)

    def equals(self, fd: int) -> bool:
        """Whether a region holds the same contents at the same places."""
        if self.uploads is not None:
            return self.uploads.equal(fd, self.size_bytes, self.contents)
        return all(content.equals(fd, offset_bytes) for offset_bytes, content in self.contents)

    def release(self) -> None:
        """Give the contents' own memory back."""
        for _, content in self.contents:
            content.release()


def fill(regions: Sequence[Filling | str], granter: Granter, *, share: bool, consume: bool) -> list[int]:
    """Have every region filled or found; return their numbers.

    Args:
        regions: what they shall hold; a path stands for a file that is a region itself.
        granter: who makes them.
        share: whether contents that are there already may be used, and these by others.
        consume: give the memory of each content back as soon as it is in a region; the object that it came from
            is of no use any more then.

    Raises:
        PoolError: as `Granter.need` does.
        OSError: the kernel refused a copy, or a file is not what it was.
    """
    numbers = {index: granter.offer(region) for index, region in enumerate(regions) if isinstance(region, str)}
    fillings = {index: region for index, region in enumerate(regions) if isinstance(region, Filling)}
    delayed: list[tuple[int, bytes]] = []

    def settle(batch: list[tuple[int, bytes]]) -> None:
        grants = granter.need([fillings[index].want(digest) for index, digest in batch])
        fds = [grant.fd for grant in grants if grant.state != "wait"]
        try:
            for (index, digest), grant in zip(batch, grants, strict=True):
                if grant.state == "wait":
                    delayed.append((index, digest))
                elif _use(fillings[index], grant, granter):
                    numbers[index] = grant.number
                    if consume:
                        fillings[index].release()
                else:  # another content of the same digest
                    delayed.append((index, b""))
        finally:
            for fd in fds:
                os.close(fd)

    if share:
        with _digests(fillings) as batches:
            for batch in batches:
                settle(batch)
    elif fillings:
        settle([(index, b"") for index in fillings])
    while delayed:
        settle([delayed.pop()])
    return [numbers[index] for index in range(len(regions))]


def _use(filling: Filling, grant: Grant, granter: Granter) -> bool:
    """Fill a region, or check what is in it; false if that is something else."""
    if grant.state == "compare":
        return filling.equals(grant.fd)
    filling.write(grant.fd)
    granter.filled(grant.number)
    return True


@contextlib.contextmanager
def _digests(fillings: Mapping[int, Filling]) -> Generator[Iterator[list[tuple[int, bytes]]]]:
    """Yield the indices of fillings with their digests, as many at a time as are known."""
    known: queue.Queue[tuple[int, bytes] | BaseException] = queue.Queue(_HASHED_AHEAD)
    left = deque(fillings.items())

    def work() -> None:
        while left:
            try:
                index, filling = left.popleft()
            except IndexError:  # another thread has taken the last
                return
            try:
                known.put((index, filling.digest()))
            except BaseException as error:  # noqa: BLE001 - it is raised where digests are waited for
                known.put(error)
                return

    is_for_gpu = any(filling.uploads is not None for filling in fillings.values())
    count = min(_MOST_THREADS, len(os.sched_getaffinity(0)), len(fillings)) if is_for_gpu else 1
    threads = [threading.Thread(target=work, name="onecopy-digests", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield _batches(known, len(fillings))
    finally:
        left.clear()
        for thread in threads:
            while thread.is_alive():  # it may wait for room
                with contextlib.suppress(queue.Empty):
                    known.get(timeout=0.01)
            thread.join()


def _batches(
    known: queue.Queue[tuple[int, bytes] | BaseException], count: int
) -> Iterator[list[tuple[int, bytes]]]:
    while count:
        batch: list[tuple[int, bytes]] = []
        items = [known.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(known.get_nowait())
        for item in items:
            if isinstance(item, BaseException):
                raise item
            batch.append(item)
        count -= len(batch)
        yield batch
