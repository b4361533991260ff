"""The parts of an attempt, each of which is one request: what came, and the answer to it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

from ..protocol.errors import InvalidRequest
from ..protocol.messages import Record
from ..protocol.tensors import Buffer
from ..protocol.values import Encoded, decode, encode
from .calls import Caller, Failure
from .mailboxes import Mailboxes
from .rows import Arguments


class Answer(NamedTuple):
    """What becomes of a part: its entry in `Ran`, and its buffers."""

    wire: list[Any] | Record
    buffers: Sequence[Buffer]


_NONE_YET: Final = Answer([], [])


class Part:
    """One request.

    Args:
        wire: as in `Run`.
        buffers: its own.
        mailboxes: where others of them lie.

    Attributes:
        count: as in `Run`.
        answer: what becomes of it, once that is known.
    """

    def __init__(self, wire: Sequence[Any], buffers: Sequence[Buffer], mailboxes: Mailboxes) -> None:
        self._body, self._places, self._reply, self.count, _ = wire
        self._buffers = buffers
        self._mailboxes = mailboxes
        self._results: dict[int, Any] = {}
        self.answer = _NONE_YET

    def calls(self) -> list[Arguments]:
        """Return the arguments of its calls: one, or as many as it counts.

        Raises:
            InvalidRequest: what came is no such thing.
        """
        if self.count:
            return [((one,), {}) for one in self.values()]
        match self._decoded():
            case [list() | tuple() as args, dict() as kwargs]:
                return [(cast("list[Any]", args), cast("dict[str, Any]", kwargs))]
            case _:
                raise InvalidRequest("the arguments of a call must be [args, kwargs]: a list and a map")

    def values(self) -> list[Any]:
        """Return the arguments of its calls, if it is many with one each.

        Raises:
            InvalidRequest: what came is no such thing.
        """
        values = self._decoded()
        if not isinstance(values, list) or len(cast("list[Any]", values)) != self.count:
            raise InvalidRequest(f"{self.count} calls were announced, and their arguments are something else")
        return cast("list[Any]", values)

    def _decoded(self) -> Any:
        return decode(self._body, self._mailboxes.take(self._places, self._buffers))

    def take(self, index: int, result: Any, caller: Caller) -> None:
        """Take what came of one of its calls, a result or `Failure`; with the last of them there is an answer."""
        self._results[index] = result
        calls = self.count or 1
        if len(self._results) == calls:
            self.end([self._results[one] for one in range(calls)], caller)
            self._results.clear()  # they take up the slot

    def end(self, results: Sequence[Any], caller: Caller) -> None:
        """Make the answer out of the results or failures of all its calls."""
        errors: list[Any] = []
        if self.count:
            encoded, errors = _encoded_list(results, caller)
        else:
            encoded = _encoded(results[0], caller)
        if not isinstance(encoded, Failure):
            try:
                self.answer = self.sent(encoded, errors, is_copied=not caller.stay.is_outside)
                return
            except Exception as error:  # noqa: BLE001 - it may not find the memory for it
                encoded = caller.failure(error)
        self.fail(encoded)

    def fail(self, failure: Failure) -> None:
        """Let this be the answer."""
        self.answer = Answer(failure.record, [])

    def sent(self, encoded: Encoded, errors: list[Any], *, is_copied: bool) -> Answer:
        """Return the answer with a result, as much of it as fits in the mailbox.

        Args:
            encoded: the result.
            errors: as in `Reply`.
            is_copied: copy all that goes another way.
        """
        places, following = self._mailboxes.put(self._reply, encoded.buffers)
        if is_copied:
            following = [bytes(one) for one in following]
        return Answer([encoded.body, places, errors, len(following)], following)


def parts_of(wires: Sequence[Sequence[Any]], buffers: Sequence[Buffer], mailboxes: Mailboxes) -> list[Part]:
    """Return the parts of an attempt, each with its own buffers."""
    parts: list[Part] = []
    start = 0
    for wire in wires:
        end = start + wire[4]
        parts.append(Part(wire, buffers[start:end], mailboxes))
        start = end
    return parts


def encoded_result(result: Any) -> Encoded:
    """Encode what a model returned.

    Raises:
        InvalidRequest: it cannot travel.
    """
    try:
        return encode(result, name="the result")
    except InvalidRequest as error:
        if not hasattr(result, "__next__"):
            raise
        raise InvalidRequest(
            f"the result is a {type(result).__name__}, which yields one item after the other: ask for it with "
            "pool.stream, or let the model return list(...)"
        ) from error


def _encoded(result: Any, caller: Caller) -> Encoded | Failure:
    if isinstance(result, Failure):
        return result
    try:
        return encoded_result(result)
    except Exception as error:  # noqa: BLE001 - it may not find the memory for it
        return caller.failure(error)


def _encoded_list(results: Sequence[Any], caller: Caller) -> tuple[Encoded | Failure, list[Any]]:
    """Encode the results of many calls, with None for those that failed; and return what these failed of."""
    if Failure not in map(type, results):
        with contextlib.suppress(Exception):  # which of them it is that cannot travel is found below
            return encode(results), []
    tried = [_encoded(one, caller) for one in results]
    errors = [[index, one.record] for index, one in enumerate(tried) if isinstance(one, Failure)]
    travelling = [None if isinstance(end, Failure) else one for end, one in zip(tried, results, strict=True)]
    return _encoded(travelling, caller), errors
