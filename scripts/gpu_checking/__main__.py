"""The command line: ``scripts/gpu-check``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from . import catalogue, conditions, report
from .fact import Fact
from .pools import catalogue as pools
from .processes import adopt_orphans
from .results import Report, Result, Verdict
from .running import run

#: Time on such a machine is dear: what has not begun by then is not tried.
TOTAL_S = 540.0
#: Less than this is not worth starting a fact.
_LEAST_S = 5.0
DEFAULT_FOLDER = "scripts/benchmarks/results/gpu"
NOTHING_TO_CHECK = 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description="Tries the facts about CUDA, torch and the kernel on which GPU pools rest, one by one, within "
        "9 minutes; writes JSON and a table after each. Exit code: 0, 1 if a fact differs, 2 if nothing can be "
        "checked here.",
    )
    parser.add_argument("--only", metavar="T3,T7", type=names, default=(), help="try these facts alone")
    parser.add_argument("--skip", metavar="T15", type=names, default=(), help="try all but these")
    parser.add_argument(
        "--resume", metavar="JSON", nargs="?", const="",
        help="keep what an earlier run found, and try the rest and what --only names; default: the file in the "
        "output folder",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", default=os.environ.get("OUT") or DEFAULT_FOLDER,
        help=f"where the report goes; default: $OUT, else {DEFAULT_FOLDER}",
    )  # fmt: skip
    parser.add_argument(
        "--pools", action="store_true",
        help="try instead what whole pools are held to; it takes an installed onecopy, pytest for its tests, and "
        "another 9 minutes",
    )  # fmt: skip
    parser.add_argument("--wheels", metavar="FOLDER", help="install these wheels first, for this run alone")
    options = parser.parse_args(arguments)
    known = [fact.name for fact in facts_of(options)]
    if unknown := sorted({*options.only, *options.skip} - {*known}):
        parser.error(f"there are no facts {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def facts_of(options: argparse.Namespace) -> Sequence[Fact]:
    """Return the facts that the command line speaks of."""
    return pools.FACTS if options.pools else catalogue.FACTS


def names(text: str) -> tuple[str, ...]:
    """Return the names in a list like ``T3,t7``."""
    return tuple(name.strip().upper() for name in text.split(",") if name.strip())


def main() -> int:
    """Check what is asked for."""
    began_at = time.monotonic()
    options = parse()
    output = Path(options.out, "gpu-pools.json" if options.pools else "gpu-check.json")
    earlier = Report(output)
    if options.resume is not None:
        try:
            earlier = Report.read(Path(options.resume) if options.resume else output)
        except ValueError as error:
            print(f"scripts/gpu-check: {error}", file=sys.stderr)
            return NOTHING_TO_CHECK
        for name in options.only:  # what is named is tried again
            earlier.results.pop(name, None)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    adopt_orphans()
    with ExitStack() as stack:
        if options.wheels:
            complaint = install(
                options.wheels, stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-check-"))
            )
            if complaint:
                print(f"scripts/gpu-check: {complaint}", file=sys.stderr)
                return NOTHING_TO_CHECK
        found, missing = conditions.look()
        if missing:
            print(f"scripts/gpu-check: nothing can be checked here: {'; '.join(missing)}.", file=sys.stderr)
            return NOTHING_TO_CHECK
        print(", ".join(f"{name}: {value}" for name, value in found.items()), flush=True)
        module = pools if options.pools else catalogue
        named = facts_of(options)
        facts = [one for one in named if one.name not in options.skip and one.name in (options.only or one.name)]
        return check(facts, module.__name__, Report(output, found, earlier.results), began_at + TOTAL_S)


def install(wheels: str, folder: str) -> str:
    """Install wheels into a folder that only this run looks into, without a network; return what went wrong."""
    files = sorted(str(path) for path in Path(wheels).glob("*.whl"))
    if not files:
        return f"there are no wheels in {wheels}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
               "--no-cache-dir", "--target", folder, *files]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        return f"pip could not install the wheels in {wheels}"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    return ""


def check(facts: Sequence[Fact], catalogue: str, kept: Report, deadline: float) -> int:
    """Try facts of a catalogue, named by its module, until a deadline; write the report after each."""
    for fact in facts:
        earlier = kept.results.get(fact.name)
        if earlier is not None and earlier.verdict is not Verdict.UNTRIED:
            print(f"{fact.name:4}{earlier.verdict}, known from an earlier run", flush=True)
            continue
        left_s = deadline - time.monotonic()
        if left_s < _LEAST_S:
            result = Result(fact.name, fact.statement, broken="no time was left for it")
        else:
            result = run(fact, catalogue, min(fact.limit_s, left_s))
        kept.results[fact.name] = result
        kept.save()
        kept.path.with_suffix(".md").write_text(report.table(kept))
        print(report.line(result), flush=True)
    return int(any(one.verdict is Verdict.DIFFERS for one in kept.results.values()))


if __name__ == "__main__":
    sys.exit(main())
