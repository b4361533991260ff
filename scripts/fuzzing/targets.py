"""Everything of the project that reads bytes from outside, by name."""

from __future__ import annotations

from typing import Final

from .files import JOB, LINES, SAFETENSORS, TOML
from .streams import CONTROL, STREAM
from .target import Target
from .wire import HEADER, MANIFEST, PLACES, VALUE

TARGETS: Final[dict[str, Target]] = {
    "header": HEADER,
    "stream": STREAM,
    "control": CONTROL,
    "value": VALUE,
    "places": PLACES,
    "manifest": MANIFEST,
    "toml": TOML,
    "job": JOB,
    "lines": LINES,
    "safetensors": SAFETENSORS,
}
