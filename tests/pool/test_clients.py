"""The supervisor's end of both transports, in a thread: who is let in, slow readers, peers that break rules."""

from __future__ import annotations

import array
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import request_models
import zmq
from leftovers import wait_until
from onecopy.pool import InvalidRequest, Pool
from onecopy.pool.control import ControlSocket, connect
from onecopy.pool.supervisor import clients as clients_module
from onecopy.pool.supervisor.clients import Clients
from onecopy.pool.supervisor.clients_unix import UnixServer
from onecopy.pool.supervisor.clients_zmq import ZmqServer, ipc_endpoint
from onecopy.pool.supervisor.control import ControlServer
from onecopy.pool.supervisor.reactor import Reactor
from onecopy.protocol.channel import Channel
from onecopy.protocol.frames import multipart, stream_parts, unpack_header
from onecopy.protocol.messages import (
    Admit,
    Cancel,
    Goodbye,
    Hello,
    Item,
    Ping,
    Pong,
    Query,
    Rejected,
    Released,
    Welcome,
)


class Server:
    """Everything of a supervisor that clients meet; a `Query` is answered by as many items as its topic says."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.joined, self.left, self.handled = [], [], []
        self.reactor = Reactor()
        self.clients = Clients(
            "pool",
            2,
            received=self._received,
            joined=lambda peer, _: self.joined.append(peer),
            left=self.left.append,
        )
        self.unix = UnixServer(self.clients, self.reactor)
        self.zmq = ZmqServer(self.clients, self.reactor)
        self.zmq.bind("ipc", ipc_endpoint(f"{folder}/requests"))
        self.control = ControlServer(self.reactor, received=self._from_caller, ended=lambda _: None)
        self.control.listen(f"{folder}/control")
        self._calls = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self.reactor.watch(self._wake, self._call)
        self._thread = threading.Thread(target=self.reactor.run, args=(lambda: float("inf"), lambda: None))
        self._thread.start()

    def _received(self, peer, message, buffers):
        self.handled.append(message)
        if not isinstance(message, Query):
            raise InvalidRequest(f"{type(message).__name__} is not for this socket")
        count, size, *_ = map(int, message.topic.split())
        for number in range(count):
            self.clients.send(peer, Item(number, b"x" * size), buffers)

    def _from_caller(self, connection, delivery):
        assert isinstance(delivery.message, Hello)
        self.control.release(connection)
        self.unix.add(connection.channel, connection.pid, connection.pidfd, delivery.message)

    def call(self, function):
        """Call something in the thread of the server."""
        future = Future()
        self._calls.put((function, future))
        os.eventfd_write(self._wake, 1)
        return future.result(20)

    def _call(self):
        os.eventfd_read(self._wake)
        function, future = self._calls.get()
        future.set_result(function())

    def stop(self):
        if self._thread.is_alive():
            self.call(self.reactor.stop)
            self._thread.join()

    def close(self):
        self.stop()
        self.unix.close(0)
        self.zmq.close(0)
        self.control.close()
        self.reactor.close()
        os.close(self._wake)


class UnixClient:
    """Talks over a unix stream."""

    transport = "unix"

    def __init__(self, server, *, slow=False):
        sock = connect(server.folder)
        sock.settimeout(20)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self.channel = Channel(sock)

    def send(self, message, buffers=()):
        self.channel.send(message, buffers)

    def send_nonsense(self):
        self.channel.socket.sendall(b"nonsense")

    def receive(self):
        delivery = self.channel.receive()
        return delivery and delivery.message

    def close(self):
        self.channel.close()


class ZmqClient:
    """Talks over ZeroMQ."""

    transport = "ipc"

    def __init__(self, server, *, slow=False):
        self.context = zmq.Context()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.set(zmq.RCVTIMEO, 20_000)
        if slow:
            self.dealer.set(zmq.RCVHWM, 1)
        self.dealer.connect(ipc_endpoint(f"{server.folder}/requests"))

    def send(self, message, buffers=()):
        self.dealer.send_multipart(multipart(message, buffers))

    def send_nonsense(self):
        self.dealer.send(b"nonsense")

    def receive(self):
        return unpack_header(self.dealer.recv_multipart()[0])

    def close(self):
        self.dealer.close(100)
        self.context.term()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture(params=[UnixClient, ZmqClient], ids=["unix", "zmq"])
def kind(request):
    return request.param


@contextmanager
def greeted(kind, server, **options):
    """A client that the server knows."""
    client = kind(server, **options)
    try:
        client.send(Hello(server.call(server.clients.make_token), os.getpid()))
        assert client.receive() == Welcome("pool", 2)
        yield client
    finally:
        client.close()


def reason(client):
    """Why the client is rejected, after whatever comes before."""
    while not isinstance(message := client.receive(), Rejected):
        assert message is not None, "hung up without a reason"
    return message.error["message"]


# --- being let in --------------------------------------------------------------------------------------------


def test_a_token_lets_one_client_in_once(kind, server):
    with greeted(kind, server) as first:
        token = server.call(server.clients.make_token)
        second, third = kind(server), kind(server)
        second.send(Hello(token, 1))
        assert second.receive() == Welcome("pool", 2)
        third.send(Hello(token, 1))
        assert reason(third) == "this token is unknown or used up; ask the control socket for one"
        first.send(Ping())
        assert first.receive() == Pong()
        assert len(server.clients) == 2
        second.close()
        third.close()


def test_a_token_of_one_transport_is_as_good_for_the_other(server):
    with greeted(UnixClient, server), greeted(ZmqClient, server):
        assert sorted(peer.transport for peer in server.joined) == ["ipc", "unix"]


def test_a_token_that_nobody_presents_in_time_is_good_for_nothing(kind, server, monkeypatch):
    monkeypatch.setattr(clients_module, "TOKEN_S", -1.0)
    token = server.call(server.clients.make_token)
    server.call(server.clients.make_token)
    client = kind(server)
    client.send(Hello(token, 1))
    assert "unknown or used up" in reason(client)
    client.close()


def test_there_can_be_only_so_many_clients(kind, server, monkeypatch):
    monkeypatch.setattr(clients_module, "MAX_CLIENTS", 1)
    with greeted(kind, server) as first:
        second = kind(server)
        second.send(Hello(server.call(server.clients.make_token), 1))
        assert reason(second) == "1 clients are connected, which is the most there can be"
        second.close()
        first.send(Goodbye())
        assert wait_until(lambda: len(server.clients) == 0)
    with greeted(kind, server):
        assert len(server.clients) == 1


def test_over_zeromq_the_first_message_must_be_hello(server):
    client = ZmqClient(server)
    client.send(Ping())
    assert reason(client) == "say hello first"
    client.close()


def test_what_comes_in_one_piece_with_the_hello_is_handled_after_it(server):
    client = UnixClient(server)
    messages = [Hello(server.call(server.clients.make_token), 1), Query(1, "2 10"), Ping()]
    client.channel.socket.sendall(b"".join(bytes(part) for one in messages for part in stream_parts(one)))
    assert [client.receive() for _ in range(4)] == [
        Welcome("pool", 2),
        Item(0, b"x" * 10),
        Item(1, b"x" * 10),
        Pong(),
    ]
    client.close()


# --- the end -------------------------------------------------------------------------------------------------


def test_a_client_is_forgotten_once_when_it_says_goodbye_and_when_it_hangs_up(kind, server):
    with greeted(kind, server) as client:
        client.send(Goodbye())
        assert wait_until(lambda: server.left == server.joined)
    with greeted(UnixClient, server):
        pass
    assert wait_until(lambda: server.left == server.joined)
    assert len(server.left) == 2
    assert len(server.clients) == 0


def test_a_second_hello_ends_the_connection(kind, server):
    with greeted(kind, server) as client:
        client.send(Hello(server.call(server.clients.make_token), 1))
        assert reason(client) == "Hello is not for this socket"
        assert wait_until(lambda: server.left == server.joined)


def test_what_is_no_message_ends_the_connection_of_its_sender_alone(kind, server):
    with greeted(kind, server) as bystander, greeted(kind, server) as client:
        client.send(Ping())
        client.send_nonsense()
        assert client.receive() == Pong()
        assert "wire version" in reason(client) if kind is UnixClient else "broken header" in reason(client)
        assert wait_until(lambda: len(server.left) == 1)
        if kind is UnixClient:
            assert client.receive() is None
        bystander.send(Query(1, "1 5"))
        assert bystander.receive() == Item(0, b"x" * 5)


def test_descriptors_are_dropped_by_the_kernel_and_a_message_that_counts_them_is_refused(server):
    with greeted(UnixClient, server) as client:
        before = len(os.listdir("/proc/self/fd"))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))]
        client.channel.socket.sendmsg(stream_parts(Ping()), rights)
        assert client.receive() == Pong()
        assert len(os.listdir("/proc/self/fd")) == before
        client.channel.socket.sendmsg(stream_parts(Ping(), (), 2), rights)
        assert reason(client) == "Ping came with 0 fds instead of 2"


# --- slow readers and hasty writers --------------------------------------------------------------------------


def test_a_slow_reader_gets_everything_in_order(kind, server):
    with greeted(kind, server, slow=True) as client:
        client.send(Query(1, "3000 2000"))
        client.send(Query(2, "5 10"), [bytes(60_000), b"small"])
        assert wait_until(lambda: len(server.handled) == 2)
        arrived = [client.receive() for _ in range(3005)]
    assert [one.request for one in arrived] == [*range(3000), *range(5)]


@pytest.mark.parametrize(
    ("messages", "size_bytes", "size"), [(1500, 1 << 30, 300_000), (1 << 20, 1 << 20, 300_000)]
)
def test_whoever_does_not_read_is_disconnected_by_name(server, monkeypatch, messages, size_bytes, size):
    monkeypatch.setattr(clients_module, "MAX_OUTBOX_MESSAGES", messages)
    monkeypatch.setattr(clients_module, "MAX_OUTBOX_BYTES", size_bytes)
    with greeted(UnixClient, server) as bystander, greeted(UnixClient, server) as client:
        client.send(Query(1, f"2000 {size}"))
        assert wait_until(lambda: len(server.left) == 1)
        assert len(server.clients) == 1
        for _ in range(3):  # what it goes on to send is of no matter
            client.send(Query(2, "1 1"))
        bystander.send(Query(3, "1 5"))
        assert bystander.receive() == Item(0, b"x" * 5)
        assert wait_until(lambda: sum(peer.channel.unsent_bytes for peer in server.joined) < 2_000_000)
        assert reason(client).endswith("wait for this client, which does not read them; it is disconnected")
        assert client.receive() is None
        assert Query(2, "1 1") not in server.handled


def test_over_zeromq_too_and_it_is_told_when_it_speaks_again(server, monkeypatch):
    monkeypatch.setattr(clients_module, "MAX_OUTBOX_MESSAGES", 100)
    with greeted(ZmqClient, server, slow=True) as client:
        client.send(Query(1, "4000 50000"))
        assert wait_until(lambda: len(server.left) == 1)
        client.send(Ping())
        while not isinstance(message := client.receive(), Rejected):  # for which there is room at some time
            client.send(Ping())
        assert message.error["message"] == "say hello first"


def test_a_client_that_is_told_why_and_never_reads_it_is_gone_when_it_hangs_up(server, monkeypatch):
    monkeypatch.setattr(clients_module, "MAX_OUTBOX_BYTES", 1 << 20)
    before = len(os.listdir("/proc/self/fd"))
    with greeted(UnixClient, server) as client:
        client.send(Query(1, "100 300000"))
        assert wait_until(lambda: len(server.left) == 1)
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_a_client_that_cannot_be_written_to_is_gone(server):
    with greeted(UnixClient, server) as client:
        client.send(Query(1, "100 100000"))
        assert wait_until(lambda: len(server.handled) == 1)
        client.channel.socket.shutdown(socket.SHUT_RD)
        while client.receive() is not None:  # what had come before that
            continue
        assert wait_until(lambda: len(server.left) == 1)


def test_a_client_that_sends_much_at_once_does_not_keep_others_waiting(server):
    with greeted(UnixClient, server) as hasty, greeted(UnixClient, server) as other:
        gate, reached = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as thread:
            holding = thread.submit(server.call, lambda: (reached.set(), gate.wait(20)))
            reached.wait()
            stream = b"".join(stream_parts(Query(number, "0 0"))[0] for number in range(3000))
            hasty.channel.socket.sendall(stream)
            other.send(Query(0, "0 0 0"))
            gate.set()
            holding.result()
        assert wait_until(lambda: len(server.handled) == 3001)
    assert server.handled.index(Query(0, "0 0 0")) < 200
    assert [one.request for one in server.handled if one.topic == "0 0"] == list(range(3000))


def test_what_waits_for_a_slow_reader_is_sent_before_the_server_ends(server):
    with greeted(UnixClient, server) as client, ThreadPoolExecutor(1) as thread:
        client.send(Query(1, "50 100000"))
        assert wait_until(lambda: len(server.handled) == 1)
        server.stop()
        closing = thread.submit(server.unix.close, 20_000)
        assert [client.receive().request for _ in range(50)] == list(range(50))
        assert client.receive() is None
        closing.result()


def test_the_server_does_not_wait_long_for_a_reader_that_does_not_read(server):
    with greeted(UnixClient, server) as client:
        client.send(Query(1, "50 100000"))
        assert wait_until(lambda: len(server.handled) == 1)
        server.stop()
        server.unix.close(10)
        assert client.receive() == Item(0, b"x" * 100_000)


# --- a whole pool --------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    with Pool({"model": request_models.Quick()}, workers=1) as pool:
        yield pool


def test_local_clients_talk_over_unix_streams(pool):
    assert pool.run("model", 1) == 1
    assert type(pool._connection._link).__name__ == "UnixLink"
    with Pool.connect(pool.endpoint) as other:
        assert other.status().clients == 2


def test_a_connection_that_begins_with_something_else_cannot_ask_for_runs(pool):
    with ControlSocket(pool._connection.directory) as control, pytest.raises(InvalidRequest, match="not for this"):
        control.ask(Cancel(1, False))
    with ControlSocket(pool._connection.directory) as control:
        control.ask(Admit())
        control.tell(Hello(b"no token", 1))
        answer = control._answer()
        assert isinstance(answer, Rejected)
        assert "unknown or used up" in answer.error["message"]
    assert pool.run("model", 2) == 2


def test_requests_wait_for_a_supervisor_that_is_stopped(pool):
    assert pool.run("model", 1) == 1
    pid = pool.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        futures = [pool.submit("model", [number, "x" * 1000]) for number in range(2000)]
        with pytest.raises(TimeoutError):
            futures[0].result(0.05)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [future.result()[0] for future in futures] == list(range(2000))


def test_what_was_sent_and_given_up_while_there_was_no_room_is_not_kept(pool):
    pid = pool.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        futures = [pool.submit("model", "x" * 1000) for _ in range(2000)]
        assert all(future.cancel() for future in futures)
        assert pool._connection._link.has_unsent
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait_until(lambda: not pool._connection._link.has_unsent)
    assert wait_until(lambda: pool.status().unanswered == 0)


HOLDS_ON = """
import os, sys, time
from onecopy.pool import Pool
pool = Pool.connect(sys.argv[1])
if os.fork() == 0:  # has the sockets too, and lives on
    time.sleep(60)
print("here", flush=True)
time.sleep(60)
"""


def test_a_client_that_is_killed_is_gone_though_a_fork_of_it_holds_its_sockets(pool):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_ON, pool.endpoint], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() == b"here\n"
        assert pool.status().clients == 2
        process.kill()
        assert wait_until(lambda: pool.status().clients == 1)
        os.killpg(process.pid, 0)  # the fork is still there
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


INTERRUPTED = """
import signal, sys, time
from onecopy.pool import Pool
pool = Pool.connect(sys.argv[1])
print("here", flush=True)
interrupts = 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003 + interrupts % 50 * 1e-4)
        for x in pool.map("model", range(10**6)):
            pass
    except (KeyboardInterrupt, RuntimeError):  # which is what becomes of it in a Condition of the standard library
        interrupts += 1
assert interrupts > 20, interrupts
assert pool.run("model", 5) == 5
pool.shutdown()
"""


def test_a_client_is_interrupted_again_and_again_and_its_pool_goes_on(pool):
    program = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)" + INTERRUPTED
    process = subprocess.run(
        [sys.executable, "-c", program, pool.endpoint], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr  # where Python says so if a finalizer was interrupted
    assert wait_until(lambda: pool.status().clients == 1)


def test_releasing_what_is_unknown_is_not_for_clients(pool):
    pool._connection._send(Released(1), ())
    with pytest.raises(InvalidRequest, match="Released is not for this socket"):
        pool.run("model", 1)
