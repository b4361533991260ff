"""What user code raised, as a record that can travel."""

from __future__ import annotations

import os
import traceback
from types import TracebackType
from typing import Any

from ..protocol.errors import PoolError

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))
_MAX_TRACEBACK = 20_000


def record_of(error: BaseException, kind: type[PoolError], model: str) -> dict[str, Any]:
    """Return the record of an error: a pool's own error as it is, any other as ``kind`` with its traceback."""
    if isinstance(error, PoolError):
        return error.to_record()
    text = "".join(traceback.format_exception(type(error), error, _user_part(error.__traceback__)))
    if len(text) > _MAX_TRACEBACK:
        text = f"{text[: _MAX_TRACEBACK // 2]}\n...\n{text[-_MAX_TRACEBACK // 2 :]}"
    name = type(error).__name__
    reason = str(error).strip().split("\n", 1)[0]
    message = f"{model}: {name}: {reason}" if reason else f"{model}: {name}"
    return kind(message, exception=name, traceback=text).to_record()


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    """Skip the frames of our own code that led to the user's."""
    part = trace
    while part is not None and os.path.dirname(part.tb_frame.f_code.co_filename) == _OWN_FOLDER:
        part = part.tb_next
    return part or trace
