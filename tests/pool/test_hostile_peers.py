"""Peers that mean harm, one after the other, to a whole pool: whoever behaves gets right answers all the time.

What becomes of a single broken message is in tests/protocol and test_clients.py; forged places are in
test_mailboxes.py. Here is what takes a supervisor with workers: that nobody else notices, and that nothing stays.
"""

from __future__ import annotations

import array
import os
import re
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import msgpack
import psutil
import pytest
import torch
import zmq
from leftovers import wait_until
from onecopy.pool import Pool
from onecopy.pool.control import connect
from onecopy.protocol.channel import Channel
from onecopy.protocol.frames import multipart, pack_header, stream_parts, unpack_header
from onecopy.protocol.limits import MAX_BUFFER_BYTES, MAX_BUFFERS, MAX_HEADER_BYTES
from onecopy.protocol.messages import (
    Admit,
    Admitted,
    BuildFailed,
    Cancel,
    Continue,
    Exited,
    Failed,
    Forked,
    Goodbye,
    Hello,
    LoadModel,
    ModelBuilt,
    NeedRegions,
    Ping,
    Query,
    Ran,
    Refused,
    RegionsFilled,
    Rejected,
    Released,
    Reply,
    Submit,
    Thawed,
    Welcome,
    Yielded,
    ZygoteReady,
)
from onecopy.protocol.values import encode
from standalone import standalone

TOML = """\
workers = 2
listen = ["tcp://127.0.0.1:*"]
[models.toys]
source = "toy_models:toys"
method = "echo"
"""
#: More than this a supervisor must not have kept of anything that was done to it.
_KEPT_BYTES = 32 << 20
_PATIENCE_S = 20
RECORD = {"code": "model_error", "message": "forged", "details": {}}
#: What children alone may say.
FORGED = [
    Ran(1, 0.1, [[b"\x01", [], [], 0]]),
    Yielded(1, b"\x01"),
    Thawed(1, 0.1, 0, {}),
    ModelBuilt([[], []], b"", [], [], False, []),
    BuildFailed(RECORD),
    Forked(1, os.getpid()),
    Exited(1, 0),
    ZygoteReady(""),
    Reply(1, 0.1, b"\x01", [], []),
    Released(1),
]


class Bystander:
    """Somebody who behaves: asks again and again in a thread of its own, with small and with large arrays."""

    def __init__(self, endpoint):
        self.pool = Pool.connect(endpoint)
        self.answers, self.wrong = 0, []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self):
        large = torch.arange(100_000.0)
        while not self._is_over.is_set():
            try:
                small = self.pool.run("toys", self.answers)
                back = self.pool.run("toys", large + self.answers)
            except Exception as error:
                self.wrong.append(error)
                return
            if small != self.answers or not torch.equal(back, large + self.answers):
                self.wrong.append((self.answers, small))
            self.answers += 1

    def goes_on(self):
        """Whether it gets more right answers, after whatever was done."""
        before = self.answers
        return wait_until(lambda: self.wrong or self.answers > before + 3) and not self.wrong

    def close(self):
        self._is_over.set()
        self._thread.join()
        self.pool.shutdown()


class Scene:
    """A pool, somebody who behaves, and the ways in."""

    def __init__(self, served, bystander):
        self.directory = served.directory
        self.bystander = bystander
        self.process = psutil.Process(served.process.pid)
        assert wait_until(lambda: "tcp://" in served.log.read_text())
        self.tcp = re.search(r"tcp://[\d.]+:\d+", served.log.read_text())[0]

    def footprint(self):
        """What the supervisor has: descriptors and bytes of its own."""
        return self.process.num_fds(), self.process.memory_full_info().uss

    @contextmanager
    def control(self):
        """A connection that has said nothing yet."""
        sock = connect(self.directory)
        sock.settimeout(_PATIENCE_S)
        channel = Channel(sock)
        try:
            yield channel
        finally:
            channel.close()

    @contextmanager
    def client(self):
        """A client over a unix stream that the supervisor has let in."""
        with self.control() as control, self.control() as requests:
            control.send(Admit())
            admitted = control.receive().message
            assert isinstance(admitted, Admitted)
            requests.send(Hello(admitted.token, os.getpid()))
            assert isinstance(requests.receive().message, Welcome)
            yield requests

    @contextmanager
    def dealer(self, *, is_greeted=False):
        """Somebody over tcp."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.set(zmq.LINGER, 0)
            dealer.set(zmq.RCVTIMEO, _PATIENCE_S * 1000)
            dealer.connect(self.tcp)
            if is_greeted:
                dealer.send_multipart(multipart(Hello(b"", 1)))
                assert isinstance(heard(dealer), Welcome)
            yield dealer
            if is_greeted:
                dealer.set(zmq.LINGER, _PATIENCE_S * 1000)
                dealer.send_multipart(multipart(Goodbye()))

    def raw_tcp(self):
        """A plain connection to where ZeroMQ listens."""
        host, port = self.tcp.removeprefix("tcp://").split(":")
        return socket.create_connection((host, int(port)), _PATIENCE_S)


@pytest.fixture
def scene(tmp_path: Path):
    with standalone(tmp_path, TOML) as served:
        bystander = Bystander(served.endpoint)
        try:
            assert bystander.goes_on()
            yield Scene(served, bystander)
        finally:
            bystander.close()


def heard(dealer):
    return unpack_header(dealer.recv_multipart()[0])


def rejected(message):
    """The reason for which somebody was sent away."""
    assert isinstance(message, Rejected | Refused), message
    return message.error["message"]


def submit(number, value, **fields):
    body, _ = encode([[value], {}])
    return Submit(number, "toys", "", 0.0, 0, 0, "", 0, 0, body, [], [])._replace(**fields)


# --- over tcp, where anyone on the machine comes in --------------------------------------------------------------


def another_version(scene):
    with scene.dealer() as dealer:
        dealer.send(msgpack.packb([2, 1, b"", 1]))
        assert rejected(heard(dealer)) == "wire version 2; this side speaks 1"


def strangers_who_say_nonsense(scene):
    with scene.dealer() as dealer:
        for number in range(3000):
            dealer.send_multipart([b"\x93\x01\x02" + bytes([number % 256]), b"x" * (number % 300)])
        assert rejected(heard(dealer)) == "Welcome has 2 fields, got 1"  # 0x93: of three, the last of which is 0


def too_many_frames(scene):
    with scene.dealer(is_greeted=True) as dealer:
        dealer.send_multipart([pack_header(Ping()), *[b""] * (MAX_BUFFERS + 1)])
        assert rejected(heard(dealer)) == "4097 buffers; at most 4096"


def a_header_beyond_the_limit(scene):
    with scene.dealer(is_greeted=True) as dealer:
        dealer.send(bytes(MAX_HEADER_BYTES + 1))
        assert "a header of 67,108,865 bytes" in rejected(heard(dealer))


def a_header_of_empty_lists(scene):
    """It would be sixty-four times as large in memory."""
    count = 32 << 20
    with scene.dealer(is_greeted=True) as dealer:
        dealer.send(b"\x9e\x01\x04\xdd" + struct.pack(">I", count) + b"\x90" * count)
        assert rejected(heard(dealer)) == "a header of more than 1,048,576 items"
    with scene.dealer(is_greeted=True) as dealer:
        dealer.send(b"\x9e\x01\x04\x9f" + (b"\xdd" + struct.pack(">I", count >> 4) + b"\x90" * (count >> 4)) * 15)
        assert rejected(heard(dealer)) == "a header of more than 1,048,576 items"


def a_frame_of_four_exabytes(scene):
    """By hand: greeting, READY of a DEALER, and the length of a frame that nobody could send."""
    with scene.raw_tcp() as sock:
        sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        greeting = b""
        while len(greeting) < 64:
            greeting += sock.recv(64 - len(greeting))
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        sock.sendall(b"\x04" + bytes([len(ready)]) + ready)
        with suppress(ConnectionError):
            sock.sendall(b"\x02" + struct.pack(">Q", 1 << 62) + bytes(100_000))
            while sock.recv(1000):
                continue


def half_a_greeting_and_another_protocol(scene):
    for said in (b"\xff" + bytes(8), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200)):
        with scene.raw_tcp() as sock:
            sock.sendall(said)


def messages_of_children(scene):
    for message in FORGED:
        with scene.dealer(is_greeted=True) as dealer:
            dealer.send_multipart(multipart(message))
            assert rejected(heard(dealer)) == f"{type(message).__name__} is not for this socket"


def code_where_values_travel(scene):
    load = LoadModel("toys", "factory", {}, [], b"cos\nsystem\n.", [], [], [], True, [])
    with scene.dealer(is_greeted=True) as dealer:
        dealer.send_multipart(multipart(load))
        assert rejected(heard(dealer)) == "LoadModel is not for this socket"


def numbers_of_somebody_elses_requests(scene):
    """A client's numbers are its own: nothing happens to those of others, and one can use the same."""
    with scene.dealer(is_greeted=True) as dealer:
        for number in range(2000):
            dealer.send_multipart(multipart(Cancel(number, kill=True)))
            dealer.send_multipart(multipart(Continue(number, 1)))
        answers = set()
        for number in range(50):
            dealer.send_multipart(multipart(submit(number, f"mine {number}")))
        for _ in range(50):
            reply = heard(dealer)
            assert isinstance(reply, Reply), reply
            answers.add((reply.request, reply.body))
        assert answers == {(number, encode(f"mine {number}").body) for number in range(50)}


def one_number_for_two_requests(scene):
    with scene.dealer(is_greeted=True) as dealer:
        dealer.send_multipart(multipart(submit(1, "first")))
        dealer.send_multipart(multipart(submit(1, "second")))
        said = [heard(dealer), heard(dealer)]
    assert {type(one) for one in said} <= {Reply, Failed}
    assert all(one.error["message"] == "request number 1 is in use" for one in said if isinstance(one, Failed))


def fields_that_cannot_be(scene):
    """Each is refused by name, or run as if nothing were wrong."""
    wrong = [
        {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"timeout_s": 1e300},
        {"timeout_s": (1 << 64) - 1}, {"retries": 101}, {"priority": -(1 << 63)}, {"session": "x" * 129},
        {"calls": 1 << 63}, {"credit": -1}, {"model": "\0" * 300}, {"method": "__class__"}, {"body": b"\xc1"},
        {"calls": 5}, {"places": [[1, 2]]}, {"places": [None] * 4096}, {"reply": [1, 0, (1 << 64) - 1]},
        {"reply": [1]}, {"credit": 1, "calls": 1},
    ]  # fmt: skip
    with scene.dealer(is_greeted=True) as dealer:
        for number, fields in enumerate(wrong):
            dealer.send_multipart(multipart(submit(number, "x", **fields)))
        ends = {}
        while len(ends) < len(wrong):
            if not isinstance(one := heard(dealer), Released):
                ends[one.request] = one.error["code"] if isinstance(one, Failed) else ""
    assert {number for number, code in ends.items() if not code} == {2, 3}  # seconds, if very many
    assert set(ends.values()) <= {"", "invalid_request", "model_not_found"}


def places_as_deep_as_can_be_read(scene):
    """Deeper than Python goes, whoever wants to say what they are."""
    header = multipart(submit(1, "x", places=["here"]))[0]
    for depth in (500, 990, 1000, 1020):
        with scene.dealer(is_greeted=True) as dealer:
            dealer.send_multipart([bytes(header).replace(b"\xa4here", b"\x91" * depth + b"\x90")])
            assert heard(dealer).error["code"] == "invalid_request"


# --- over unix streams: the same user, who may be wrong all the same ---------------------------------------------


def another_version_of_a_stream(scene):
    with scene.control() as control:
        control.socket.sendall(struct.pack("<BBHI", 2, 0, 0, 3) + b"\x92\x02\x16")
        assert rejected(control.receive().message) == "wire version 2; this side speaks 1"
        assert control.receive() is None


def messages_that_never_end(scene):
    """They promise as much as there can be, and stay silent."""
    header = pack_header(Ping())
    promises = [
        struct.pack("<BBHI", 1, 0, 0, MAX_HEADER_BYTES) + b"\x94",
        struct.pack("<BBHI", 1, 0, MAX_BUFFERS, MAX_HEADER_BYTES),
        struct.pack("<BBHI3Q", 1, 0, 3, len(header), *[MAX_BUFFER_BYTES] * 3) + header + bytes(100_000),
    ]
    for promise in promises:
        with scene.client() as client, scene.control() as control:
            client.socket.sendall(promise)
            control.socket.sendall(promise)
            assert scene.bystander.goes_on()


def many_who_connect_and_say_nothing(scene):
    before = scene.process.num_fds()
    connected = [connect(scene.directory) for _ in range(300)]
    assert wait_until(lambda: scene.process.num_fds() >= before + 300)
    assert scene.bystander.goes_on()
    for sock in connected:
        sock.close()


def half_a_message_and_gone(scene):
    stream = b"".join(bytes(part) for part in stream_parts(submit(1, "x" * 1000), [bytes(50_000)]))
    for cut in (1, 7, 8, 15, 16, 500, 40_000):
        with scene.client() as client:
            client.socket.sendall(stream[:cut])


def pings_without_end_whose_answers_nobody_reads(scene):
    """The sender is made to wait: what is not read fills the socket, then the memory for it, within its bound."""
    stream = b"".join(stream_parts(Ping())) * 1000
    with scene.client() as client:
        client.socket.settimeout(0.2)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(100):
                client.socket.sendall(stream)
        assert scene.bystander.goes_on()


def large_answers_that_nobody_reads(scene):
    with scene.client() as client:
        for number in range(100):
            client.send(submit(number, "x" * 200_000))
        assert scene.bystander.goes_on()


def messages_of_children_over_a_stream(scene):
    for message in FORGED:
        with scene.client() as client, scene.control() as control:
            client.send(message)
            assert rejected(client.receive().message) == f"{type(message).__name__} is not for this socket"
            control.send(message)
            assert rejected(control.receive().message) == f"{type(message).__name__} is not for this socket"


def places_in_mailboxes_of_others(scene):
    """The bystander has some: whatever number is named, it is not this client's."""
    with scene.client() as client:
        for number in range(200):
            client.send(submit(number, 1, reply=[number, 0, 1 << 20]))
        said = [client.receive().message for _ in range(400)]
    failed = [one for one in said if isinstance(one, Failed)]
    assert all(one.error["message"].endswith(f"mailbox {one.request} is not yours") for one in failed)
    assert len(failed) == 200


def regions_of_others(scene):
    for message, complaint in [
        (RegionsFilled([1]), "region 1 is not yours to fill"),
        (NeedRegions([[-1, b"", False]]), "a region of -1 bytes"),
        (NeedRegions([[4096]]), "must be [size, digest, whether it is on a GPU]"),
        (NeedRegions([[4096, b"", True]]), "a region on a GPU, of a device that is none"),
        (NeedRegions([[(1 << 64) - 1, b"", False]]), "what is handed over needs"),
    ]:
        with scene.control() as control:
            control.send(message)
            assert complaint in rejected(control.receive().message)


def descriptors_that_nobody_asked_for(scene):
    """They are closed, wherever they come."""
    null = os.open(os.devnull, os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 200))]
    try:
        for count, complaint in ((0, "200 fds came"), (253, "with 200 fds instead of 253")):
            with scene.control() as control:
                control.socket.sendmsg(stream_parts(Admit(), (), count), rights)
                while not isinstance(message := control.receive().message, Refused):
                    continue
                assert complaint in rejected(message)
        with scene.client() as client:
            client.socket.sendmsg(stream_parts(Ping()), rights)
            assert client.receive() is not None
    finally:
        os.close(null)


def queries_of_nothing(scene):
    with scene.client() as client:
        for number, topic in enumerate(("", "secrets", "\0" * 1000, "models/../status")):
            client.send(Query(number, topic))
            failed = client.receive().message
            assert isinstance(failed, Failed)
            assert "known are models, memory and status" in failed.error["message"]


OVER_TCP = [
    another_version, strangers_who_say_nonsense, too_many_frames, a_header_beyond_the_limit,
    a_header_of_empty_lists, a_frame_of_four_exabytes, half_a_greeting_and_another_protocol,
    messages_of_children, code_where_values_travel, numbers_of_somebody_elses_requests,
    one_number_for_two_requests, fields_that_cannot_be, places_as_deep_as_can_be_read,
]  # fmt: skip
OVER_STREAMS = [
    another_version_of_a_stream, messages_that_never_end, many_who_connect_and_say_nothing,
    half_a_message_and_gone, pings_without_end_whose_answers_nobody_reads, large_answers_that_nobody_reads,
    messages_of_children_over_a_stream, places_in_mailboxes_of_others, regions_of_others,
    descriptors_that_nobody_asked_for, queries_of_nothing,
]  # fmt: skip


@pytest.mark.parametrize("acts", [OVER_TCP, OVER_STREAMS], ids=["tcp", "streams"])
def test_nobody_is_harmed_by_somebody_elses(scene, acts):
    assert scene.bystander.goes_on()
    fds, own_bytes = scene.footprint()
    for act in acts:
        act(scene)
        assert scene.bystander.goes_on(), act.__name__
    assert wait_until(lambda: scene.bystander.pool.status().clients == 1)
    assert wait_until(lambda: scene.process.num_fds() <= fds), (fds, scene.process.num_fds())
    assert wait_until(lambda: scene.footprint()[1] < own_bytes + _KEPT_BYTES), (own_bytes, scene.footprint())
    assert scene.bystander.pool.status().unanswered <= 1
