"""What a load was seen to take, and how two sightings become one."""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Seen(NamedTuple):
    """What one load took; None: not seen.

    Attributes:
        weights_bytes: the memory of its regions; a weights file that workers map takes none.
        loader_bytes: the most private memory that its loader was measured to have.
        load_s: from the fork of the loader to the moment when workers could run it.
        private_bytes: the most that a worker took besides when it thawed it.
        need_bytes: the most that a run took of a slot.
        return_s: how long the last return from the disk took.
    """

    weights_bytes: int | None = None
    loader_bytes: int | None = None
    load_s: float | None = None
    private_bytes: int | None = None
    need_bytes: int | None = None
    return_s: float | None = None


NOTHING: Final = Seen()
#: Of these the largest counts: too much delays, too little is taken without being there. Of the others the newest.
_LARGEST: Final = frozenset({"loader_bytes", "private_bytes", "need_bytes"})


def merged(old: Seen, new: Seen) -> Seen:
    """Return what is known after an older and a newer sighting."""
    return Seen._make(_merged(*one) for one in zip(Seen._fields, old, new, strict=True))


def _merged(name: str, old: Any, new: Any) -> Any:
    if old is None or new is None:
        return old if new is None else new
    return max(old, new) if name in _LARGEST else new
