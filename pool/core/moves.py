"""Models on their way from one device to another.

::

    asked ──► coming: the other device loads it, the first answers ──► leaving: the other answers, the first
                 └── it cannot be loaded: the other forgets it            ends what it has, and forgets it

Both have it meanwhile, each with memory of its own, so nothing waits for the move. Whoever asked is answered when
the first device has let go of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...protocol.errors import InvalidRequest, PoolError
from ...protocol.messages import Done, Message, Refused
from .core import Core
from .events import CallerKey, ModelArrived, ModelMoved, ModelRemoved
from .homes import Homes
from .instructions import Instruction, ToCaller
from .weights import Model

#: A model in these states stays until it is in another.
_UNDER_WAY = ("building", "adopting")


class Move:
    """One model's move.

    Attributes:
        caller: who wants it.
        name: the model's.
        origin, target: from where to where.
        is_coming: whether the target does not have it yet.
    """

    def __init__(self, caller: CallerKey, name: str, origin: Core, target: Core) -> None:
        self.caller = caller
        self.name = name
        self.origin = origin
        self.target = target
        self.is_coming = True


class Errand:
    """Asks a device for its part: to ``load`` the model, to ``leave`` it, or to ``forget`` it if that failed."""

    def __init__(self, move: Move, what: str) -> None:
        self.move = move
        self.what = what

    def __repr__(self) -> str:
        move = self.move
        return f"<to {self.what} {move.name}, from {move.origin.name} to {move.target.name}>"


class Moves:
    """Moves models, and tells which of the devices that have one answers.

    Args:
        cores: the devices.
        homes: which of them has what.
    """

    def __init__(self, cores: Sequence[Core], homes: Homes) -> None:
        self._cores = cores
        self._homes = homes
        self._moves: dict[str, Move] = {}

    def __bool__(self) -> bool:
        return bool(self._moves)

    def begin(self, event: ModelMoved, now: float) -> list[Instruction]:
        """Take in that somebody wants a model moved."""
        try:
            target = self._homes.named(event.target)
            homes = self.having(event.name)
            model = (homes or self._cores)[0].library.find(event.name)
            if homes == [target]:
                return [ToCaller(event.caller, Done("it is there"))]
            self._check(model, homes)
        except PoolError as error:
            return [ToCaller(event.caller, Refused(error.to_record()))]
        move = self._moves[event.name] = Move(event.caller, event.name, homes[0], target)
        load = model.current.load
        load = load._replace(options={**load.options, "devices": [target.name]})
        return target.handle(ModelArrived(load, [Errand(move, "load")], [], [], {}, {}, model.is_pinned), now)

    def check_stays(self, name: str) -> None:
        """Refuse what cannot be done with a model that is being moved.

        Raises:
            InvalidRequest: this one is.
        """
        if move := self._moves.get(name):
            raise InvalidRequest(f"{name} is being moved to {move.target.name}; try again when it is there")

    def having(self, name: str) -> list[Core]:
        """Return the devices that have a model, but for one that only ends what it has of it."""
        homes = list(self._homes.of(name))
        if (move := self._moves.get(name)) and not move.is_coming and len(homes) > 1:
            homes.remove(move.origin)
        return homes

    def answering(self, name: str) -> list[Core]:
        """Return those of them that requests may go to."""
        homes = self.having(name)
        if (move := self._moves.get(name)) and move.is_coming and len(homes) > 1:
            homes.remove(move.target)
        return homes

    def settle(self, out: list[Instruction], now: float) -> tuple[list[Instruction], list[Instruction]]:
        """Go on with the moves that devices have something to say of.

        Returns:
            The instructions for others; and what comes of those, which is to be settled too.
        """
        left: list[Instruction] = []
        more: list[Instruction] = []
        for one in out:
            if isinstance(one, ToCaller) and isinstance(one.caller, Errand):
                more += self._done(one.caller, one.message, now)
            else:
                left.append(one)
        return left, more

    def _done(self, errand: Errand, answer: Message, now: float) -> list[Instruction]:
        """Take in how a device has answered."""
        move = errand.move
        if errand.what == "forget":
            return []
        if errand.what == "load" and not isinstance(answer, Refused):
            move.is_coming = False
            return move.origin.handle(ModelRemoved(Errand(move, "leave"), move.name), now)
        del self._moves[move.name]
        if errand.what == "leave":
            return [ToCaller(move.caller, Done(f"moved to {move.target.name}"))]
        out: list[Instruction] = [ToCaller(move.caller, answer)]
        if move.name in move.target.library.models:
            out += move.target.handle(ModelRemoved(Errand(move, "forget"), move.name), now)
        return out

    def _check(self, model: Model, homes: Sequence[Core]) -> None:
        """Refuse to move what cannot be moved.

        Raises:
            InvalidRequest: this model cannot be, or not now.
        """
        name, version = model.name, model.current
        self.check_stays(name)
        if len(homes) > 1:
            raise InvalidRequest(f"{name} is on {', '.join(core.name for core in homes)}; only one can be moved")
        if version.is_divided:
            raise InvalidRequest(f"{name} is divided among devices, and stays where its parts are")
        if version.load.source == "frozen":
            raise InvalidRequest(
                f"{name} was handed over as an object, and no loader could build it on another device; unload it, "
                "and load it there"
            )
        if model.successor is not None or version.life.state in _UNDER_WAY:
            raise InvalidRequest(f"{name} is being loaded; try again when it is ready")
