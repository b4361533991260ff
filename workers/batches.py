"""Batches: several calls made as one, without anybody noticing but by the time it takes.

::

    calls ──► those alike ──► joined, or collate ──► one call ──► cut, or split ──► results
                  ▲                                     │          └─ cannot be cut: one by one
                  └───────── each half of them ◄── it raises

A call that fails does so alone: when a batch raises, each half of it is tried again, down to single calls. A
single call is made as it came.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

from ..protocol.errors import ModelError, ModelNotFound
from .calls import Caller, Failure
from .interrupts import Interrupted
from .rows import NO_ROWS, Arguments, Rows, Uncuttable, cut, joined, rows_of

#: Called with the index of a call, and its result or `Failure`.
Take: TypeAlias = Callable[[int, Any], None]

#: So many kinds of calls are remembered whose results cannot be cut.
_MOST_KINDS: Final = 64


class _WrongHook(ModelError):
    """A hook of the model's has not done what it is for: no call of the batch can have a result."""


class Batching:
    """How the calls of a model are batched, and what turned out about that.

    Args:
        name: the model's.
        options: of these, ``max_batch`` is how many calls may be made as one; ``collate`` and ``split`` are empty,
            or name methods that join their arguments and divide their result.
        method: returns a method of the model by its name.
    """

    def __init__(self, name: str, options: Mapping[str, Any], method: Callable[[str], Callable[..., Any]]) -> None:
        self.max_batch = int(options.get("max_batch", 1))
        self._name = name
        self._collate = str(options.get("collate", ""))
        self._split = str(options.get("split", ""))
        self._method = method
        self._uncut: set[Hashable] = set()
        self._told: set[tuple[str, str]] = set()

    def run(self, calls: Sequence[Arguments], caller: Caller, take: Take) -> None:
        """Make calls, and hand over what comes of each as soon as it is known.

        Args:
            calls: their arguments.
            caller: who makes them.
            take: called with the index of a call, and its result or `Failure`.

        Raises:
            Interrupted: the attempt is given up.
        """
        if self.max_batch > 1 and len(calls) > 1:
            _Batch(self, calls, caller, take).run()
            return
        for index, (args, kwargs) in enumerate(calls):
            take(index, caller.alone(args, kwargs))

    def likeness(self, rows: Rows, index: int) -> Hashable:
        """Return what calls that can be made as one have in common; one that has to be made alone, with none."""
        if self._collate and self._split:
            return ()
        if not rows.number:
            return index
        return rows.texts if self._collate else (rows.texts, rows.likeness)

    def joined(self, calls: Sequence[Arguments], rows: Rows, caller: Caller) -> Arguments:
        """Return the arguments of one call for all of these."""
        if not self._collate:
            return joined(calls, rows)
        made = self._hook(self._collate)([(tuple(args), dict(kwargs)) for args, kwargs in caller.owned(calls)])
        match made:
            case [list() | tuple() as args, dict() as kwargs]:
                return cast("Sequence[Any]", args), cast("dict[str, Any]", kwargs)
            case _:
                raise _WrongHook(
                    f"{self._name}: {self._collate} was called with the arguments of {len(calls)} calls and must "
                    f"return (args, kwargs) for one, not {type(made).__name__}"
                )

    def divided(self, result: Any, rows: Sequence[Rows]) -> list[Any]:
        """Return the result of each of the calls that were made as one.

        Raises:
            Uncuttable: it cannot be told which part is whose.
        """
        count = len(rows)
        if not self._split:
            return cut(result, [one.number for one in rows], have_dimension=rows[0].have_dimension)
        parts = self._hook(self._split)(result, count)
        if isinstance(parts, list | tuple) and len(cast("list[Any]", parts)) == count:
            return list(cast("list[Any]", parts))
        returned = f"{len(parts)}" if isinstance(parts, list | tuple) else f"a {type(parts).__name__}"
        raise _WrongHook(
            f"{self._name}: {self._split} was asked for the results of {count} calls, in a list, and returned "
            f"{returned}"
        )

    def can_cut(self, method: str, likeness: Hashable) -> bool:
        """Whether nothing is known against making such calls as one."""
        return (method, likeness) not in self._uncut

    def cannot_cut(self, method: str, likeness: Hashable, reason: Uncuttable) -> None:
        """Note that the results of such calls cannot be cut, and say so."""
        if len(self._uncut) < _MOST_KINDS:
            self._uncut.add((method, likeness))
        self._say(
            method,
            f"the result of a batch cannot be cut into those of its calls ({reason}), so they run one by one; "
            "name a method that can with Model(split=...), or let max_batch be 1",
        )

    def fail_only_together(self, method: str, error: str) -> None:
        """Say that a batch failed, and all of its calls alone did not."""
        self._say(
            method,
            f"calls that succeed alone fail as a batch ({error}), and were made a second time; "
            "let max_batch be lower, or name a method with Model(collate=...) that joins their arguments",
        )

    def _hook(self, name: str) -> Callable[..., Any]:
        try:
            return self._method(name)
        except ModelNotFound as error:
            raise _WrongHook(f"{error}, which its Model names for batches") from error

    def _say(self, method: str, text: str) -> None:
        """Print something about a method, once of a kind; what a worker prints goes to the log."""
        if (method, text[:20]) not in self._told:
            self._told.add((method, text[:20]))
            print(f"{self._name}, {method}: {text}", file=sys.stderr)  # noqa: T201


class _Batch:
    """Calls on their way to results."""

    def __init__(self, batching: Batching, calls: Sequence[Arguments], caller: Caller, take: Take) -> None:
        self._batching = batching
        self._calls = calls
        self._caller = caller
        self._take = take
        self._rows = [_rows_of(*call) for call in calls]
        self._failed: set[int] = set()

    def run(self) -> None:
        groups: dict[Hashable, list[int]] = {}
        for index, rows in enumerate(self._rows):
            groups.setdefault(self._batching.likeness(rows, index), []).append(index)
        for likeness, indexes in groups.items():
            for start in range(0, len(indexes), self._batching.max_batch):
                self._together(likeness, indexes[start : start + self._batching.max_batch])

    def _together(self, likeness: Hashable, indexes: list[int]) -> None:
        """Make calls as one, if that is possible."""
        error = ""
        if len(indexes) > 1 and self._batching.can_cut(self._caller.method, likeness):
            error = self._tried(likeness, indexes)
        else:
            self._one_by_one(indexes)
        if error and self._failed.isdisjoint(indexes):
            self._batching.fail_only_together(self._caller.method, error)

    def _tried(self, likeness: Hashable, indexes: list[int]) -> str:
        """Make calls as one, and if that fails, each half of them; return why it failed."""
        if len(indexes) == 1:
            self._one_by_one(indexes)
            return ""
        error = ""
        try:
            results = self._as_one(indexes)
        except Interrupted:
            raise
        except _WrongHook as wrong:
            results = [self._caller.failure(wrong)] * len(indexes)
        except Uncuttable as reason:
            results = None
            self._batching.cannot_cut(self._caller.method, likeness, reason)
        except BaseException as raised:  # noqa: BLE001 - whatever the model raises, the halves will tell whose it is
            results = None
            cause = self._caller.cause_of(raised)
            error = f"{type(cause).__name__}: {cause}".split("\n", 1)[0]
        if results is not None:
            for index, result in zip(indexes, results, strict=True):
                self._take(index, result)
        elif error:
            half = len(indexes) // 2
            self._tried(likeness, indexes[:half])
            self._tried(likeness, indexes[half:])
        else:
            self._one_by_one(indexes)
        return error

    def _as_one(self, indexes: list[int]) -> list[Any]:
        rows = [self._rows[index] for index in indexes]
        args, kwargs = self._batching.joined([self._calls[index] for index in indexes], rows[0], self._caller)
        result = self._caller.as_one(args, kwargs, len(indexes))
        return self._batching.divided(result, rows)

    def _one_by_one(self, indexes: list[int]) -> None:
        for index in indexes:
            result = self._caller.alone(*self._calls[index])
            if isinstance(result, Failure):
                self._failed.add(index)
            self._take(index, result)


def _rows_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Rows:
    try:
        return rows_of(args, kwargs)
    except RecursionError:  # the model may be able to handle what is nested so deeply
        return NO_ROWS
