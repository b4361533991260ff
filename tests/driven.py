"""Real workers, forked by a real zygote, that a test drives by messages, as the supervisor would."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freezing import shared
from onecopy.pool.environment import zygote_environment
from onecopy.protocol.channel import Channel, Delivery
from onecopy.protocol.errors import from_record
from onecopy.protocol.frozen import freeze
from onecopy.protocol.marks import INTERRUPT_SIGNAL, LINE_BYTES, Marks
from onecopy.protocol.messages import (
    ContinueRun,
    Exited,
    ForkChild,
    Forked,
    Interrupt,
    Leave,
    MapSlot,
    Message,
    Ran,
    Run,
    Thaw,
    Used,
    Yielded,
    ZygoteReady,
)
from onecopy.protocol.values import decode, encode

MIB = 1 << 20
SLOT = 1
_PATIENCE_S = 60.0


class Zygote:
    """A zygote, and the page of marks of its workers."""

    def __init__(self, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        arguments = [str(theirs.fileno()), str(life_read), str(directory)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "onecopy.workers.zygote", *arguments],
            pass_fds=(theirs.fileno(), life_read),
            env=zygote_environment(),
        )
        theirs.close()
        os.close(life_read)
        ours.settimeout(_PATIENCE_S)
        self.channel = Channel(ours)
        self.marks_fd = os.memfd_create("marks", os.MFD_CLOEXEC)
        os.ftruncate(self.marks_fd, 64 * LINE_BYTES)
        self.page = mmap.mmap(self.marks_fd, 64 * LINE_BYTES)
        self.forked = 0
        ready = self.expect(ZygoteReady)
        assert ready.message.without_slots == ""

    def expect(self, kind: type) -> Delivery:
        delivery = self.channel.receive()
        assert delivery is not None
        assert isinstance(delivery.message, kind), delivery.message
        return delivery

    def close(self) -> None:
        self.channel.send(Leave())
        assert self.process.wait(_PATIENCE_S) == 0
        self.channel.close()
        os.close(self._life_write)
        os.close(self.marks_fd)


class Worker:
    """A worker that was just forked; what it prints goes into a file."""

    def __init__(self, zygote: Zygote, output: Path) -> None:
        zygote.forked += 1
        self._zygote = zygote
        self._sets = 0
        self._attempts = 0
        self.output = output
        self.used: list[Used] = []
        self.marks = Marks(zygote.page, zygote.forked)
        ours, theirs = socket.socketpair()
        settings = {"threads": 1, "index": zygote.forked, "cores": []}
        with output.open("wb") as file:
            fds = (theirs.fileno(), file.fileno(), zygote.marks_fd)
            zygote.channel.send(ForkChild(zygote.forked, "worker", settings), (), fds)
        theirs.close()
        forked = zygote.expect(Forked)
        self.pid, self.pidfd = forked.message.pid, forked.fds[0]
        ours.settimeout(_PATIENCE_S)
        self.channel = Channel(ours)

    def close(self) -> None:
        """Let it leave, and wait until it has."""
        self.channel.send(Leave())
        exited = self._zygote.expect(Exited).message
        self.channel.close()
        os.close(self.pidfd)
        assert exited.status == 0

    def hold(self, model: Any, **options: Any) -> int:
        """Give it a model; return the number of its weight set."""
        self._sets += 1
        frozen = freeze(model)
        with shared(frozen) as regions:
            order = Thaw(
                self._sets, "m", options, frozen.manifest.to_wire(), frozen.skeleton,
                [str(Path(__file__).parent)], [], False,
            )  # fmt: skip
            self.channel.send(order, (), [region.fd for region in regions])
        return self._sets

    def map_slot(self, size_bytes: int = 64 * MIB) -> None:
        """Give it a slot."""
        fd = os.memfd_create("onecopy-slot", os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
        self.channel.send(MapSlot(SLOT, size_bytes), (), (fd,))
        os.close(fd)

    def order(self, held: int, method: str, *parts: Any, credit: int = 0, slot_bytes: int = 0) -> int:
        """Send a run of what `call` and `pack` return; return the number of the attempt."""
        self._attempts += 1
        buffers = [buffer for _, own in parts for buffer in own]
        slot = SLOT if slot_bytes else 0
        wires = [wire for wire, _ in parts]
        self.channel.send(Run(self._attempts, held, method, wires, credit, 0, slot, slot_bytes, 0), buffers)
        return self._attempts

    def receive(self, kind: type[Message]) -> Delivery:
        """Wait for a message of this kind, noting what is told of slots and of models that were thawed."""
        while True:
            delivery = self.channel.receive()
            assert delivery is not None, "the worker is gone"
            if isinstance(delivery.message, Used):
                self.used.append(delivery.message)
            elif isinstance(delivery.message, kind):
                return delivery
            else:
                assert type(delivery.message).__name__ == "Thawed", delivery.message

    def ended(self, attempt: int) -> list[Any]:
        """Wait until an attempt has ended; return the result or error of each part, for many a list of these."""
        delivery = self.receive(Ran)
        ran = delivery.message
        assert isinstance(ran, Ran)
        assert ran.attempt == attempt
        assert ran.seconds >= 0
        return list(answers_of(ran.answers, delivery.buffers))

    def run(self, held: int, method: str, *parts: Any, slot_bytes: int = 0) -> list[Any]:
        """Run something and wait for its end."""
        return self.ended(self.order(held, method, *parts, slot_bytes=slot_bytes))

    def item(self, attempt: int) -> Any:
        """Wait for the next item of a stream."""
        delivery = self.receive(Yielded)
        assert isinstance(delivery.message, Yielded)
        assert delivery.message.attempt == attempt
        return decode(delivery.message.body, delivery.buffers)

    def more(self, attempt: int, items: int) -> None:
        """Let more items of a stream come."""
        self.channel.send(ContinueRun(attempt, items))

    def interrupt(self, attempt: int) -> None:
        """Give an attempt up, as the supervisor does."""
        self.marks.interrupts += 1
        self.channel.send(Interrupt(attempt))
        if self.marks.begun == attempt:
            signal.pidfd_send_signal(self.pidfd, INTERRUPT_SIGNAL)


def call(*args: Any, **kwargs: Any) -> tuple[list[Any], list[Any]]:
    """Return the part of a run that is one call."""
    body, buffers = encode([args, kwargs])
    return [body, [], [], 0, len(buffers)], buffers


def pack(values: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return the part of a run that is many calls."""
    body, buffers = encode(values)
    return [body, [], [], len(values), len(buffers)], buffers


def answers_of(answers: list[Any], buffers: list[Any]) -> Iterator[Any]:
    """Yield the result, or the error, of each part of a run."""
    rest = list(buffers)
    for answer in answers:
        if isinstance(answer, dict):
            yield from_record(answer)
            continue
        body, places, errors, count = answer
        assert places == []
        own, rest = rest[:count], rest[count:]
        value = decode(body, own)
        for index, record in errors:
            assert value[index] is None
            value[index] = from_record(record)
        yield value
    assert rest == []


@contextmanager
def a_zygote(directory: Path) -> Iterator[Zygote]:
    zygote = Zygote(directory)
    try:
        yield zygote
    finally:
        zygote.close()
