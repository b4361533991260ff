"""What came of a fact: claims that hold, differ or could not be tried; figures; and a verdict over all of them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Verdict(StrEnum):
    """How an experiment ended."""

    HOLDS = "holds"
    DIFFERS = "differs"
    UNTRIED = "could not be tried"


@dataclass(frozen=True)
class Claim:
    """One sentence of a fact, and what was seen instead or beside it."""

    text: str
    verdict: Verdict
    seen: str = ""


@dataclass
class Result:
    """What is known of one fact."""

    fact: str
    statement: str
    seconds: float = 0.0
    #: Why the experiment ended before its end; empty if it did not.
    broken: str = ""
    claims: list[Claim] = field(default_factory=list)
    #: Name with unit -> value.
    figures: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst of the claims; what broke off has shown nothing, unless a claim already differed."""
        verdicts = {claim.verdict for claim in self.claims}
        if Verdict.DIFFERS in verdicts:
            return Verdict.DIFFERS
        if self.broken or (self.claims and Verdict.HOLDS not in verdicts):
            return Verdict.UNTRIED
        return Verdict.HOLDS if self.claims or self.figures else Verdict.UNTRIED

    @property
    def notes(self) -> list[str]:
        """What a reader must know beyond the verdict: what differs, what was not tried and why."""
        said = [
            f"{claim.verdict}: {claim.text}" + (f" ({claim.seen})" if claim.seen else "")
            for claim in self.claims
            if claim.verdict is not Verdict.HOLDS
        ]
        return said + ([self.broken] if self.broken else [])

    def take(self, record: dict[str, Any]) -> None:
        """Add what an experiment said: a claim, a figure, or why it broke off."""
        if "claim" in record:
            self.claims.append(Claim(record["claim"], Verdict(record["verdict"]), without_folders(record["seen"])))
        elif "figure" in record:
            self.figures[record["figure"]] = record["value"]
        elif "broken" in record:
            self.broken = without_folders(record["broken"])


def without_folders(text: str) -> str:
    """Return a text in which paths are names: a report tells nothing of where things lie on one machine."""
    return re.sub(r"(?:/[\w.+-]+)+/([\w.+-]+)", r"\1", text)


@dataclass
class Report:
    """All results, with the conditions under which they were found, in one file."""

    path: Path
    conditions: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Return what an earlier run found; nothing if there is no such file.

        Raises:
            ValueError: The file is no report.
        """
        report = cls(path)
        if not path.exists():
            return report
        try:
            values = json.loads(path.read_text())
            report.conditions = values["conditions"]
            for name, one in values["facts"].items():
                claims = [
                    Claim(claim["text"], Verdict(claim["verdict"]), claim["seen"]) for claim in one["claims"]
                ]
                report.results[name] = Result(
                    name, one["statement"], one["seconds"], one["broken"], claims, one["figures"]
                )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no report of scripts/gpu-check: {error!r}") from error
        return report

    def save(self) -> None:
        """Write it whole or not at all: the machine may be taken away at any moment."""
        facts = {
            name: {"verdict": one.verdict, **{key: value for key, value in asdict(one).items() if key != "fact"}}
            for name, one in self.results.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps({"conditions": self.conditions, "facts": facts}, indent=1) + "\n")
        os.replace(beside, self.path)
