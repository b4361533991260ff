"""The process that serves metrics and health over HTTP: ``python -m onecopy.pool.metrics_server``.

It is a client of the pool like others, in a process of its own: whatever is asked of it, and however often, the
supervisor is asked at most once a second, and answers nobody later for it.

    GET /metrics        the pool in Prometheus's format
    GET /health/live    200 if the supervisor answers, else 503
    GET /health/ready   200 if every warm model was loaded and a worker is there; else 503, and why
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import time
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ..protocol.errors import PoolError, SupervisorLost
from .client import Pool
from .lines import do_without_torch
from .memory_views import Told
from .metrics import Metrics, complaints

#: What was told so lately is told again.
_FRESH_S: Final = 1.0
#: A supervisor that does not answer for so long is not alive.
_ANSWER_S: Final = 5.0
#: A connection may take so long from its first byte to the last of its answer.
_CONNECTION_S: Final = 10.0
#: So many there may be at once; a further one is hung up on.
_MOST_CONNECTIONS: Final = 32
#: What a request may have, its headers included.
_MOST_REQUEST_BYTES: Final = 8192

_STATUSES: Final = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable",
}  # fmt: skip
_PLAIN: Final = "text/plain; charset=utf-8"


class _Answer(NamedTuple):
    status: int
    body: bytes
    kind: str = _PLAIN


class MetricsServer:
    """Answers HTTP requests.

    Args:
        pool: whose metrics they are.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._asking: asyncio.Future[Told] | None = None
        self._connections = 0
        self._gone = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Serve until the supervisor, which holds the other end of standard input, or its connection is gone."""
        asyncio.get_running_loop().add_reader(0, self._gone.set)
        server = await asyncio.start_server(self._connected, sock=listener, limit=_MOST_REQUEST_BYTES)
        await self._gone.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all has gone
        try:
            async with asyncio.timeout(_CONNECTION_S):
                await self._answer_one(reader, writer)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):  # it hung up, or took too long
            writer.transport.abort()
        finally:
            self._connections -= 1

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            answer, is_head = _Answer(400, b"a request may have 8 KiB\n"), False
        else:
            is_head = head.startswith(b"HEAD ")
            answer = await self._answer(head.decode("latin-1"))
        lines = (
            f"HTTP/1.1 {answer.status} {_STATUSES[answer.status]}\r\nContent-Type: {answer.kind}\r\n"
            f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(lines.encode("latin-1") + (b"" if is_head else answer.body))
        await writer.drain()

    async def _answer(self, head: str) -> _Answer:
        first, *headers = head.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _Answer(400, b"this is no request of HTTP/1.1\n")
        if words[0] not in ("GET", "HEAD"):
            return _Answer(405, b"only GET and HEAD are answered\n")
        path = words[1].partition("?")[0]
        if path not in ("/metrics", "/health/live", "/health/ready"):
            return _Answer(404, b"there are /metrics, /health/live and /health/ready\n")
        try:
            told = await self._told()
        except (PoolError, TimeoutError) as error:
            if isinstance(error, SupervisorLost):  # for good: the supervisor starts another of these
                self._gone.set()
            return _Answer(503, f"the supervisor does not answer: {error}\n".encode())
        if path == "/metrics":
            return _metrics(told, headers)
        found = complaints(told.status) if path == "/health/ready" else []
        return _Answer(503 if found else 200, "\n".join([*found, ""] if found else ["ok", ""]).encode())

    async def _told(self) -> Told:
        """Return what the pool tells; all who want to know meanwhile wait for the same answer.

        Raises:
            PoolError, TimeoutError: it tells nothing.
        """
        asking = self._asking
        if asking is None or (asking.done() and not _is_fresh(asking)):
            asking = self._asking = asyncio.ensure_future(asyncio.to_thread(self._ask))
        return await asyncio.wait_for(asyncio.shield(asking), _ANSWER_S)

    def _ask(self) -> Told:
        return Told(time.monotonic(), self._pool.status(), self._pool.memory())


def _is_fresh(told: asyncio.Future[Told]) -> bool:
    return told.exception() is None and time.monotonic() - told.result().at_s < _FRESH_S


def _metrics(told: Told, headers: list[str]) -> _Answer:
    accept = next((line[7:] for line in headers if line.lower().startswith("accept:")), "")
    encode, kind = choose_encoder(accept.strip())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Metrics(told))
    return _Answer(200, encode(registry), kind)


def main() -> int:
    """Serve the metrics of a pool on a socket that listens already; return the exit code."""
    parser = argparse.ArgumentParser(prog="onecopy.pool.metrics_server")
    parser.add_argument("--fd", type=int, required=True, help="socket that listens")
    parser.add_argument("--endpoint", required=True, help="of the pool")
    options = parser.parse_args()
    do_without_torch()
    try:
        pool = Pool.connect(options.endpoint)
    except PoolError as error:
        print(f"onecopy: metrics: {error}", file=sys.stderr)  # noqa: T201
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(MetricsServer(pool).serve(socket.socket(fileno=options.fd)))
    # A thread may wait for an answer that will never come.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
