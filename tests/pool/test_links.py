"""Both kinds of links over real sockets: what holds for each, then what only a unix stream is in danger of."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import zmq
from onecopy.pool import link_unix, link_zmq
from onecopy.pool.link_unix import UnixLink
from onecopy.pool.link_zmq import ZmqLink
from onecopy.protocol.channel import Channel
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.frames import multipart, unpack_header
from onecopy.protocol.limits import MAX_BUFFERS
from onecopy.protocol.messages import Failed, Goodbye, Hello, Item, Ping, Pong, Query, Released, Submit, Welcome

LARGE = 3_000_000


class UnixEnd:
    """The other end of a `UnixLink`."""

    def __init__(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link = UnixLink(theirs)
        ours.settimeout(20)
        self.channel = Channel(ours)

    def receive(self):
        delivery = self.channel.receive()
        return delivery and (delivery.message, [bytes(one) for one in delivery.buffers])

    def send(self, message, buffers=()):
        self.channel.send(message, buffers)

    def send_nonsense(self):
        self.channel.socket.sendall(b"nonsense")

    def close(self):
        self.channel.close()


class ZmqEnd:
    """The other end of a `ZmqLink`."""

    def __init__(self):
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.set(zmq.RCVTIMEO, 20_000)
        port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.link = ZmqLink(f"tcp://127.0.0.1:{port}", lambda: True)

    def receive(self):
        self.identity, header, *buffers = self.router.recv_multipart()
        return unpack_header(header), buffers

    def send(self, message, buffers=()):
        self.router.send_multipart([self.identity, *multipart(message, buffers)])

    def send_nonsense(self):
        self.router.send_multipart([self.identity, b"nonsense"])

    def close(self):
        self.router.close(0)
        self.context.term()


@contextmanager
def met(kind):
    """Two ends that have said hello."""
    other = kind()
    try:
        other.link.send(Hello(b"", 1))
        assert other.receive() == (Hello(b"", 1), [])
        yield other.link, other
    finally:
        other.link.close(Goodbye())
        other.close()


@pytest.fixture(params=[UnixEnd, ZmqEnd], ids=["unix", "zmq"])
def ends(request):
    with met(request.param) as ends:
        yield ends


@pytest.fixture
def unix_ends():
    with met(UnixEnd) as ends:
        yield ends


def received(link, count):
    """Sleep, read and take, as whoever has the role of receiving does, until so many messages are there."""
    taken = []
    while len(taken) < count:
        assert link.sleep(20_000) == ""
        link.read()
        while (arrived := link.take()) is not None:
            taken.append((arrived.message, [bytes(buffer) for buffer in arrived.buffers]))
    return taken


def meanwhile(link, call):
    """Return what another thread's call returns; this one sleeps, and sends what the socket had no room for."""
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(call)
        while not calling.done():
            link.sleep(10)
        return calling.result()


# --- what holds for both -------------------------------------------------------------------------------------


def test_messages_travel_in_order_with_their_buffers_both_ways(ends):
    link, other = ends
    sent = [
        (Released(number), [bytes([number]) * size for size in (0, 5, 40_000)[: number % 4]])
        for number in range(50)
    ]
    for message, buffers in sent:
        assert link.send(message, buffers)
    assert meanwhile(link, lambda: [other.receive() for _ in sent]) == sent
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(lambda: [other.send(*one) for one in sent])
        assert received(link, len(sent)) == sent
        sending.result()


@pytest.mark.parametrize("kind", [UnixEnd, ZmqEnd])
def test_a_greeting_returns_the_answer_or_nothing_in_time(kind):
    other = kind()
    with ThreadPoolExecutor(1) as thread:
        assert other.link.greet(Hello(b"token", 7), 0.01) is None
        assert other.receive()[0] == Hello(b"token", 7)
        greeting = thread.submit(other.link.greet, Hello(b"again", 7), 20)
        assert other.receive()[0] == Hello(b"again", 7)
        other.send(Welcome("pool", 3))
        assert greeting.result() == Welcome("pool", 3)
    other.link.close(Goodbye())
    other.close()


def test_buffers_may_be_changed_as_soon_as_they_are_sent(ends):
    link, other = ends
    arrays = [bytearray(b"a" * LARGE), bytearray(b"b" * 100)]
    for number in range(3):
        assert link.send(Released(number), arrays)
    for array in arrays:
        array[:] = bytes(len(array))
    arrived = meanwhile(link, lambda: [other.receive() for _ in range(3)])
    assert arrived == [(Released(number), [b"a" * LARGE, b"b" * 100]) for number in range(3)]


def test_many_threads_send_and_no_message_is_torn(ends):
    link, other = ends

    def send(thread):
        for number in range(200):
            message = Submit(thread * 1000 + number, "m", "", 0.0, 0, 0, "", 0, 0, b"x" * (number * 7), [], [])
            assert link.send(message, [bytes([thread]) * number])

    with ThreadPoolExecutor(4) as threads:
        sending = [threads.submit(send, thread) for thread in range(4)]
        arrived = meanwhile(link, lambda: [other.receive() for _ in range(800)])
        assert [one.result() for one in sending] == [None] * 4
    assert all(buffers == [bytes([one.request // 1000]) * (one.request % 1000)] for one, buffers in arrived)
    for thread in range(4):
        mine = [one.request % 1000 for one, _ in arrived if one.request // 1000 == thread]
        assert mine == list(range(200))


def test_whoever_sleeps_is_woken_by_a_message_by_a_thread_and_by_time(ends):
    link, other = ends
    assert link.sleep(1) == ""
    with ThreadPoolExecutor(1) as thread:
        for wake in (link.wake_up, lambda: other.send(Pong())):
            sleeping = thread.submit(link.sleep, 20_000)
            wake()
            assert sleeping.result() == ""
    assert received(link, 1) == [(Pong(), [])]


def test_what_has_come_while_sending_is_not_slept_through(ends):
    link, other = ends
    for number in range(200):
        link.send(Query(number, "models"))
        other.receive()
        other.send(Released(number))
        link.send(Ping())  # which may take in that something has come
        assert received(link, 1) == [(Released(number), [])]
        other.receive()


def test_what_is_left_while_the_lock_is_held_is_sent_by_whoever_is_next(ends):
    link, other = ends
    with link._lock:  # as garbage is collected in the midst of sending
        link.leave(Released(1))
    link.send(Ping())
    assert [other.receive()[0] for _ in range(2)] == [Ping(), Released(1)]
    with link._lock:
        link.leave(Released(2))
    link.read()
    link.leave(Released(3))
    assert [other.receive()[0] for _ in range(2)] == [Released(2), Released(3)]


def test_a_message_beyond_a_limit_is_refused_and_harms_nothing(ends):
    link, other = ends
    with pytest.raises(InvalidRequest, match="4097 buffers; at most 4096"):
        link.send(Ping(), [b""] * (MAX_BUFFERS + 1))
    with pytest.raises(InvalidRequest, match="header bytes"):
        link.send(Item(1, bytes(64 << 20)))
    assert link.send(Pong())
    assert other.receive() == (Pong(), [])


def test_what_comes_before_nonsense_is_taken_and_nothing_after_it(ends):
    link, other = ends
    other.send(Released(1))
    other.send_nonsense()
    taken = []
    with pytest.raises(InvalidRequest):  # noqa: PT012 - it may come with any of the reads
        while True:
            link.sleep(20_000)
            link.read()
            while (arrived := link.take()) is not None:
                taken.append(arrived.message)
    assert taken == [Released(1)]
    with pytest.raises(InvalidRequest):
        link.take()


def test_the_end_of_the_other_side_is_told(ends):
    link, other = ends
    other.send(Released(1))
    assert received(link, 1) == [(Released(1), [])]
    other.close()
    losses = (link.sleep(20_000) or link.read() for _ in itertools.count())
    assert next(filter(None, losses)) in ("gone", "lost")
    assert link.send(Ping())  # into the void; whoever receives is told


def test_a_link_that_is_closed_has_said_goodbye_and_does_nothing_more(ends):
    link, other = ends
    link.close(Goodbye())
    assert other.receive()[0] == Goodbye()
    link.close(Goodbye())
    assert link.send(Ping())
    link.leave(Ping())
    link.wake_up()
    assert not link.read()
    assert link.take() is None


@pytest.mark.parametrize("kind", [UnixEnd, ZmqEnd])
def test_where_nobody_reads_there_is_no_room_and_what_was_accepted_arrives(kind, monkeypatch):
    monkeypatch.setattr(link_unix, "_KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(link_zmq, "MAX_OUTBOX_MESSAGES", 20)
    with met(kind) as (link, other):
        payload = bytes(100_000)
        accepted = 0
        while link.send(Released(accepted), [payload]):
            accepted += 1
        assert not link.send(Released(accepted), [payload])
        arrived = meanwhile(link, lambda: [other.receive() for _ in range(accepted)])
        assert [one.request for one, _ in arrived] == list(range(accepted))
        assert link.send(Ping())
        assert other.receive() == (Ping(), [])
        assert not link.has_unsent


# --- a unix stream alone -------------------------------------------------------------------------------------


def test_messages_that_are_written_in_many_pieces_arrive_whole(unix_ends):
    link, other = unix_ends
    link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as the kernel allows
    sent = [(Released(number), [os.urandom(size) for size in (3000, 0, 70_000, 1)]) for number in range(20)]
    for message, buffers in sent:
        assert link.send(message, buffers)
    assert link.has_unsent
    assert meanwhile(link, lambda: [other.receive() for _ in sent]) == sent
    assert not link.has_unsent
    assert link._unsent_bytes == 0


def test_whoever_sleeps_already_sends_what_another_thread_had_no_room_for(unix_ends):
    link, other = unix_ends
    asleep = threading.Event()

    def sleep_on():
        asleep.set()
        while not link._is_at_end:
            link.sleep(20_000)
            link.read()

    with ThreadPoolExecutor(1) as thread:
        sleeping = thread.submit(sleep_on)
        asleep.wait()
        assert link.send(Released(1), [bytes(LARGE)])
        assert other.receive() == (Released(1), [bytes(LARGE)])
        other.channel.socket.shutdown(socket.SHUT_RDWR)
        sleeping.result(20)


def test_the_reason_why_the_other_side_hung_up_is_read_before_its_end(unix_ends):
    link, other = unix_ends
    link.send(Ping())  # which it never reads, so that the end is an error
    other.send(Failed(1, {}))
    other.close()
    assert received(link, 1) == [(Failed(1, {}), [])]
    link.read()
    assert link.sleep(1000) == "gone"


class Interrupted(BaseException):
    """What a signal handler raises here, as Ctrl-C does."""


def test_an_exception_from_a_signal_handler_at_any_moment_tears_nothing(unix_ends):
    link, other = unix_ends
    link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)

    def echo():
        seen = []
        while (one := other.receive()) is not None and not isinstance(one[0], Goodbye):
            seen.append(one)
            other.send(*one)
        return seen

    def interrupt(*_):
        raise Interrupted

    def step(number):
        link.send(Released(number), [bytes([number % 256]) * (number % 7 * 5000)] if number % 3 else ())
        link.sleep(1)
        link.read()
        while (arrived := link.take()) is not None:
            back.append(arrived)

    back, interrupts = [], 0
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what others have called when garbage is collected cannot raise
    try:
        with ThreadPoolExecutor(1) as thread:
            echoing = thread.submit(echo)
            end = time.monotonic() + 3
            for number in itertools.count():
                try:
                    signal.setitimer(signal.ITIMER_REAL, 20e-6 + number % 97 * 5e-6)
                    step(number)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    interrupts += 1
                if time.monotonic() > end:
                    break
            signal.setitimer(signal.ITIMER_REAL, 0)
            link.send(Goodbye())
            while not echoing.done():
                link.sleep(1)
                link.read()
                while (arrived := link.take()) is not None:
                    back.append(arrived)
            seen = echoing.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    while (arrived := link.take()) is not None:
        back.append(arrived)
    assert interrupts > 100
    for arrived in (seen, back):  # what was interrupted may be missing; nothing comes twice, and nothing is torn
        numbers = [one[0].request for one in arrived]
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= number - 2 * interrupts
        for message, buffers in arrived:
            size = message.request % 7 * 5000
            assert [bytes(one) for one in buffers] == (
                [bytes([message.request % 256]) * size] if message.request % 3 else []
            )
