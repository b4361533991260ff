"""The floor: a bare two-hop pyzmq relay, client -> ROUTER-ROUTER relay -> worker and back, three processes.

What any pool whose requests pass a supervisor over ZeroMQ must pay: two sockets, one unpacking of a header.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import zmq


def _relay(front: str, back: str) -> None:
    context = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    for router in (clients, workers):  # without a bound: a ROUTER drops what is above it, silently
        router.set_hwm(0)
    clients.bind(front)
    workers.bind(back)
    worker, _ = workers.recv_multipart()
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready is clients:
                client, header, body = clients.recv_multipart()
                msgpack.unpackb(header)
                workers.send_multipart([worker, client, header, body])
            else:
                _, client, header, body = workers.recv_multipart()
                msgpack.unpackb(header)
                clients.send_multipart([client, header, body])


def _worker(back: str) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(back)
    socket.send(b"here")
    while True:
        socket.send_multipart(socket.recv_multipart())


class Relay:
    """A client of the relay."""

    def __init__(self, front: str, body: bytes) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.connect(front)
        self._body = body
        self._header = msgpack.packb([1, 4, 1, "model", "", 0.0, 1])

    def one(self) -> None:
        """Send one request and wait for its answer."""
        self._socket.send_multipart([self._header, self._body])
        self._socket.recv_multipart()

    def pipelined(self, count: int) -> None:
        """Send many, then wait for all answers."""
        for _ in range(count):
            self._socket.send_multipart([self._header, self._body])
        for _ in range(count):
            self._socket.recv_multipart()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)


@contextmanager
def relay(body: bytes) -> Iterator[Relay]:
    """Start relay and worker; yield a client."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
        processes = [
            spawn.Process(target=_relay, args=(front, back), daemon=True),
            spawn.Process(target=_worker, args=(back,), daemon=True),
        ]
        for process in processes:
            process.start()
        client = Relay(front, body)
        client.one()  # waits until the worker has come
        try:
            yield client
        finally:
            client.close()
            for process in processes:
                process.kill()
                process.join()
