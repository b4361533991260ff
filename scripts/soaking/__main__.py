"""The command line: ``scripts/soak``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from onecopy.protocol.errors import PoolError

from . import report
from .storm import Storm


def soak(
    minutes: Annotated[float, typer.Option(min=0.01, help="how long the storm lasts, at least")] = 1.0,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 1,
    kills: Annotated[int, typer.Option(min=0, help="it lasts until so many processes were killed, too")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="on each device")] = 4,
    devices: Annotated[int, typer.Option(min=1, help="into which the machine is divided")] = 1,
    output: Annotated[str, typer.Option("--json", metavar="FILE", help="where all figures go, too")] = "",
) -> None:
    """Attack a pool under load, and see whether it keeps its promises.

    Every request that it accepts is answered once and rightly, or fails once for a reason that the attack gives;
    after the end nothing is left, and at rest the pool takes what it took before. Exit code 1 if not so.
    Ctrl-C ends the storm early. Threads and processes take turns as they like: the same seed does the same, but
    not at the same moments.
    """
    command = f"scripts/soak --minutes {minutes:g} --seed {seed} --workers {workers} --devices {devices}"
    command += f" --kills {kills}" if kills else ""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        storm = Storm(Path(folder), seed, workers, devices)
        started_at = time.monotonic()

        def tell() -> None:
            line = report.live_line(storm, time.monotonic() - started_at)
            end = "\r" if sys.stdout.isatty() else "\n"
            print(line, end=end, flush=True)

        is_whole = False
        try:
            storm.warm_up()
            storm.rest("before")
            storm.rage(60 * minutes, kills, tell)
            storm.rest("after")
            storm.compare()
            is_whole = True
        except KeyboardInterrupt:
            print("interrupted: this is what there was so far", flush=True)
        except (PoolError, TimeoutError) as error:
            storm.entries.complain(f"the run could not go on: {error!r}")
        finally:
            storm.finish()
        if is_whole:
            storm.crash()
        storm.close_books()
        found = report.results(storm, command)
    report.show(found)
    if output:
        report.write(found, output)
    raise typer.Exit(1 if storm.books.wrong else 0)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(soak)
    app(prog_name="scripts/soak")
