"""Somebody who asks for too much, or goes without a word: it has an end, and others hardly notice."""

from __future__ import annotations

import os

import pytest
import zmq
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, Pool
from onecopy.pool.checks import read_size
from onecopy.pool.control import ControlSocket, connect
from onecopy.pool.lines import arguments, read_json
from onecopy.pool.memory.files import FileRegion
from onecopy.pool.sources import load_by_name
from onecopy.pool.supervisor.clients import Clients
from onecopy.protocol.channel import Channel
from onecopy.protocol.errors import PoolBusy
from onecopy.protocol.frames import multipart, unpack_header
from onecopy.protocol.limits import MAX_CLIENTS
from onecopy.protocol.messages import Admit, Admitted, Failed, Hello, LoadModel, Query, Refused, Reply, Welcome
from standalone import standalone

TOML = """
workers = 1
listen = ["tcp://127.0.0.1:*"]
[models.toys]
source = "toy_models:toys"
method = "echo"
"""


@pytest.fixture
def pool(tmp_path):
    with standalone(tmp_path, TOML) as served:
        assert wait_until(lambda: "tcp://" in served.log.read_text())
        pool = Pool.connect(served.endpoint)
        pool.served = served
        yield pool
        pool.shutdown()


def test_clients_over_tcp_that_go_without_a_word_are_forgotten(pool):
    import re

    endpoint = re.search(r"tcp://[\d.]+:\d+", pool.served.log.read_text())[0]
    with zmq.Context() as context:
        for _ in range(5):
            with context.socket(zmq.DEALER) as dealer:
                dealer.set(zmq.LINGER, 0)
                dealer.connect(endpoint)
                dealer.send_multipart(multipart(Hello(b"", 1)))
                assert isinstance(unpack_header(dealer.recv_multipart()[0]), Welcome)
        assert pool.status().clients == 6
    assert wait_until(lambda: pool.status().clients == 1)


def test_tokens_that_nobody_uses_have_an_end_and_go_with_who_asked_for_them(pool):
    channel = Channel(connect(pool.served.directory))
    channel.socket.setblocking(False)
    for _ in range(MAX_CLIENTS + 1):
        channel.send(Admit())
    answers = []

    def is_sent_away():
        channel.flush()
        answers.extend(one.message for one in channel.arrived(until_empty=True))
        return channel.is_at_end

    assert wait_until(is_sent_away)
    assert sum(isinstance(one, Admitted) for one in answers) <= MAX_CLIENTS
    refused = [one for one in answers if isinstance(one, Refused)]  # unless there was no room for that any more
    assert all("tokens were asked for and not used yet" in one.error["message"] for one in refused)
    assert pool.run("toys", 1) == 1
    channel.close()

    def is_let_in():
        try:
            Pool.connect(pool.served.endpoint).shutdown()
        except PoolBusy:
            return False
        return True

    assert wait_until(is_let_in)


def test_tokens_are_of_whoever_asked(monkeypatch):
    told = []
    clients = Clients("p", 1, received=print, joined=lambda peer, owner: told.append(owner), left=print)
    first, second = object(), object()
    tokens = [clients.make_token(owner) for owner in (first, second, first)]
    clients.void_tokens(first)
    assert list(clients._tokens) == [tokens[1]]
    monkeypatch.setattr("onecopy.pool.supervisor.clients.TOKEN_S", -1.0)
    clients.make_token(first)
    assert len(clients._tokens) == 1


def test_many_questions_about_memory_are_answered_or_refused_and_the_pool_goes_on(pool):
    control = Channel(connect(pool.served.directory))
    control.send(Admit())
    admitted = control.receive().message
    asking = Channel(connect(pool.served.directory))
    asking.send(Hello(admitted.token, os.getpid()))
    assert isinstance(asking.receive().message, Welcome)
    asking.socket.setblocking(False)
    for number in range(3000):
        asking.send(Query(number, "memory"))
    while asking.has_unsent:
        asking.flush()
    asking.socket.setblocking(True)
    answers = [asking.receive().message for _ in range(3000)]
    assert {type(one) for one in answers} <= {Reply, Failed}
    assert any(isinstance(one, Reply) for one in answers)
    assert all("wait already" in one.error["message"] for one in answers if isinstance(one, Failed))
    assert pool.run("toys", 1) == 1
    asking.close()
    control.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"example": [1, 2, 3]}, "its example must be the body and the buffers of a request, all bytes"),
        ({"example": [b"", [1, 2]]}, "its example must be the body and the buffers of a request, all bytes"),
        ({"options": {"method": 7}}, "method must be str, not int: 7"),
        ({"options": {"workspace": [1]}}, r"workspace must be str, not list: \[1\]"),
        ({"options": {"warm": 1}}, "warm must be bool, not int: 1"),
        ({"options": {"share": "2"}}, "share must be int or float, not str: '2'"),
        ({"options": {"devices": "cpu"}}, "devices must be list, not str: 'cpu'"),
        ({"options": {"devices": [["cpu"]]}}, r"devices must be names, not \['cpu'\]"),
        ({"options": {"replicas": 0}}, "replicas must be at least 1, not 0"),
        ({"options": {"size_bytes": -1}}, "size_bytes must be at least 0, not -1"),
        ({"options": {"part_of": "toys"}}, "part_of is an option that the pool alone gives"),
        ({"options": {"room": {"cpu": 1}}}, "room is an option that the pool alone gives"),
    ],
)
def test_a_model_with_what_cannot_be_is_refused_by_name(pool, change, said):
    from onecopy.pool import Model

    load = load_by_name("other", Model("toy_models:toys"), [], eager=True)
    changed = load._replace(**{**change, "options": {**load.options, **change.get("options", {})}})
    assert isinstance(changed, LoadModel)
    with ControlSocket(pool.served.directory) as control, pytest.raises(InvalidRequest, match=f"other: {said}"):
        control.ask(changed)
    assert pool.run("toys", 1) == 1


def test_files_that_are_not_open_to_be_read_are_no_regions(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 4096)
    for flags in (os.O_PATH, os.O_WRONLY):
        fd = os.open(path, flags)
        with pytest.raises(ValueError, match="was not opened to be read"):
            FileRegion.of(fd, str(path))
        os.close(fd)


def test_sizes_and_lines_that_are_too_much_are_refused():
    with pytest.raises(ConfigError, match="budget must be a number of bytes from 0"):
        read_size("budget", "9" * 400 + "GiB")
    with pytest.raises(InvalidRequest, match="nested deeper than 100 lists and objects"):
        arguments(read_json(b"[" * 500 + b"]" * 500), ".")
