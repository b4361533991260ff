"""The calls of an attempt, made one by one or as one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..protocol.errors import ModelError
from ..protocol.messages import Record
from .failure import record_of
from .held import HeldModel
from .interrupts import Interrupted, Interrupts
from .nested import copied
from .rows import Arguments
from .slot import Stay
from .transfers import Transfers


class Failure(NamedTuple):
    """What stands in the place of a result that there is none of."""

    record: Record


class Caller:
    """Makes the calls of one attempt.

    Args:
        held: the model.
        method: the name of what is called.
        function: what is called.
        stay: in the slot.
        interrupts: to look between calls whether to go on.
        transfers: to and from the GPU that the model is on, if it is.

    Attributes:
        function: what is called, and on a GPU what takes arguments there and results back; see `finish`.
    """

    def __init__(
        self,
        held: HeldModel,
        method: str,
        function: Callable[..., Any],
        stay: Stay,
        interrupts: Interrupts,
        transfers: Transfers | None,
    ) -> None:
        self.held = held
        self.method = method
        self.function = function if transfers is None else _around(function, method, held, transfers)
        self.stay = stay
        self._interrupts = interrupts
        self._transfers = transfers
        self._size = 0

    def as_one(self, args: Sequence[Any], kwargs: Mapping[str, Any], size: int = 1) -> Any:
        """Call the model with what so many calls have given; it raises what the model raises.

        Raises:
            Interrupted: the attempt is given up.
        """
        self._interrupts.check()
        result = self.function(*args, **kwargs)
        self.finish()
        if size >= self._size:
            self._size = size
            self.stay.sign(self.method, args, kwargs)  # for this it needs most, most probably
        return result

    def alone(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the model returns, or the `Failure`.

        Raises:
            Interrupted: the attempt is given up.
        """
        try:
            return self.as_one(args, kwargs)
        except Interrupted:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the model raises is told to the caller
            return self.failure(error)

    def each(self, values: Sequence[Any]) -> list[Any]:
        """Do as `alone` for many calls with one argument each, in a third of the time."""
        function, at = self.function, self._interrupts.at
        results: list[Any] = []
        for number, value in enumerate(values, 1):
            at(number)
            try:
                results.append(function(value))
            except Interrupted:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever the model raises is told to the caller
                results.append(self.failure(error))
        self.finish()
        self.stay.sign(self.method, values[-1:], {})
        return results

    def finish(self) -> None:
        """Wait for the GPU, if the model is on one: only then results are what they are to be.

        Raises:
            ContextLost: something that it was told has failed.
        """
        if self._transfers is not None:
            self._transfers.finish()

    def item(self, value: Any) -> Any:
        """Return what a model has yielded, where it can be read.

        Raises:
            ContextLost: something that the GPU was told has failed.
        """
        if self._transfers is None:
            return value
        fetched = self._transfers.fetched(value)
        self.finish()
        return fetched

    def owned(self, calls: Sequence[Arguments]) -> Sequence[Arguments]:
        """Return the arguments of calls so that a method may write into them, or keep them."""
        return calls if self._transfers is None else copied(list(calls))

    def cause_of(self, error: BaseException) -> BaseException:
        """Return why a call failed with this error.

        Raises:
            ContextLost: because of the GPU, which cannot be used any more.
        """
        self.finish()
        return self.stay.cause_of(error)

    def failure(self, error: BaseException) -> Failure:
        """Return what is told of an error.

        Raises:
            ContextLost: as `cause_of`.
        """
        return Failure(record_of(self.cause_of(error), ModelError, self.held.name))

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """Return what calls are made in: with gradients where the model wants them."""
        return torch.enable_grad() if self.held.grad else torch.inference_mode()


def _around(
    function: Callable[..., Any], method: str, held: HeldModel, transfers: Transfers
) -> Callable[..., Any]:
    """Return what calls the model on the GPU with values of the host."""
    return transfers.around(held.graphs.around(method, function) if held.graphs is not None else function)
