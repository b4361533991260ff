"""The command line: ``scripts/fuzz``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from .corpus import FOUND, keep, regressions
from .targets import TARGETS

#: Beyond these an input has got too much time or memory, which is as wrong as any other end.
_INPUT_S: Final = 10
_RSS_MB: Final = 2048
_INPUT_BYTES: Final = 1 << 17
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units: (\d+)")


class Outcome(NamedTuple):
    """What came of a target: how many inputs were tried, in what time, and whether all got what they ought to."""

    executed: int
    seconds: float
    is_right: bool


def fuzz(
    targets: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(TARGETS)}; default: all")] = None,
    seconds: Annotated[int, typer.Option(help="for each target")] = 60,
) -> None:
    """Make up bytes for whatever reads bytes from outside, and see that each gets a value or a clear error.

    Inputs that do not are cut down and kept in tests/fuzzing/corpus, where a test tries them from then on.
    """
    names = targets or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            raise typer.BadParameter(f"no target {name!r}; there are: {', '.join(TARGETS)}")
    outcomes = {name: search(name, seconds) for name in names}
    for name, one in outcomes.items():
        rate = one.executed / one.seconds
        print(f"{name:12}{one.executed:12,} inputs {rate:10,.0f} /s  {'' if one.is_right else 'GOT ONE WRONG'}")
    print(f"{'together':12}{sum(one.executed for one in outcomes.values()):12,} inputs\n", flush=True)
    subprocess.run([sys.executable, "-m", "fuzzing.reach", *names], check=True)
    raise typer.Exit(0 if all(one.is_right for one in outcomes.values()) else 1)


def search(name: str, seconds: int) -> Outcome:
    """Search for inputs that a target gets wrong; keep the first."""
    target, found = TARGETS[name], FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*target.seeds(), *regressions(name)]):
        (found / f"seed-{number}").write_bytes(data)
    with tempfile.TemporaryDirectory(prefix="onecopy-fuzzing-") as folder:
        wrong = Path(folder, "wrong")
        wrong.mkdir()
        options = [
            f"-max_total_time={seconds}", f"-timeout={_INPUT_S}", f"-rss_limit_mb={_RSS_MB}",
            f"-max_len={_INPUT_BYTES}", f"-artifact_prefix={wrong}{os.sep}", "-print_final_stats=1",
        ]  # fmt: skip
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fuzzing.engine", name, *options, str(found)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"TMPDIR": folder},  # libFuzzer ends its process before that can tidy up
        )
        seconds_taken = time.monotonic() - begun
        if done.returncode:
            print(f"{name}: {_told(done.stdout + done.stderr)}", file=sys.stderr)
            for path in sorted(wrong.iterdir()):
                if keep(name, target, path.read_bytes()) is None:
                    print(f"{name}: {path.name} is right when it is tried again", file=sys.stderr)
    executed = _EXECUTED.search(done.stderr)
    return Outcome(int(executed[1]) if executed else 0, seconds_taken, done.returncode == 0)


def _told(output: str) -> str:
    """Return the part of what libFuzzer prints that tells what went wrong."""
    start = output.find("=== Uncaught Python exception")
    return output[start:][:4000] if start >= 0 else output[-4000:]


if __name__ == "__main__":
    typer.run(fuzz)
