"""The flight recorder: what the core was told and what it wanted, kept in memory, and written when asked for.

The first events are kept whole, with what came of them, because whatever happens can be run again only from the
start. After those, the last ones are kept, of which one can only read what happened: without what requests carry,
and for most of them without what came of them, because all this must cost next to nothing. Both are bounded in
number and in bytes. What is written of an event is made out when a file is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from traceback import format_exception
from typing import Any, Final, cast

from ...protocol import messages
from ...protocol.errors import PoolError
from ...protocol.messages import Done, Refused
from .. import environment
from ..core import events, instructions
from ..core.events import Event
from ..core.instructions import Instruction
from ..settings import Settings
from .background import Background
from .history import Known
from .logs import Level
from .reactor import Reactor
from .records import Encoder, Entry, Header, write_record

#: What requests carry, in all events of the start that are kept; one with more than the other is reduced at once.
_MOST_BYTES: Final = 2 << 20
_LARGE_BYTES: Final = 16 << 10
#: Files that stay, those written last.
MAX_FILES: Final = 10
#: How many fields of a `Submit` say what is asked; those behind them are what it carries.
_ASKED: Final = messages.Submit._fields.index("body")


class Recorder:
    """Keeps what went through the core.

    Args:
        header: what the core started from.
        folder: where files are written; it is made when the first is.
        most: how many events are kept of the start, and of the end.
        reactor: in whose thread it is told that a file was written.
        note: takes sentences for the log.

    Attributes:
        keep: called with an event, when it was handled, and what the core wanted then.
    """

    def __init__(
        self, header: Header, folder: str, most: int, reactor: Reactor, note: Callable[[str, Level], None]
    ) -> None:
        self._background = Background("onecopy-recorder", reactor)
        self._note = note
        self._header = header
        self._folder = folder
        self._most = most
        self._encoder = Encoder()
        self._numbers = itertools.count(1)
        self._first: list[tuple[int, float, Any, Sequence[Any]]] = []
        # Number, time, kind of event, what is kept of it, and the kinds of instructions it brought, or how many.
        self._last: deque[tuple[int, float, type, Any, Any]] = deque(maxlen=most)
        self._bulk_bytes = 0
        self._files = itertools.count(1)
        self.keep: Callable[[Event, float, Sequence[Instruction]], None] = self._keep_first
        if not most:
            self.keep = lambda _event, _now, _out: None

    def write(self, why: str, then: Callable[[Done | Refused], None]) -> None:
        """Have what is kept written to a new file by a thread; the log tells which.

        Args:
            why: why, for whoever reads it.
            then: called with the answer for whoever asked: the path, or why it could not be written.
        """
        entries = self._entries()

        def write() -> Done | Refused:
            try:
                return Done(self._write(why, entries))
            except OSError as error:
                text = f"what the core did cannot be written to {self._folder}: {error.strerror}"
                return Refused(PoolError(text).to_record())

        def written(answer: Done | Refused) -> None:
            if isinstance(answer, Done):
                self._note(f"what the core did is in {answer.note}", "info")
            else:
                self._note(answer.error["message"], "warning")
            then(answer)

        self._background.do(write, written)

    def explain(self, event: Event, now: float, error: Exception) -> None:
        """Write what led to an error of the core, now, and add to its notes where that is, or why nowhere."""
        raised = "".join(format_exception(error))
        last = Entry(next(self._numbers), now, self._encoder.encode(event), raised=raised)
        try:
            path = self._write(f"the core raised {type(error).__name__}", [*self._entries(), last])
            error.add_note(f"What led to it is in {path}; scripts/replay runs that again.")
        except OSError as failure:
            error.add_note(f"What led to it could not be written: {failure}")

    def close(self) -> None:
        """Let go of the thread."""
        self._background.close()

    def _write(self, why: str, entries: Iterable[Entry]) -> str:
        from importlib.metadata import version  # it imports 30 modules, which no pool needs but for this

        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{next(self._files)}.jsonl"
        path = os.path.join(self._folder, name)
        write_record(path, self._header._replace(why=why, version=version("onecopy")), entries)
        for old in sorted(one for one in os.listdir(self._folder) if one.endswith(".jsonl"))[:-MAX_FILES]:
            with contextlib.suppress(OSError):  # another pool was faster
                os.unlink(os.path.join(self._folder, old))
        return path

    # --- what is kept ---------------------------------------------------------------------------------------

    def _keep_first(self, event: Event, now: float, out: Sequence[Instruction]) -> None:
        bulk_bytes = _bulk_bytes(event, out)
        if bulk_bytes > _LARGE_BYTES:
            self._first.append((next(self._numbers), now, *self._reduced(event, out)))
        else:
            self._first.append((next(self._numbers), now, event, out))
            self._bulk_bytes += bulk_bytes
        if len(self._first) == self._most or self._bulk_bytes > _MOST_BYTES:
            self.keep = self._keep_last

    def _keep_last(self, event: Event, now: float, out: Sequence[Instruction]) -> None:
        """Keep next to nothing of what comes with every request: this takes a fiftieth of the time of one."""
        kind, kept = type(event), cast(Any, event)
        wanted: int | list[str] = len(out)
        if isinstance(event, events.Submitted):
            kept = (event.client, event.submit[:_ASKED])
        elif isinstance(event, events.AttemptEnded):
            kept = event[:3]
        elif isinstance(event, events.ItemYielded):
            kept = event[:2]
        else:
            if kind in _BULK:
                kept = self._encoder.encode(event)
            wanted = [type(one).__name__ for one in out]
        self._last.append((next(self._numbers), now, kind, kept, wanted))

    def _reduced(self, event: Any, out: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Return an event, and what came of it, as they are written."""
        if type(event) is dict:
            return event, list(out)
        return self._encoder.encode(event), list(map(self._encoder.encode, out))

    def _entries(self) -> Iterator[Entry]:
        """Return what is kept now, as it is written; that is made out only as it is asked for."""
        first, last = self._first[:], list(self._last)
        return itertools.chain(
            (Entry(number, now, *self._reduced(event, out)) for number, now, event, out in first),
            (Entry(number, now, self._cut(kind, kept), wanted=wanted) for number, now, kind, kept, wanted in last),
        )

    def _cut(self, kind: Any, kept: Any) -> Any:
        """Return an event of which not all may have been kept, as it is written."""
        if kind is events.Submitted:
            client, asked = kept
            submit = {"is": "messages.Submit", **dict(zip(messages.Submit._fields, asked, strict=False))}
            return {"is": "events.Submitted", "client": self._encoder.encode(client), "submit": submit}
        if type(kept) is tuple:
            return {"is": f"events.{kind.__name__}", **dict(zip(kind._fields, kept, strict=False))}
        return self._reduced(kept, ())[0]


def make_recorder(
    settings: Settings,
    totals_bytes: Sequence[int],
    peers: dict[str, Sequence[str]],
    known: Known,
    reactor: Reactor,
    note: Callable[[str, Level], None],
) -> Recorder:
    """Return the recorder of a supervisor whose cores are made from these, see `cores.make_cores`."""
    loads = {key: one._asdict() for key, one in known.loads.items()}
    header = Header(
        "", settings.to_wire(), totals_bytes, peers, known.needs, loads, spare_cores=environment.spare_cores()
    )
    folder = os.path.join(environment.cache_folder(), "records")
    return Recorder(header, folder, settings.record_events or 0, reactor, note)


# --- what may be large -------------------------------------------------------------------------------------------


def _sum(buffers: Iterable[Any]) -> int:
    return sum(memoryview(buffer).nbytes for buffer in buffers)


def _ended(one: events.AttemptEnded) -> int:
    size_bytes = _sum(one.buffers) if one.buffers else 0
    for answer in one.answers:
        if type(answer) is list:
            size_bytes += len(answer[0])
    return size_bytes


def _handed(one: messages.Run) -> int:
    size_bytes = 0
    for part in one.parts:
        size_bytes += len(part[0])
    return size_bytes


#: How much an event, or the message of an instruction, has of what requests and models carry, in bytes.
_BULK: Final[dict[type, Callable[[Any], int]]] = {
    events.Submitted: lambda one: len(one.submit.body) + (_sum(one.buffers) if one.buffers else 0),
    events.AttemptEnded: _ended,
    events.ItemYielded: lambda one: len(one.body) + (_sum(one.buffers) if one.buffers else 0),
    events.ModelDeclared: lambda one: len(one.load.pickled) + _sum(one.load.example),
    events.ModelBuilt: lambda one: len(one.built.skeleton),
    messages.Run: _handed,
    messages.Reply: lambda one: len(one.body),
    messages.Item: lambda one: len(one.body),
    messages.Thaw: lambda one: len(one.skeleton),
    messages.Attached: lambda one: len(one.skeleton),
    messages.BuildModel: lambda one: len(one.pickled),
}
_WITH_BUFFERS: Final = (instructions.ToClient, instructions.ToChild)
_WITH_MESSAGES: Final = (*_WITH_BUFFERS, instructions.ToCaller, instructions.ToZygote)


def _bulk_bytes(event: Event, out: Sequence[Instruction]) -> int:
    bulk = _BULK.get(type(event))
    size_bytes = bulk(event) if bulk else 0
    for one in out:
        if isinstance(one, _WITH_MESSAGES):
            bulk = _BULK.get(type(one.message))
            size_bytes += bulk(one.message) if bulk else 0
            if isinstance(one, _WITH_BUFFERS) and one.buffers:
                size_bytes += _sum(one.buffers)
    return size_bytes
