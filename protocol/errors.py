"""The error tree: every error has a code on the wire and says who is at fault.

An error crosses process borders as a record ``{"code", "message", "details"}``: no class name is ever
looked up from the wire, so a peer can cause no other exception than those in this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from .limits import MAX_ERROR_TEXT

#: Lists in an error's details: how deep they may be nested, and how many items of each travel.
_DETAIL_DEPTH = 2
_DETAIL_ITEMS = 100

Fault = Literal["caller", "model", "pool"]


class PoolError(Exception):
    """Base of all errors that a pool raises.

    Attributes:
        code: the error's name on the wire.
        fault: who can mend it: the ``caller`` (a wrong request), the ``model`` (user code in a worker), or
            the ``pool`` (the machine, the supervisor, its limits).
        message: the sentence for a person.
        details: further plain facts, for programs.
    """

    code: ClassVar[str] = "pool_error"
    fault: ClassVar[Fault] = "pool"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.to_record(),)

    def to_record(self) -> dict[str, Any]:
        """Return the plain mapping that stands for this error on the wire.

        It can always travel: an error that could not be told would end whoever tries to tell it.
        """
        details = {_text(str(key)): _plain(value) for key, value in self.details.items()}
        return {"code": self.code, "message": _text(self.message), "details": details}


class ModelError(PoolError):
    """The model raised; the remote traceback is part of the message.

    ``details``: ``exception`` (its type's name) and ``traceback`` (text).
    """

    code = "model_error"
    fault = "model"

    def __str__(self) -> str:
        trace = self.details.get("traceback")
        return f"{self.message}\n\n{trace}".rstrip() if trace else self.message


class WorkerDied(PoolError):
    """Workers died while they ran the request, more often than it may be retried.

    ``details``: ``deaths`` (how many), ``cause`` (the last signal's name or exit code).
    """

    code = "worker_died"
    fault = "model"


class DeadlineExceeded(PoolError, TimeoutError):
    """The request was not answered within its ``timeout_s``."""

    code = "deadline_exceeded"
    fault = "caller"


class PoolBusy(PoolError):
    """A bounded queue is full, or this client reads too slowly; submit less at once, or retry later."""

    code = "pool_busy"
    fault = "caller"


class ModelNotFound(PoolError, LookupError):
    """No model, or no method of it, has this name."""

    code = "model_not_found"
    fault = "caller"


class LoadFailed(PoolError):
    """A model could not be loaded; what its factory raised is part of the message."""

    code = "load_failed"
    fault = "model"

    __str__ = ModelError.__str__


class OutOfBudget(PoolError, MemoryError):
    """Memory that was asked for does not fit; the numbers are in the message."""

    code = "out_of_budget"
    fault = "pool"


class WorkspaceOverflow(PoolError, MemoryError):
    """A request needs more workspace than its slot has, and the model forbids spilling."""

    code = "workspace_overflow"
    fault = "model"


class InvalidRequest(PoolError, ValueError):
    """Something in the request cannot be: a value that cannot travel, a wrong option, a broken message."""

    code = "invalid_request"
    fault = "caller"


class SupervisorLost(PoolError, ConnectionError):
    """The supervisor is gone; what was not answered by then will not be."""

    code = "supervisor_lost"
    fault = "pool"


class RequestCancelled(PoolError):
    """The request was cancelled before it was answered."""

    code = "cancelled"
    fault = "caller"


_BY_CODE: dict[str, type[PoolError]] = {
    kind.code: kind
    for kind in (
        PoolError,
        ModelError,
        WorkerDied,
        DeadlineExceeded,
        PoolBusy,
        ModelNotFound,
        LoadFailed,
        OutOfBudget,
        WorkspaceOverflow,
        InvalidRequest,
        SupervisorLost,
        RequestCancelled,
    )
}


def from_record(record: Mapping[str, Any]) -> PoolError:
    """Return the error that a record from the wire stands for; an unknown code gives a ``PoolError``."""
    kind = _BY_CODE.get(str(record.get("code", "")), PoolError)
    details = record.get("details")
    error = kind(str(record.get("message", "")))
    if isinstance(details, Mapping):
        error.details = {str(key): value for key, value in details.items()}
    return error


def _text(text: str) -> str:
    """Return a text that is not too long and has an encoding: a file's name may hold lone surrogates."""
    if len(text) > MAX_ERROR_TEXT:
        half = MAX_ERROR_TEXT // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any, depth: int = 0) -> Any:
    """Return what can travel of a detail; for anything else, such as a tensor, the name of its type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)) and depth < _DETAIL_DEPTH:
        return [_plain(item, depth + 1) for item in cast("list[Any]", value)[:_DETAIL_ITEMS]]
    return f"<{type(value).__name__}>"


def _restore(record: dict[str, Any]) -> PoolError:
    """Rebuild a pickled error (an app may send one to its own processes)."""
    return from_record(record)
