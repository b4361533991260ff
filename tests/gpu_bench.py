"""What runs attempts in this process, as a worker does, on the GPU of `card`."""

from __future__ import annotations

import os
import signal
import socket
from types import SimpleNamespace

import torch
from card import DEVICE, OnCard
from driven import answers_of
from onecopy.protocol.arrays import bytes_of
from onecopy.protocol.channel import Channel, Delivery
from onecopy.protocol.marks import INTERRUPT_SIGNAL
from onecopy.protocol.messages import MapMailbox, Run
from onecopy.protocol.values import encode
from onecopy.workers.batches import Batching
from onecopy.workers.inbox import Inbox
from onecopy.workers.interrupts import Interrupts
from onecopy.workers.mailboxes import Mailboxes
from onecopy.workers.runs import Runs
from onecopy.workers.slot import Stay
from onecopy.workers.streams import Streams

MAILBOX_BYTES = 1 << 20


class Gpu:
    """What `Transfers` needs to know of one, and what it was told."""

    def __init__(self, device=DEVICE):
        self.device = device
        self.sent = self.fetched = self.waits = 0
        self.error = None

    def synchronize(self):
        self.waits += 1
        if self.error is not None:
            raise self.error

    def copy(self, destination, source):
        """Copy at once what goes there, and what comes from there only when that is waited for."""
        if isinstance(destination, OnCard):
            self.sent += 1
            destination.copy_(source)
            return lambda: None
        self.fetched += 1
        now = source.clone()
        return lambda: destination.copy_(now)


class Model:
    """Notes what it is given."""

    def __init__(self):
        self.given = []

    def __call__(self, *args, **kwargs):
        self.given.append((args, kwargs))
        return args[0] if args else kwargs


class Bench:
    """Runs attempts in this process, as a worker does."""

    def __init__(self, transfers):
        self.transfers = transfers
        ours, theirs = socket.socketpair()
        self.channel, self.supervisor = Channel(ours), Channel(theirs)
        self.inbox = inbox = Inbox(self.channel)
        self._handler = signal.getsignal(INTERRUPT_SIGNAL)
        self.interrupts = Interrupts(SimpleNamespace(interrupts=0), inbox)
        self.mailboxes = Mailboxes(copies=False)
        self.mailbox_fd = os.memfd_create("mailbox", os.MFD_CLOEXEC)
        os.ftruncate(self.mailbox_fd, MAILBOX_BYTES)
        self.mailboxes.map(MapMailbox(1, MAILBOX_BYTES), [os.dup(self.mailbox_fd)])
        self.runs = Runs(self.mailboxes, self.interrupts, Streams(self.channel, inbox, self.interrupts), transfers)
        transfers.while_waiting = lambda: self.runs.look_ahead(inbox.ahead())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        signal.signal(INTERRUPT_SIGNAL, self._handler)
        self.channel.close()
        self.supervisor.close()
        os.close(self.mailbox_fd)

    def send(self, attempt, *parts):
        """Let an attempt come that is to run later; see `run_next`."""
        buffers = [buffer for _, own in parts for buffer in own]
        self.supervisor.send(Run(attempt, 1, "__call__", [wire for wire, _ in parts], 0, 0, 0, 0, 0), buffers)

    def run_next(self, model, **options):
        """Run the attempt that has come first; return the result, or the error, of each part."""
        delivery = self.inbox.next()
        return self._run(model, delivery.message, delivery, **options)

    def run(self, model, *parts, method="__call__", credit=0, **options):
        """Return the result, or the error, of each part."""
        buffers = [buffer for _, own in parts for buffer in own]
        order = Run(1, 1, method, [wire for wire, _ in parts], credit, 0, 0, 0, 0)
        return self._run(model, order, Delivery(order, buffers, []), **options)

    def _run(self, model, order, delivery, grad=False, graphs=None, **options):
        held = SimpleNamespace(
            name="m", grad=grad, graphs=graphs, batching=Batching("m", options, lambda name: getattr(model, name))
        )
        answers, buffers = self.runs.run(order, delivery, held, getattr(model, order.method), Stay(None, 0))
        return list(answers_of(answers, [bytes(one) for one in buffers]))

    def in_mailbox(self, *args, at=0):
        """Return the part of a call whose large arrays lie in the mailbox."""
        body, buffers = encode([args, {}])
        places = []
        for buffer in map(bytes, buffers):
            os.pwrite(self.mailbox_fd, buffer, at)
            places.append([1, at, len(buffer)])
            at += -(-len(buffer) // 64) * 64
        return [body, places, [], 0, 0], []

    def mailbox(self, size_bytes):
        return os.pread(self.mailbox_fd, size_bytes, 0)


def assert_equal(result, expected):
    if isinstance(expected, torch.Tensor):
        assert type(result) is torch.Tensor
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        assert torch.equal(bytes_of(result), bytes_of(expected))
    elif isinstance(expected, dict):
        assert list(result) == list(expected)
        assert_equal(list(result.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        assert type(result) is type(expected)
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_equal(one, other)
    else:
        assert result == expected
