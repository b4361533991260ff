"""What an experiment says as it goes: each claim and figure is told at once, so that a crash loses none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from .children import ANSWER_S, Child, ChildFailed
from .results import Verdict

#: Errors of the experiment itself or of its surroundings: they say nothing about the fact.
_MISTAKES = ("AttributeError", "FileNotFoundError", "ImportError", "KeyError", "ModuleNotFoundError", "NameError",
             "TypeError", "Untried")  # fmt: skip


class Untried(Exception):
    """Something that an experiment needs is not there; the message says what."""


class Check:
    """Where an experiment says what it saw."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def claim(self, text: str, holds: object, seen: object = "") -> bool:
        """Say whether a sentence holds; return that."""
        self._claim(text, Verdict.HOLDS if holds else Verdict.DIFFERS, seen)
        return bool(holds)

    def untried(self, text: str, reason: object) -> None:
        """Say that a sentence could not be tried, and why."""
        self._claim(text, Verdict.UNTRIED, reason)

    def figure(self, name: str, value: float | str) -> None:
        """Tell a figure; its name ends with its unit."""
        self._say(figure=name, value=round(value, 4) if isinstance(value, float) else value)

    def works(self, text: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, and claim that this raises nothing; return what it returns, or None."""
        with self.part(text):
            value = function(*arguments)
            self.claim(text, True)
            return value

    @contextmanager
    def part(self, text: str) -> Iterator[None]:
        """Go on after what this part raises: its sentence differs, or was not tried if the mistake is ours."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - what else the experiment can show is still worth showing
            kind = error.kind if isinstance(error, ChildFailed) else type(error).__name__
            verdict = Verdict.UNTRIED if kind in _MISTAKES else Verdict.DIFFERS
            self._claim(text, verdict, error if isinstance(error, (ChildFailed, Untried)) else f"{kind}: {error}")

    def told(self, text: str, child: Child, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Take a child's word for a sentence: `holds`, and perhaps `seen` and `figures`; or `untried` and why."""
        with self.part(text):
            values = child.receive(timeout_s).values
            if "untried" in values:
                raise Untried(values["untried"])
            self.claim(text, values["holds"], values.get("seen", ""))
            for name, value in values.get("figures", {}).items():
                self.figure(name, value)
            return values
        return {}

    def _claim(self, text: str, verdict: Verdict, seen: object) -> None:
        self._say(claim=text, verdict=verdict, seen=" ".join(str(seen).split())[:600])

    def _say(self, **record: Any) -> None:
        print(json.dumps(record), file=self._output, flush=True)
