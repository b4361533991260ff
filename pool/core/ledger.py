"""The ledger: what a device has, what of it the pool takes, and for what.

What the pool hands out itself, regions, is counted as it is handed out. What only shows when it is used, pages of
slots and mailboxes and the private memory of processes, is measured; where it is known that more will be needed,
that counts.

A loader that builds a model in private memory gives that back piece by piece, as it fills regions with it. So a
load takes what its loader had at most, or what lies in its regions by now, not both. Where it is expected to have
more than it was measured to have so far, that counts, until somebody would go without for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from .events import MemoryAvailable, MemoryMeasured
from .regions import FillerKey, Regions

#: What a loader needs besides the weights that pass through it, at most, as far as it is not seen to need more:
#: one that has imported torch and builds a module that is small takes 58 MB.
LOADER_BYTES: Final = 64 << 20
#: What a loader takes of a GPU besides the regions, its context, is expected to be. Users report 0.4 to 0.6 GiB.
CONTEXT_BYTES: Final = 512 << 20
_MB: Final = 1e6


class Allowance(NamedTuple):
    """What the pool may take of a device.

    Attributes:
        total_bytes: what there is; 0: not known, and nothing is refused.
        budget_bytes: the most that the pool may take; 0: all of it.
        reserve_bytes: what must stay free.
    """

    total_bytes: int = 0
    budget_bytes: int = 0
    reserve_bytes: int = 0

    @property
    def limit_bytes(self) -> int:
        """The most that the pool may take."""
        most_bytes = max(0, self.total_bytes - self.reserve_bytes)
        return min(self.budget_bytes, most_bytes) if self.budget_bytes else most_bytes


NO_ALLOWANCE: Final = Allowance()


class Ledger:
    """The accounts of one device.

    Args:
        name: the device.
        allowance: what the pool may take of it.
        regions: what was handed out.
        needed_by_slots: tells what all slots together will take, as far as that is known.

    Attributes:
        available_bytes: what the system could give when it was asked last.
    """

    def __init__(
        self, name: str, allowance: Allowance, regions: Regions, needed_by_slots: Callable[[], int]
    ) -> None:
        self.name = name
        self.total_bytes, self.budget_bytes, self.reserve_bytes = allowance
        self.available_bytes = self.total_bytes
        self._regions = regions
        self._needed_by_slots = needed_by_slots
        self._slots_bytes = 0
        self._mailboxes_bytes = 0
        self._workers: dict[int, int] = {}
        self._loaders: dict[FillerKey, int] = {}  # the most that each had
        self._expected: dict[FillerKey, int] = {}  # the most that each should have, as it had before
        self._others_bytes = 0

    def __repr__(self) -> str:
        return f"<Ledger {self.name}: {self.used_bytes:,} of {self.limit_bytes:,} bytes>"

    def measured(self, event: MemoryMeasured) -> None:
        """Take in what was measured."""
        self.total_bytes, self.available_bytes = event.total_bytes, event.available_bytes
        self._slots_bytes, self._mailboxes_bytes = event.slots_bytes, event.mailboxes_bytes
        self._workers |= {child: size for child, size in event.workers.items() if child in self._workers}
        before = self._loaders
        self._loaders = {child: max(size, before.get(child, 0)) for child, size in event.loaders.items()}
        self._others_bytes = event.others_bytes

    def available(self, event: MemoryAvailable) -> None:
        """Take in what the system has left."""
        self.available_bytes = event.available_bytes

    def worker_came(self, child: int) -> None:
        """There is one more worker: until it is measured, it counts as the others do."""
        self._workers[child] = self.worker_bytes

    def worker_gone(self, child: int) -> None:
        """A worker's private memory is free."""
        self._workers.pop(child, None)

    def filler_gone(self, filler: FillerKey) -> None:
        """What somebody has filled is another's, or free; what a loader had for itself is free too."""
        self._loaders.pop(filler, None)
        self._expected.pop(filler, None)

    def expected_bytes(self, private_bytes: int) -> int:
        """Return how much private memory a loader should take here that took so much of the processor's."""
        return CONTEXT_BYTES if self._regions.is_gpu else private_bytes

    def expect(self, loader: int, private_bytes: int) -> None:
        """Count a loader with so much private memory, although it was not measured to have it yet."""
        self._expected[loader] = private_bytes

    def expect_no_more(self, loader: int | None = None) -> bool:
        """Count a loader, or all, with what is measured alone; false if nothing was expected."""
        gone = [one for one in self._expected if loader in (one, None)]
        for one in gone:
            del self._expected[one]
        return bool(gone)

    @property
    def is_expecting(self) -> bool:
        """Whether some loader counts with what it was not measured to have."""
        return bool(self._expected)

    def loader_bytes(self, loader: int) -> int | None:
        """Return the most private memory that a loader was measured to have; None: it was not.

        Nor is it of a GPU, where a loader has a context, and that says nothing of the next one.
        """
        return None if self._regions.is_gpu else self._loaders.get(loader)

    def growth_bytes(self, filler: FillerKey, more_bytes: int, *, as_measured: bool = False) -> int:
        """Return how much more a load takes when it is given regions of so many bytes.

        Args:
            filler: whose load it is.
            more_bytes: what it is given.
            as_measured: whether nothing counts that is only expected.
        """
        private_bytes = self._loaders.get(filler, 0)
        if not as_measured:
            private_bytes = max(private_bytes, self._expected.get(filler, 0))
        there_bytes = self._regions.loading_bytes(filler)[0]
        after_bytes = self._load_bytes(private_bytes, there_bytes + more_bytes)
        return after_bytes - self._load_bytes(private_bytes, there_bytes)

    @property
    def worker_bytes(self) -> int:
        """What a worker takes for itself, on average; 0 if that is not known."""
        return sum(self._workers.values()) // len(self._workers) if self._workers else 0

    @property
    def limit_bytes(self) -> int:
        """The most that the pool may take."""
        return Allowance(self.total_bytes, self.budget_bytes, self.reserve_bytes).limit_bytes

    @property
    def used_bytes(self) -> int:
        """What it takes."""
        return sum(self.accounts().values())

    @property
    def free_bytes(self) -> int:
        """How much more it may take, as far as the system has it; negative if it takes too much."""
        if not self.total_bytes:
            return 1 << 62
        # What was handed out and is being written now is not, or not wholly, taken from the system yet; nor is
        # what loaders are only expected to take.
        to_come_bytes = self._regions.unwritten_bytes + sum(map(self._unseen_bytes, self._expected))
        left_bytes = self.available_bytes - to_come_bytes - self.reserve_bytes
        return min(self.limit_bytes - self.used_bytes, left_bytes)

    def accounts(self) -> dict[str, int]:
        """Return what is taken, in bytes, by what for."""
        fillers = dict.fromkeys([*self._loaders, *self._expected, *self._regions.fillers()])
        filled_bytes = sum(self._regions.loading_bytes(one)[1] for one in fillers)
        return {
            "weights": self._regions.resident_bytes - filled_bytes,
            "loading": sum(map(self._loading_bytes, fillers)),
            "slots": max(self._slots_bytes, self._needed_by_slots()),
            "mailboxes": self._mailboxes_bytes,
            "workers": sum(self._workers.values()),
            "others": self._others_bytes,
        }

    def _loading_bytes(self, filler: FillerKey) -> int:
        private_bytes = max(self._loaders.get(filler, 0), self._expected.get(filler, 0))
        return self._load_bytes(private_bytes, self._regions.loading_bytes(filler)[0])

    def _load_bytes(self, private_bytes: int, in_regions_bytes: int) -> int:
        """Return what a load takes; on a GPU its loader's private memory is not what regions are filled with."""
        if self._regions.is_gpu:
            return private_bytes + in_regions_bytes
        return max(private_bytes, in_regions_bytes + min(private_bytes, LOADER_BYTES))

    def _unseen_bytes(self, loader: FillerKey) -> int:
        """Return what a loader should take that it neither was measured to have nor has filled regions with."""
        there_bytes = self._loaders.get(loader, 0) + self._regions.loading_bytes(loader)[0]
        return max(0, self._expected[loader] - there_bytes)

    def refusal(
        self, what: str, needed_bytes: int, could_free: Iterable[tuple[str, int]]
    ) -> tuple[str, dict[str, int]]:
        """Return why something is not to be had: a sentence with each number, and the numbers.

        Args:
            what: what it is for.
            needed_bytes: how much it needs.
            could_free: by model, what its eviction would free.
        """
        accounts = self.accounts()
        numbers = {
            "needed": needed_bytes, "free": max(0, self.free_bytes), "limit": self.limit_bytes,
            "total": self.total_bytes, "budget": self.budget_bytes, "reserve": self.reserve_bytes,
            "available": max(0, self.available_bytes), **accounts,
        }  # fmt: skip
        taken = ", ".join(f"{account} {_mb(size)}" for account, size in accounts.items() if size)
        freeable = ", ".join(f"{name} {_mb(size)}" for name, size in could_free) or "nothing"
        budget = _mb(self.budget_bytes) if self.budget_bytes else "none"
        text = (
            f"{what} needs {_mb(needed_bytes)} on {self.name}, and {_mb(numbers['free'])} are free: the pool may "
            f"take {_mb(self.limit_bytes)} (budget {budget}, the device has {_mb(self.total_bytes)}, "
            f"{_mb(self.reserve_bytes)} are to stay free, the system has {_mb(numbers['available'])} left) "
            f"and takes {taken or 'nothing'}. Eviction could free: {freeable}"
        )
        return text, numbers


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / _MB:,.1f} MB" if size_bytes >= _MB else f"{size_bytes:,} bytes"
