"""One answer for what several devices were asked to do."""

from __future__ import annotations

from collections.abc import Iterable

from ...protocol.messages import Message, Refused
from .events import CallerKey
from .instructions import Instruction, ToCaller


class Joint:
    """Stands for somebody at the unix socket who asked several devices at once.

    Attributes:
        caller: who that is.
        missing: how many have not answered yet.
        answer: what they have said so far: a refusal, if there was one.
    """

    def __init__(self, caller: CallerKey, missing: int) -> None:
        self.caller = caller
        self.missing = missing
        self.answer: Message | None = None


class Joints:
    """Those of whom not all answers are there yet."""

    def __init__(self) -> None:
        self._open: set[Joint] = set()

    def __bool__(self) -> bool:
        return bool(self._open)

    def open(self, caller: CallerKey, devices: int) -> Joint:
        """Let so many devices answer somebody with one voice."""
        joint = Joint(caller, devices)
        self._open.add(joint)
        return joint

    def joined(self, out: Iterable[Instruction]) -> list[Instruction]:
        """Return instructions with one answer where each device has given one, once the last of them has."""
        left: list[Instruction] = []
        for one in out:
            if not (isinstance(one, ToCaller) and isinstance(one.caller, Joint)):
                left.append(one)
                continue
            joint = one.caller
            joint.missing -= 1
            answer = joint.answer = joint.answer if isinstance(joint.answer, Refused) else one.message
            if not joint.missing:
                self._open.discard(joint)
                left.append(ToCaller(joint.caller, answer))
        return left
