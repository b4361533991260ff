"""Runs a record of the flight recorder again, and compares what the core wants with what it wanted then.

The core decides by its events alone, so that the same ones bring the same instructions, in any process and on any
machine: where they do not, the core was changed, or has learned something by another way. A record of a pool that
ran for long has its start and its end only. The start is run again; the end can be read, and no more. Which part
that is, is told.

Exit codes: 0 the same throughout, 1 not the same, 2 no record.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from onecopy.pool.core.devices import Devices
from onecopy.pool.core.seen import Seen
from onecopy.pool.settings import Settings
from onecopy.pool.supervisor.cores import make_cores
from onecopy.pool.supervisor.history import Known
from onecopy.pool.supervisor.records import Encoder, Entry, Header, decode, read_record
from onecopy.protocol.errors import PoolError

#: So many events are shown of the end.
_SHOWN = 20


class Outcome(NamedTuple):
    """What became of one event that was run again.

    Attributes:
        instructions: what the core wants now; None if it raised.
        raised: what it raised.
    """

    entry: Entry
    instructions: list[Any] | None
    raised: str

    @property
    def is_same(self) -> bool:
        """Whether it is as it was."""
        return self.instructions == self.entry.instructions


def fresh_core(header: Header) -> Devices:
    """Return the core that a record began with."""
    known = Known(header.needs, {key: Seen(**one) for key, one in header.loads.items()})
    settings = Settings.from_wire(header.settings)
    return Devices(make_cores(settings, header.totals_bytes, header.peers, known, header.spare_cores))


def kept_whole(entries: list[Entry]) -> list[Entry]:
    """Return the start of a record: the events up to the first that was not kept whole, or before a gap."""
    whole: list[Entry] = []
    for number, entry in enumerate(entries, 1):
        if entry.number != number or entry.wanted is not None:
            break
        whole.append(entry)
    return whole


def run_again(header: Header, start: list[Entry]) -> Iterator[Outcome]:
    """Yield what becomes of each event of the start of a record."""
    devices, encoder = fresh_core(header), Encoder()
    for entry in start:
        try:
            out = devices.handle(decode(entry.event), entry.at_s)
            yield Outcome(entry, list(map(encoder.encode, out)), "")
        except Exception as error:  # noqa: BLE001 - it may have been recorded because of that
            yield Outcome(entry, None, f"{type(error).__name__}: {error}")


def main() -> int:
    """Run a record again; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/replay", description=__doc__)
    parser.add_argument("file", help="what `onecopy record`, SIGUSR2 or an error of the core has written")
    parser.add_argument("--all", action="store_true", help="show every event, not only the last ones")
    options = parser.parse_args()
    try:
        header, entries = read_record(options.file)
    except (OSError, PoolError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    print(f"onecopy {header.version}, {header.settings['workers']} workers; written because: {header.why}")
    start = kept_whole(entries)
    different = next((one for one in run_again(header, start) if not one.is_same), None)
    again = start if different is None else start[: different.entry.number]
    rest = entries[len(again) :]
    shown = entries if options.all else again[-_SHOWN:] + rest[-_SHOWN:]
    last = 0
    for entry in shown:
        if last and entry.number > last + 1:
            print(f"   … {entry.number - last - 1:,} events")
        last = entry.number
        print(_line(entry))
    print(_part(len(again), rest))
    if different is not None:
        _show_difference(different)
        return 1
    print("the same throughout")
    return 0


def _part(again: int, rest: list[Entry]) -> str:
    """Return in a sentence which part of what happened was run again, and what of the rest is there."""
    if not rest:
        return f"all {again:,} events were run again"
    first, last = rest[0].number, rest[-1].number
    gap = f"{again + 1:,} to {first - 1:,} were not kept, and " if first > again + 1 else ""
    return f"the first {again:,} of {last:,} events were run again; {gap}{first:,} to {last:,} were only read"


def _line(entry: Entry) -> str:
    if entry.instructions is not None:
        wanted = ", ".join(map(_kind, entry.instructions))
    elif entry.raised:
        wanted = "raised"
    else:
        wanted = ", ".join(entry.wanted) if isinstance(entry.wanted, list) else f"{entry.wanted} instructions"
    return f"{entry.number:>8,} {entry.at_s:14.6f} {_kind(entry.event)} -> {wanted}"


def _kind(value: dict[str, Any]) -> str:
    """Return what an event or instruction is and, where it carries a message, what that is."""
    name = value["is"].partition(".")[2]
    message = value.get("message")
    return f"{name}({message['is'].partition('.')[2]})" if message else name


def _show_difference(outcome: Outcome) -> None:
    entry = outcome.entry
    print(
        f"\nevent {entry.number:,} is the first that does not bring the same:\n{json.dumps(entry.event, indent=1)}"
    )
    for title, wanted, raised in (
        ("then", entry.instructions, entry.raised),
        ("now", outcome.instructions, outcome.raised),
    ):
        print(f"--- {title} ---")
        for one in wanted if wanted is not None else [raised]:
            print(one if isinstance(one, str) else json.dumps(one))


if __name__ == "__main__":
    sys.exit(main())
