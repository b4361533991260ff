"""On what terms a model's requests are served: what its options say of batches, shares and queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ...protocol.errors import InvalidRequest
from ...protocol.limits import MAX_BATCH, MAX_REQUESTS_PER_CLIENT, MAX_SHARE, MAX_WAIT_MS, MAX_WORKERS

#: Bounds of each option, both allowed.
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "share": (1 / MAX_SHARE, MAX_SHARE),
    "max_batch": (1, MAX_BATCH),
    "max_wait_ms": (0, MAX_WAIT_MS),
    "max_queue": (0, MAX_REQUESTS_PER_CLIENT),
    "min_workers": (0, MAX_WORKERS),
    "max_workers": (0, MAX_WORKERS),
}


class Terms(NamedTuple):
    """What a model asks for.

    Attributes:
        share: its part of the workers' time when there is more to do than can be done, relative to others' shares.
        max_batch: so many calls may run as one; 1: each runs alone.
        max_wait_s: how long a batch that is not full may wait for more while every worker is busy.
        max_queue: so many calls may wait; 0: as many as clients may send.
        min_workers: as long as fewer run it, it has its turn before others.
        max_workers: so many may run it at once; 0: all.
        is_adaptive: whether size and wait of batches follow what runs were measured to take.
    """

    share: float = 1.0
    max_batch: int = 1
    max_wait_s: float = 0.0
    max_queue: int = 0
    min_workers: int = 0
    max_workers: int = 0
    is_adaptive: bool = True


def terms_of(options: Mapping[str, Any]) -> Terms:
    """Return the terms in a model's options.

    Raises:
        InvalidRequest: one of them is not a number, or beyond its bounds.
    """
    for key, (least, most) in _BOUNDS.items():
        value = options.get(key, least)
        if type(value) not in (int, float) or not least <= value <= most:
            raise InvalidRequest(f"{key} must be a number from {least:g} to {most:g}, not {value!r}")
    plain = Terms()
    return Terms(
        float(options.get("share", plain.share)),
        int(options.get("max_batch", plain.max_batch)),
        options.get("max_wait_ms", 0) / 1000,
        int(options.get("max_queue", plain.max_queue)),
        int(options.get("min_workers", plain.min_workers)),
        int(options.get("max_workers", plain.max_workers)),
        bool(options.get("adaptive", plain.is_adaptive)),
    )
