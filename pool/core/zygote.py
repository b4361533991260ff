"""The zygote: what it shall have, modules and warm weight sets, and what the present one has.

It does one thing after another, in the order in which it was told. As long as it imports or thaws nothing is
forked: so what a child inherits is what the zygote had when the fork was ordered, and no child is forked from a
process with a second thread.

A *generation* counts what the zygote has imported. A worker forked before a model's modules were there would have
to import them privately: seconds, and 100 MB for transformers.

Modules are imported in the zygote itself: to try them in a throwaway fork first would take those seconds twice. If
that leaves it with a second thread it must never fork again: it is replaced by a new zygote that does without the
guilty module, and workers import that one on their own. The same if the zygote dies twice over one import. Weight
sets, which take milliseconds, were tried in a throwaway fork before they are wanted here (see `warming`). What was
refused is reported.
"""

from __future__ import annotations

from typing import Final

from ...protocol.messages import Adopt
from .holdings import thaw_order
from .instructions import Instruction, Report, ToZygote
from .weights import MAX_THAW_DEATHS, WeightSet

#: A thaw takes milliseconds, and a model that is built anew may take seconds, in which nobody can be forked.
MAX_THAW_S: Final = 5.0
#: So many zygotes in a row may die over one import; after that they do without.
MAX_IMPORT_DEATHS: Final = 2

_NEVER: Final = float("inf")


class Zygote:
    """Decides what the zygote does; whether there is one decides the fleet.

    Args:
        out: where instructions go.
        device: whose it is.

    Attributes:
        generation: the newest whose children have its modules.
        refused: modules that it does without, and why.
        has: the weight sets that a child inherits if it is forked now.
        is_ready: whether it is up.
    """

    def __init__(self, out: list[Instruction], device: int = 0) -> None:
        self.generation = 0
        self.refused: dict[str, str] = {}
        self.has: dict[int, WeightSet] = {}
        self.is_ready = False
        self._out = out
        self._device = device
        self._wanted: dict[int, WeightSet] = {}
        self._thawing: WeightSet | None = None
        self._thaw_until = _NEVER
        self._wanted_modules: dict[str, None] = {}
        self._paths: dict[str, None] = {}
        self._wanted_generation = 0
        self._imported_generation = 0  # of the present one
        self._in_flight = 0  # the generation that is being imported, or 0
        self._importing: list[str] = []  # ... and its modules
        self._adopted: dict[str, None] = {}
        self._import_deaths = 0  # in a row

    @property
    def is_free(self) -> bool:
        """Whether it forks at once when it is told to."""
        return self.is_ready and not self._in_flight and self._thawing is None

    @property
    def is_complete(self) -> bool:
        """Whether it has all that it shall have."""
        return self.is_free and len(self.has) == len(self._wanted)

    def ready(self) -> None:
        """A new one is up, and has nothing yet."""
        self.is_ready = True

    def gone(self) -> None:
        """The present one is no more, or is about to be ended."""
        self.is_ready = False
        self.has.clear()
        self._thawing, self._thaw_until = None, _NEVER
        self._in_flight, self._importing = 0, []
        self._imported_generation = 0

    def died(self, cause: str) -> WeightSet | None:
        """It died; what it died over a second time it shall do without: a weight set is returned then."""
        thawing, was_importing, modules = self._thawing, bool(self._in_flight), self._importing
        self.gone()
        if thawing is not None:
            thawing.thaw_deaths += 1
            if thawing.thaw_deaths >= MAX_THAW_DEATHS:
                return self._wanted.pop(thawing.number)
        if was_importing:
            self._import_deaths += 1
            if self._import_deaths == MAX_IMPORT_DEATHS:
                self._import_deaths = 0
                for name in [name for name in modules if name not in self._adopted] or modules:
                    self._refuse(name, f"the zygote died ({cause}) when it imported this")
        return None

    # --- modules --------------------------------------------------------------------------------------------

    def need_modules(self, modules: list[str], paths: list[str]) -> int:
        """Have these modules imported; return the generation that has them."""
        self._paths.update(dict.fromkeys(paths))
        missing = [name for name in modules if name not in self._wanted_modules and name not in self.refused]
        if missing:
            self._wanted_modules.update(dict.fromkeys(missing))
            self._wanted_generation += 1
            self.adopt()
        return self._wanted_generation

    def adopt(self) -> None:
        """Import what is missing, if there is anything: even if all was refused, that completes a generation."""
        if self.is_free and self._imported_generation < self._wanted_generation:
            self._in_flight = self._wanted_generation
            self._importing = list(self._wanted_modules)
            order = Adopt(self._in_flight, list(self._importing), list(self._paths))
            self._out.append(ToZygote(order, (), self._device))

    def adopted(self, refused: dict[str, str], threads: int) -> bool:
        """It has imported, or refused, what it was told to; false if it must never fork again."""
        generation, importing = self._in_flight, self._importing
        self._in_flight, self._importing, self._import_deaths = 0, [], 0
        # With nothing to do without, the next zygote would be no better: this one is as good as it gets.
        must_not_fork = threads > 1 and bool(importing)
        if must_not_fork and not refused:
            refused = dict.fromkeys(importing, "a thread was left after imports, and it may be of this one")
        for name, reason in refused.items():
            self._refuse(name, reason)
        if must_not_fork:
            return False
        self._adopted.update(dict.fromkeys(importing))
        self._imported_generation = generation
        self.generation = max(self.generation, generation)
        return True

    def _refuse(self, name: str, reason: str) -> None:
        self._wanted_modules.pop(name, None)
        self.refused[name] = reason
        self._out.append(Report(f"workers import {name} each on their own: {reason}"))

    # --- weight sets ----------------------------------------------------------------------------------------

    def want(self, version: WeightSet) -> None:
        """Have a weight set thawed that a throwaway fork could thaw."""
        self._wanted[version.number] = version

    def drop(self, version: WeightSet) -> bool:
        """Do without a weight set from now on; true if this one must be replaced for that."""
        self._wanted.pop(version.number, None)
        return version.number in self.has or version is self._thawing

    def thaw(self, now: float) -> None:
        """Thaw what is missing, if there is anything and nothing else is to be done."""
        missing = next((one for number, one in self._wanted.items() if number not in self.has), None)
        if self.is_free and missing is not None:
            self._thawing, self._thaw_until = missing, now + MAX_THAW_S
            self._out.append(ToZygote(thaw_order(missing, eager=True), missing.layout, self._device))

    def thawed(self, *, has_failed: bool) -> WeightSet | None:
        """It is done with thawing; return what it has, or could not, which it shall do without.

        None if nobody waits for that: at the end of the pool, a zygote that is of no use is not replaced.
        """
        version = self._thawing
        self._thawing, self._thaw_until = None, _NEVER
        if version is None:
            return None
        if has_failed:
            del self._wanted[version.number]
        else:
            version.thaw_deaths = 0
            self.has[version.number] = version
        return version

    def is_stuck(self, now: float) -> bool:
        """Whether it has been thawing for too long."""
        return now >= self._thaw_until

    def wake_at(self) -> float:
        """Return when it may be stuck; infinity for never."""
        return self._thaw_until
