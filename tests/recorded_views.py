"""What a pool of two devices told once: two workers each, one model that runs, one that could not be loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from onecopy.pool.memory_views import Memory, Told
from onecopy.pool.views import Status

_RECORDED = json.loads(Path(__file__).with_name("recorded_views.json").read_text())


def recorded(at_s: float = 0.0, **changes: Any) -> Told:
    """Return it; ``changes`` are of the status."""
    told = copy.deepcopy(_RECORDED)
    return Told(at_s, Status.from_wire(told["status"] | changes), Memory.from_wire(told["memory"]))


def models(**changes: Any) -> list[dict[str, Any]]:
    """Return its models, each with these changes."""
    return [one | changes for one in copy.deepcopy(_RECORDED["status"]["models"])]
