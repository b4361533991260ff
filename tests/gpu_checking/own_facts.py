"""Facts that need no GPU: each ends in one of the ways in which an experiment can end."""

import os
import signal
import subprocess
import sys
import time

from gpu_checking.check import Check, Untried
from gpu_checking.children import Child, Link
from gpu_checking.fact import Fact


def holds(check: Check) -> None:
    """Water is wet."""
    print("what a library prints must not stand among the records")
    check.claim("it is wet", True, "42 drops")
    check.figure("drops", 42)
    check.figure("depth, m", 1.23456789)


def differs(check: Check) -> None:
    """Ice is warm."""
    check.claim("it is solid", True)
    check.claim("it is warm", False, "-3 degrees | by /usr/share/thermometer.txt")


def raises(check: Check) -> None:
    """Steam is visible."""
    check.claim("it rises", True)
    raise RuntimeError("blinded")


def crashes(check: Check) -> None:
    """Glass bends."""
    check.figure("bends by, mm", 2)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(check: Check) -> None:
    """Time passes."""
    check.claim("so far", True)
    subprocess.Popen(["sleep", "1000"])
    # A daemon is in no group of ours and outlives its parent.
    subprocess.Popen(["sleep", "1001"], start_new_session=True)
    time.sleep(1000)


def is_untried(check: Check) -> None:
    """Nobody is here."""
    raise Untried("there is no door")


def has_parts(check: Check) -> None:
    """A whole has parts."""
    with check.part("a part that raises differs"):
        raise ValueError("broken")
    with check.part("a mistake of ours is none of the fact's"):
        os.this_does_not_exist()
    assert check.works("what raises nothing works", int, "7") == 7
    assert check.works("what raises does not", int, "seven") is None


def speaks(link: Link, greeting: str) -> None:
    """Say what a child may say."""
    link.send(holds=True, seen=greeting, figures={"words": 1})
    link.send(untried="lost its voice")
    raise ConnectionError("hung up")


def has_children(check: Check) -> None:
    """Children tell."""
    with Child(speaks, "hello") as child:
        check.told("it greets", child)
        check.told("it sings", child)
        check.told("it stays", child)


FACTS = (
    Fact("A1", 20, holds),
    Fact("A2", 20, differs),
    Fact("A3", 20, raises),
    Fact("A4", 20, crashes),
    Fact("A5", 1, hangs),
    Fact("A6", 20, is_untried),
    Fact("A7", 20, has_parts),
    Fact("A8", 20, has_children),
)


def main() -> int:
    """Try those that are named, as the command does."""
    from pathlib import Path

    from gpu_checking.__main__ import check
    from gpu_checking.processes import adopt_orphans
    from gpu_checking.results import Report

    path, seconds, *names = sys.argv[1:]
    adopt_orphans()
    report = Report.read(Path(path))
    report.conditions = {"machine": "this one"}
    facts = [fact for fact in FACTS if fact.name in names]
    return check(facts, "own_facts", report, time.monotonic() + float(seconds))


if __name__ == "__main__":
    sys.exit(main())
