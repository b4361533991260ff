"""The client of HTTP servers: answers that come in pieces, errors, connections that are used again."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.clients import HttpClient, HttpError, Reply

HEAD = b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Length: 5\r\n\r\n"


@given(st.integers(1, len(HEAD) + 4))
def test_an_answer_is_whole_when_its_last_byte_has_come(cut):
    whole = HEAD + b"hello"
    reply = Reply()
    assert not reply.feed(whole[:cut])
    assert reply.feed(whole[cut:])
    assert (reply.status, reply.body) == (200, b"hello")


def test_an_answer_that_does_not_say_its_length_is_refused():
    with pytest.raises(HttpError, match="without a length"):
        Reply().feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello")


def test_a_connection_that_ends_early_is_an_error():
    reply = Reply()
    reply.feed(HEAD)
    with pytest.raises(HttpError, match="ended"):
        reply.feed(b"")


class Doubling(BaseHTTPRequestHandler):
    """Doubles numbers; an empty request is refused."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set] = set()

    def do_POST(self):
        self.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = (2 * np.frombuffer(body, np.float32)).tobytes() or b"nothing"
        self.send_response(200 if body else 400)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def client():
    Doubling.connections.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Doubling) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        client = HttpClient(server.server_port, "/")
        yield client
        client.close()
        server.shutdown()
        thread.join()


def test_calls_use_one_connection_again(client):
    for size in (1, 3, 1 << 20):
        assert client.call(np.ones(size, np.float32)).tolist() == [2.0] * size
    assert len(Doubling.connections) == 1


def test_requests_under_way_have_a_connection_each(client):
    for number in range(3):
        client.submit(np.full(2, number, np.float32), number)
    found = {}
    while len(found) < 3:
        found |= {answer.number: answer.value.tolist() for answer in client.wait(5)}
    assert found == {0: [0, 0], 1: [2, 2], 2: [4, 4]}
    assert len(Doubling.connections) == 3


def test_what_a_server_refuses_is_told(client):
    with pytest.raises(HttpError, match="400: b'nothing'"):
        client.call(np.empty(0, np.float32))
    client.submit(np.empty(0, np.float32), 1)
    answers = []
    while not answers:
        answers = client.wait(5)
    assert isinstance(answers[0].value, HttpError)
