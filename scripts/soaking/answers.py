"""The right answers, recomputed from the requests: whose they are, what they were made of, and which version."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from . import pattern
from .books import Asked

_NEVER: Final = float("inf")
#: An answer is noted a little after it was made, and a request a little before it is sent, in seconds.
_SLACK_S: Final = 0.05


@dataclass
class Version:
    """A version of a model: when it was first asked for, and when the load had returned; infinity: not yet.

    Attributes:
        has_failed: whether the load was refused for good; an answer may never be of such a one.
    """

    seed: int
    begun_at: float
    done_at: float = _NEVER
    has_failed: bool = False


class Versions:
    """What versions of each model there were, and when."""

    def __init__(self) -> None:
        self._by_model: defaultdict[str, list[Version]] = defaultdict(list)

    def begin(self, model: str, seed: int, at: float) -> Version:
        """Note that a version is about to be loaded."""
        version = Version(seed, at)
        self._by_model[model].append(version)
        return version

    def complaint(self, model: str, seed: int, asked_at: float, answered_at: float) -> str:
        """Return why an answer cannot be of this version; nothing if it can."""
        known = self._by_model[model]
        version = next((one for one in reversed(known) if one.seed == seed), None)
        if version is None:
            return f"there was never a version {seed}"
        if version.has_failed:
            return f"version {seed} could not be loaded"
        if version.begun_at > answered_at:
            return f"version {seed} came {version.begun_at - answered_at:.3f} s later"
        newer = [one for one in known if one.begun_at > version.begun_at and not one.has_failed]
        if any(one.done_at + _SLACK_S < asked_at for one in newer):
            return f"version {seed} had been replaced before it was asked"
        return ""


class RightAnswers:
    """Tells right answers from wrong ones.

    Args:
        versions: which there were.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._sessions: dict[str, tuple[int, int]] = {}

    def complaint(self, asked: Asked, answer: Any, at: float) -> str:
        """Return what is wrong with an answer; nothing if it is right.

        An answer is ``[tag, version, ...]``, and for rows a list of ``[tag, weight, version]``; of large arrays
        their digest.
        """
        kind, *rest = asked.what
        if kind == "rows":
            return self._rows(asked, np.array(answer), *rest, at)
        if not isinstance(answer, list) or len(answer) < 3:
            return f"{answer!r:.100} is no answer"
        tag, seed, *made = answer
        if tag != rest[0]:
            return f"it got the answer to {tag!r}"
        if wrong := self._versions.complaint(asked.model, seed, asked.at, at):
            return wrong
        right = self._made_of(kind, seed, rest)
        if made[: len(right)] != right:
            return f"it got {made!r:.100} of version {seed}, and {right!r:.100} is right"
        return self._session(rest[1], made[1], made[2]) if kind == "count" else ""

    def _made_of(self, kind: str, seed: int, rest: list[Any]) -> list[Any]:
        if kind == "array":
            return [pattern.digest(pattern.transformed(seed, pattern.array_of(rest[0], rest[1])))]
        if kind == "items":
            return [list(map(int, pattern.weights(seed, 0, rest[1])))]
        start, count = rest[1:] if kind == "small" else (0, 64)
        return [pattern.figure(seed, start, count)]

    def _rows(self, asked: Asked, answer: Any, first: int, places: list[int], at: float) -> str:
        if answer.shape != (len(places), 3):
            return f"it got rows of shape {answer.shape}"
        tags, made, seeds = answer.T
        if tags.tolist() != list(range(first, first + len(places))):
            return f"it got the rows of {tags.tolist()[:3]}"
        for seed in set(seeds.tolist()):
            if wrong := self._versions.complaint(asked.model, seed, asked.at, at):
                return wrong
        right = [int(pattern.weights(int(seed), place, 1)[0]) for seed, place in zip(seeds, places, strict=True)]
        return "" if made.tolist() == right else f"it got {made.tolist()[:3]}, and {right[:3]} is right"

    def _session(self, session: str, pid: int, calls: int) -> str:
        """A session stays with a worker while that lives, and each of its calls runs there once, in order."""
        before = self._sessions.get(session)
        self._sessions[session] = (pid, calls)
        if before is not None and before[0] == pid and calls != before[1] + 1:
            return f"call {calls} of session {session} in {pid} came after {before[1]}"
        return ""
