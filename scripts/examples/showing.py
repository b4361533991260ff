"""What the examples have in common: a table of memory for people, JSON for tests, processes to compare with."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from multiprocessing import get_context
from typing import Any, NamedTuple

from onecopy.pool.memory_views import Memory
from onecopy.pool.supervisor.sampler import read_memory
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One line of the table: what a pool's weights take, and what they and all processes take together.

    Outside of a pool the two cannot be told apart: ``weights_bytes`` is None.
    """

    what: str
    weights_bytes: int | None
    total_bytes: int


def row_of(what: str, memory: Memory) -> Row:
    """Return what a pool takes now."""
    return Row(what, memory.weights_bytes, memory.total_bytes)


def arguments(description: str | None, *, has_kind: bool = False) -> argparse.Namespace:
    """Return what was said on the command line: whether JSON is wanted, and for some on what kind of devices."""
    summary = (description or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON, not as a table")
    if has_kind:
        parser.add_argument("--kind", choices=("cpu", "cuda"), default="cpu", help="what devices there are two of")
    return parser.parse_args()


def show(title: str, rows: list[Row], facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was measured: a table of memory, then each fact on a line of its own."""
    if as_json:
        print(json.dumps({"rows": {row.what: row._asdict() for row in rows}, "facts": dict(facts)}))
        return
    table = Table(title=title, title_justify="left")
    table.add_column(no_wrap=True)
    for heading in ("weights, MB", "with all processes, MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        weights = "-" if row.weights_bytes is None else f"{row.weights_bytes / 1e6:,.1f}"
        table.add_row(row.what, weights, f"{row.total_bytes / 1e6:,.1f}")
    console = Console()
    console.print(table)
    for name, value in facts.items():
        if name.endswith("_bytes"):
            name, value = f"{name.removesuffix('_bytes')}, MB", f"{value / 1e6:,.1f}"
        console.print(f"{name.replace('_', ' ')}: {value}", markup=False, highlight=False)


@contextlib.contextmanager
def processes(count: int, run: Callable[[], Any]) -> Generator[tuple[list[Any], int]]:
    """Call a function in that many processes of their own, at the same time; they stay until the block ends.

    Args:
        count: how many processes.
        run: what each calls; it returns what stays in its memory, and what is to be sent.

    Yields:
        What each sent; and what all of them take together once the last has.
    """
    context = get_context("spawn")
    pairs = [context.Pipe() for _ in range(count)]
    started = [context.Process(target=_call, args=(run, theirs)) for _, theirs in pairs]
    for process, (_, theirs) in zip(started, pairs, strict=True):
        process.start()
        theirs.close()
    try:
        results = [ours.recv() for ours, _ in pairs]
        measured = [read_memory(process.pid or 0) for process in started]
        yield results, sum(one.pss for one in measured if one is not None)
    finally:
        for process, (ours, _) in zip(started, pairs, strict=True):
            ours.close()
            process.join()


def _call(run: Callable[[], Any], pipe: Any) -> None:
    kept, result = run()
    pipe.send(result)
    with contextlib.suppress(EOFError):
        pipe.recv()
    del kept


def unshared_bytes(pid: int) -> int:
    """Return what memory a process has to itself, neither of a file nor of a region nor shared with a parent."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        kilobytes = {words[0]: int(words[1]) for words in map(str.split, file.readlines()[1:])}
    # Where one process alone has a region mapped, its pages count to that process's private ones.
    return 1024 * (kilobytes["Private_Dirty:"] - kilobytes["Pss_Shmem:"])


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it does not come true.
    """
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"waited {timeout_s} s in vain")
        time.sleep(0.01)
