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
        inbox = Inbox(self.channel)
        self._handler = signal.getsignal(INTERRUPT_SIGNAL)
        self.interrupts = Interrupts(SimpleNamespace(interrupts=0), inbox)
        self.mailboxes = Mailboxes(copies=False)
        self.mailbox_fd = os.memfd_create("mailbox", os.MFD_CLOEXEC)
        os.ftruncate(self.mailbox_fd, MAILBOX_BYTES)
        self.mailboxes.map(MapMailbox(1, MAILBOX_BYTES), [os.dup(self.mailbox_fd)])
        self.runs = Runs(self.mailboxes, self.interrupts, Streams(self.channel, inbox, self.interrupts), transfers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        signal.signal(INTERRUPT_SIGNAL, self._handler)
        self.channel.close()
        self.supervisor.close()
        os.close(self.mailbox_fd)

    def run(self, model, *parts, method="__call__", credit=0, grad=False, graphs=None, **options):
        """Return the result, or the error, of each part."""
        buffers = [buffer for _, own in parts for buffer in own]
        order = Run(1, 1, method, [wire for wire, _ in parts], credit, 0, 0, 0)
        held = SimpleNamespace(
            name="m", grad=grad, graphs=graphs, batching=Batching("m", options, lambda name: getattr(model, name))
        )
        answers, buffers = self.runs.run(
            order, Delivery(order, buffers, []), held, getattr(model, method), Stay(None, 0)
        )
        return list(answers_of(answers, [bytes(one) for one in buffers]))

    def in_mailbox(self, *args):
        """Return the part of a call whose one large array lies in the mailbox."""
        body, [buffer] = encode([args, {}])
        os.pwrite(self.mailbox_fd, bytes(buffer), 0)
        return [body, [[1, 0, len(bytes(buffer))]], [], 0, 0], []

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
