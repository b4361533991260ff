"""Who waits for memory: loads that want regions, and weight sets that want to be back.

They are served in the order in which they came, so that nobody starves behind others that need less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from .ledger import Ledger
from .regions import FillerKey, Regions, Want
from .weights import WeightSet


class FillClaim:
    """Somebody who fills regions waits for some."""

    def __init__(self, filler: FillerKey, wants: Sequence[Want]) -> None:
        self.filler = filler
        self.wants = wants

    def needed_bytes(self, regions: Regions) -> int:
        """Return what it takes that is not there already."""
        return regions.missing_bytes(self.filler, self.wants)


class ReturnClaim:
    """A weight set waits to be back in memory."""

    def __init__(self, version: WeightSet) -> None:
        self.version = version

    def needed_bytes(self, regions: Regions) -> int:
        """Return what it takes that is not there already."""
        return sum(regions[number].size_bytes for number in regions.away(self.version.regions))


Claim: TypeAlias = FillClaim | ReturnClaim


class Admission:
    """The line of those who wait.

    Args:
        ledger: what there is.
        regions: what is there already.
    """

    def __init__(self, ledger: Ledger, regions: Regions) -> None:
        self.ledger = ledger
        self._regions = regions
        self._claims: dict[object, Claim] = {}  # by filler or weight set, in order

    def __bool__(self) -> bool:
        return bool(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        return iter(list(self._claims.values()))

    def fits(self, claim: Claim) -> bool:
        """Whether a claim may be met now; what takes nothing always may, unless that is only expected of it."""
        return self.needs(claim) <= self.ledger.free_bytes or not self._needs(claim, as_measured=True)

    def needs(self, claim: Claim) -> int:
        """Return how much memory a claim takes, besides what counts for the same load already."""
        return self._needs(claim, as_measured=False)

    def _needs(self, claim: Claim, *, as_measured: bool) -> int:
        needed_bytes = claim.needed_bytes(self._regions)
        if isinstance(claim, FillClaim):
            return self.ledger.growth_bytes(claim.filler, needed_bytes, as_measured=as_measured)
        return needed_bytes

    def first(self) -> Claim | None:
        """Return whose turn it is."""
        return next(iter(self._claims.values()), None)

    def fill(self, filler: FillerKey, wants: Sequence[Want]) -> None:
        """Somebody wants regions to fill; it waits for the answer, and asks for nothing else meanwhile."""
        self._claims[("filler", filler)] = FillClaim(filler, wants)

    def bring_back(self, version: WeightSet) -> None:
        """A weight set is to be in memory again."""
        self._claims[version] = ReturnClaim(version)

    def waits(self, filler: FillerKey) -> bool:
        """Whether somebody who fills regions waits for more."""
        return ("filler", filler) in self._claims

    def waiting_fillers(self) -> list[FillerKey]:
        """Return all who fill regions and wait for more."""
        return [claim.filler for claim in self._claims.values() if isinstance(claim, FillClaim)]

    def drop_filler(self, filler: FillerKey) -> None:
        """Somebody fills no regions any more."""
        self._claims.pop(("filler", filler), None)
        self.ledger.filler_gone(filler)

    def drop_set(self, version: WeightSet) -> None:
        """A weight set is not wanted back any more."""
        self._claims.pop(version, None)

    def drop(self, claim: Claim) -> None:
        """A claim is settled, one way or the other."""
        if isinstance(claim, FillClaim):
            del self._claims["filler", claim.filler]
        else:
            self.drop_set(claim.version)
