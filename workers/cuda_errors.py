"""Errors after which a process cannot use its GPU any more.

A kernel that reaches where it must not, such as into a weight to write there, fails long after it was called, and
with it everything that this process has on the GPU: each later call fails the same, until the process is replaced.
Whether that has happened is found by waiting for the GPU, because that is a call that fails for nothing else.
"""

from __future__ import annotations

import os
from typing import Final

import torch

from ..protocol.errors import ModelError
from ..protocol.messages import Record
from .failure import record_of
from .interrupts import Interrupted

#: Of a worker that ends for this reason.
EXIT_CODE: Final = 70

_REACHED: Final = "a kernel wrote into a weight, which is read-only on a GPU, or reached outside of its tensors"
_BROKEN: Final = "a kernel is broken, or was given addresses that are"
_HARDWARE: Final = "the machine is at fault, not the model"
#: By number, the driver's errors of which its documentation (``CUresult``) says that the process must end, or the
#: context is of no use any more; and what has led to each.
LOST: Final[dict[int, str]] = {
    214: _HARDWARE,  # uncorrectable ECC error
    220: _HARDWARE,  # uncorrectable NVLink error
    226: _HARDWARE,  # contained
    700: _REACHED,  # illegal address
    702: "a kernel ran longer than this machine allows",
    709: "its context was destroyed",
    710: "an assertion in a kernel failed, mostly about an index that is none of its tensor",
    714: _BROKEN,  # stack error
    715: _BROKEN,  # illegal instruction
    716: _BROKEN,  # misaligned address
    717: _BROKEN,  # invalid address space
    718: _BROKEN,  # invalid program counter
    719: _REACHED,  # launch failed
    721: _BROKEN,  # tensor memory leak
    810: "MPS has ended it, because another process on the GPU failed or was ended",
    911: _HARDWARE,  # an external device failed
}


class ContextLost(Interrupted):
    """This process cannot use its GPU any more: its cause says why.

    It ends a run as whoever gives it up does, wherever that is: nothing that is tried after this can succeed.
    """


def lost_by(error: BaseException) -> BaseException | None:
    """Return the error of the GPU that an error comes from, if this process cannot use it any more; else None."""
    found: BaseException | None = None
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ContextLost):
            return at.__cause__ or at
        if isinstance(at, torch.AcceleratorError) and _code(at) in LOST:
            found = at  # the first of them is nearest to what has led to it
        at = at.__cause__ or at.__context__
    return found


def last_words(lost: BaseException, model: str) -> Record:
    """Return what is told of such an error by the process that ends because of it."""
    record = record_of(lost, ModelError, model)
    reason = LOST.get(_code(lost), "the GPU does not say why")
    end = f"the worker, process {os.getpid()}, cannot use its GPU any more and is replaced"
    record["message"] += f": {reason}; {end}"
    return record


def _code(error: BaseException) -> int:
    """Return the driver's number of an error, which torch notes there; -1 if there is none."""
    return int(getattr(error, "error_code", -1))
