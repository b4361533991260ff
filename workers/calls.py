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
from .slot import Stay


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
    """

    def __init__(
        self, held: HeldModel, method: str, function: Callable[..., Any], stay: Stay, interrupts: Interrupts
    ) -> None:
        self.held = held
        self.method = method
        self.function = function
        self.stay = stay
        self._interrupts = interrupts
        self._size = 0

    def as_one(self, args: Sequence[Any], kwargs: Mapping[str, Any], size: int = 1) -> Any:
        """Call the model with what so many calls have given; it raises what the model raises.

        Raises:
            Interrupted: the attempt is given up.
        """
        self._interrupts.check()
        result = self.function(*args, **kwargs)
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
        function, check = self.function, self._interrupts.check
        results: list[Any] = []
        for value in values:
            check()
            try:
                results.append(function(value))
            except Interrupted:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever the model raises is told to the caller
                results.append(self.failure(error))
        self.stay.sign(self.method, values[-1:], {})
        return results

    def failure(self, error: BaseException) -> Failure:
        """Return what is told of an error."""
        return Failure(record_of(self.stay.cause_of(error), ModelError, self.held.name))

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """Return what calls are made in: with gradients where the model wants them."""
        return torch.enable_grad() if self.held.grad else torch.inference_mode()
