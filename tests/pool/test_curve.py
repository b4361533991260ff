"""Keys over tcp, with real sockets: who has the right ones gets in, all others are told why, and harm nobody."""

from __future__ import annotations

import os
import re
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import zmq
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, Pool, SupervisorLost
from onecopy.pool.keys import KeyFolder, key_folder, read_secret
from onecopy.protocol.frames import multipart
from onecopy.protocol.messages import Hello, LoadModel
from standalone import TOYS, onecopy, standalone
from zmq.auth import load_certificate

LISTEN = 'listen = ["tcp://0.0.0.0:*"]\nkeys = "./keys"\n'
#: More than this many handshakes may be under way without anybody noticing.
STRANGERS = 300


class Guarded:
    """A pool behind keys, and what its two clients have."""

    def __init__(self, folder, served):
        self.keys = KeyFolder(str(folder / "keys"))
        self.log = served.log
        self.local = served.endpoint
        assert wait_until(lambda: "listening at tcp://" in self.log.read_text())
        port = re.search(r"listening at tcp://0\.0\.0\.0:(\d+)", self.log.read_text())[1]
        self.tcp = f"tcp://127.0.0.1:{port}"
        self.issued = folder / "keys" / "issued"

    def connect(self, name="alice"):
        return Pool.connect(self.tcp, keys=str(self.issued / f"{name}.key_secret"))

    @contextmanager
    def dealer(self, keys=None):
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.set(zmq.LINGER, 0)
            if keys is not None:
                dealer.curve_publickey, dealer.curve_secretkey = keys.public.encode(), keys.secret.encode()
                dealer.curve_serverkey = keys.server.encode()
            dealer.connect(self.tcp)
            yield dealer


@pytest.fixture
def guarded(tmp_path):
    keys = KeyFolder(str(tmp_path / "keys"))
    assert keys.make()
    keys.issue("alice")
    keys.issue("bob")
    with standalone(tmp_path, LISTEN + TOYS) as served:
        yield Guarded(tmp_path, served)


def failure_of(pool):
    """Why a request failed, or nothing."""
    try:
        pool.run("toys", 3)
    except InvalidRequest as error:
        return error.message
    return ""


def test_clients_with_keys_get_in_and_their_requests_run(guarded):
    with guarded.connect() as alice, guarded.connect("bob") as bob:
        assert alice.run("toys", 3) == 9
        large = torch.arange(300_000.0)
        assert torch.equal(bob.model("toys", method="echo")(large), large)
    with Pool.connect(guarded.local) as local:
        assert wait_until(lambda: local.status().clients == 1)


def test_a_client_whose_key_is_not_known_is_refused_by_name_and_so_it_stands_in_the_log(guarded):
    other = KeyFolder(str(guarded.issued / "other"))
    other.make()
    file = other.issue("mallory")
    stolen = read_secret(guarded.issued / "alice.key_secret", of_client=True)
    mallory = read_secret(file, of_client=True)
    Path(file).write_text(Path(file).read_text().replace(mallory.server, stolen.server))  # the right server alone
    with pytest.raises(InvalidRequest, match="lets in no client with the public key " + re.escape(mallory.public)):
        Pool.connect(guarded.tcp, keys=file)
    wait_until(lambda: mallory.public in guarded.log.read_text())
    assert f"refused 127.0.0.1 with key {mallory.public}" in guarded.log.read_text()


def test_a_server_that_has_another_key_gets_nothing_from_a_client(guarded, tmp_path):
    other = KeyFolder(str(tmp_path / "other"))
    other.make()
    file = other.issue("alice")
    with pytest.raises(InvalidRequest, match=r"its server key is not \S{40}, which yours are for"):
        Pool.connect(guarded.tcp, keys=file)


def test_who_has_no_keys_is_told_that_there_are_some_and_gets_nothing(guarded, monkeypatch):
    with pytest.raises(InvalidRequest, match="it may ask for keys"):
        Pool.connect(guarded.tcp)
    with guarded.dealer() as dealer:
        dealer.send_multipart(multipart(Hello(b"", 1)))
        assert not dealer.poll(500)
    monkeypatch.setenv("ONECOPY_KEYS", str(guarded.issued / "alice.key_secret"))
    with Pool.connect(guarded.tcp) as pool:
        assert pool.run("toys", 2) == 4


def test_keys_are_not_left_away_for_a_server_that_asks_for_none(guarded, tmp_path):
    (tmp_path / "open").mkdir()
    toml = 'name = "open"\nlisten = ["tcp://127.0.0.1:*"]\n' + TOYS
    with ExitStack() as stack:
        # Both write their log where their configuration is; the first one serves under the default name.
        folder = tmp_path / "open"
        process = stack.enter_context(standalone(folder, toml))
        assert wait_until(lambda: "listening at" in process.log.read_text())
        endpoint = re.search(r"tcp://127[\d.]+:\d+", process.log.read_text())[0]
        with pytest.raises(InvalidRequest, match="asks for no keys"):
            Pool.connect(endpoint, keys=str(guarded.issued / "alice.key_secret"))


def test_a_key_that_is_revoked_opens_nothing_any_more_and_ends_what_it_had_opened(guarded):
    with guarded.connect() as alice, guarded.connect("bob") as bob:
        assert alice.run("toys", 3) == 9
        assert onecopy("keys", "revoke", guarded.keys.path, "alice").returncode == 0
        with pytest.raises(ConfigError, match=r"alice.key_secret: No such file"):
            guarded.connect()
        assert wait_until(lambda: "revoked" in failure_of(alice))  # when the supervisor looks at who is there
        assert bob.run("toys", 3) == 9
    assert guarded.keys.issue("alice")  # another one, made while the pool serves
    with guarded.connect() as alice:
        assert alice.run("toys", 4) == 16


def test_who_was_sent_away_is_not_let_in_by_another_hello_over_the_same_connection(guarded):
    keys = read_secret(str(guarded.issued / "bob.key_secret"), of_client=True)
    with guarded.dealer(keys) as dealer:
        dealer.set(zmq.RCVTIMEO, 20_000)
        dealer.send_multipart(multipart(Hello(b"", 1)))
        dealer.recv_multipart()
        guarded.keys.revoke("bob")
        while b"revoked" not in dealer.recv_multipart()[0]:  # until the supervisor looks at who is there
            continue
        dealer.send_multipart(multipart(Hello(b"", 1)))
        assert b"revoked" in dealer.recv_multipart()[0]


def test_a_client_that_picks_its_own_identity_is_refused(guarded):
    """Whoever knew it could take its place, and its answers, once it is away."""
    keys = read_secret(str(guarded.issued / "bob.key_secret"), of_client=True)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.set(zmq.RCVTIMEO, 20_000)
        dealer.routing_id = b"bob"
        dealer.curve_publickey, dealer.curve_secretkey = keys.public.encode(), keys.secret.encode()
        dealer.curve_serverkey = keys.server.encode()
        dealer.connect(guarded.tcp)
        dealer.send_multipart(multipart(Hello(b"", 1)))
        assert b"leaves its routing id to ZeroMQ" in dealer.recv_multipart()[0]


def test_commands_take_keys_too(guarded):
    asks = ("run", "toys", "--arg", "5", "--endpoint", guarded.tcp)
    done = onecopy(*asks, "--keys", guarded.issued / "alice.key_secret")
    assert (done.stdout, done.stderr) == ("25\n", "")
    assert "it may ask for keys" in onecopy(*asks).stderr
    told = onecopy("status", "--json", "--endpoint", guarded.tcp, "--keys", guarded.issued / "bob.key_secret")
    assert '"clients": 1' in told.stdout


def test_keys_let_no_code_in(guarded):
    with guarded.connect() as alice:
        for attempt in (alice.load, alice.attach, alice.unload):
            with pytest.raises(InvalidRequest, match="code, memory and control never travel over tcp"):
                attempt("toys", *[print] * (attempt == alice.load))
    keys = read_secret(str(guarded.issued / "bob.key_secret"), of_client=True)
    load = LoadModel("evil", "factory", {}, [], b"cos\nsystem\n.", [], [], [], True, [])
    with guarded.dealer(keys) as dealer:
        dealer.set(zmq.RCVTIMEO, 20_000)
        dealer.send_multipart(multipart(Hello(b"", 1)))
        dealer.recv_multipart()
        dealer.send_multipart(multipart(load))
        assert b"LoadModel is not for this socket" in dealer.recv_multipart()[0]


def test_strangers_without_number_harm_nobody(guarded):
    """Some say nothing, some nonsense, some have a key that is not known; who has one gets answers meanwhile."""
    other = KeyFolder(str(guarded.issued / "other"))
    other.make()
    mallory = read_secret(other.issue("mallory"), of_client=True)
    alice = read_secret(str(guarded.issued / "alice.key_secret"), of_client=True)
    unknown = type(mallory)(mallory.public, mallory.secret, alice.server)
    host, port = guarded.tcp.removeprefix("tcp://").split(":")
    with ExitStack() as stack:
        pool = stack.enter_context(guarded.connect())
        for number in range(STRANGERS):
            sock = stack.enter_context(socket.create_connection((host, int(port)), 20))
            sock.sendall((b"", b"GET / HTTP/1.1\r\n\r\n", bytes([255]) + bytes(8) + b"\x7f\x03")[number % 3])
        context = stack.enter_context(zmq.Context())
        for _ in range(50):
            dealer = stack.enter_context(context.socket(zmq.DEALER))
            dealer.set(zmq.LINGER, 0)
            dealer.curve_publickey, dealer.curve_secretkey = unknown.public.encode(), unknown.secret.encode()
            dealer.curve_serverkey = unknown.server.encode()
            dealer.connect(guarded.tcp)
        for number in range(200):
            assert pool.run("toys", number) == number * number
        assert wait_until(lambda: "refused 127.0.0.1" in guarded.log.read_text())
        assert guarded.log.read_text().count("refused 127.0.0.1") < 5
        with guarded.connect("bob") as bob:
            assert bob.run("toys", 3) == 9
    with Pool.connect(guarded.local) as local:
        assert wait_until(lambda: local.status().clients == 1)


# --- files -------------------------------------------------------------------------------------------------------


def test_commands_make_list_and_revoke_keys_that_zmq_auth_can_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = onecopy("keys", "new", "lab", "--client", "alice", "--client", "bob")
    folder = tmp_path / "onecopy" / "keys" / "lab"
    assert made.stdout.splitlines() == [
        f"alice: {folder}/issued/alice.key_secret",
        f"bob: {folder}/issued/bob.key_secret",
        f'for pool.toml: keys = "{folder}"',
    ]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "clients")} == {0o700}
    public, secret = load_certificate(folder / "issued" / "alice.key_secret")
    assert load_certificate(folder / "clients" / "alice.key") == (public, None)
    assert secret is not None
    again = onecopy("keys", "new", "lab", "--client", "bob")
    assert (again.returncode, "has keys of 'bob' already" in again.stderr) == (2, True)
    assert onecopy("keys", "revoke", "lab", "bob").returncode == 0
    assert onecopy("keys", "list", "lab", "--json").stdout == f'{{"alice": "{public.decode()}"}}\n'
    assert public.decode() in onecopy("keys", "list", "lab").stdout
    unknown = onecopy("keys", "revoke", "lab", "carol")
    assert (unknown.returncode, "carol.key" in unknown.stderr) == (2, True)


def test_keys_of_zmq_auth_will_do(tmp_path):
    from zmq.auth import create_certificates

    folder = KeyFolder(str(tmp_path / "keys"))
    folder.make()
    create_certificates(tmp_path / "keys" / "clients", "theirs")
    public, _ = load_certificate(tmp_path / "keys" / "clients" / "theirs.key")
    assert folder.clients() == {"theirs": public.decode()}
    assert folder.known() == {public.decode()}


def settle(clients):
    """Let a folder, and all that is in it, have been changed long ago."""
    for path in (*clients.iterdir(), clients):
        os.utime(path, (1e9, 1e9))


def test_a_key_that_is_edited_in_place_counts_within_a_second(tmp_path):
    now = 0.0
    folder = KeyFolder(str(tmp_path / "keys"), clock=lambda: now)
    folder.make()
    for name in ("alice", "bob"):
        folder.issue(name)
    clients = tmp_path / "keys" / "clients"
    settle(clients)
    before = folder.known()
    bob = (clients / "bob.key").read_text()
    (clients / "alice.key").write_text(bob)
    os.utime(clients / "alice.key", (1e9 + 1, 1e9 + 1))  # long ago, too: only that it is another time counts
    assert folder.known() == before
    now = 1.0
    assert folder.known() == before - {read_secret(str(tmp_path / "keys" / "issued" / "alice.key_secret")).public}
    (clients / "bob.key").write_text("revoked")
    now = 2.0
    assert len(folder.known()) == 1, "the other has the same"
    (clients / "alice.key").write_text("revoked")
    now = 3.0
    assert folder.known() == set()


def test_a_folder_that_has_not_changed_for_long_is_not_read_again(tmp_path):
    folder = KeyFolder(str(tmp_path / "keys"), clock=lambda: 0.0)
    folder.make()
    folder.issue("alice")
    clients = tmp_path / "keys" / "clients"
    (clients / "broken.key").write_text("nonsense")
    settle(clients)
    (alice,) = folder.known()
    (clients / "alice.key").write_text("unseen for a second, as no file was added or removed")
    assert folder.known() == {alice}
    folder.issue("bob")
    assert folder.known() == {read_secret(str(tmp_path / "keys" / "issued" / "bob.key_secret")).public}
    folder.revoke("bob")  # at the same moment, as far as some clocks tell
    assert folder.known() == set()
    clients.rename(tmp_path / "away")
    assert folder.known() == set()


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://10.0.0.1:*", "tcp://eth0:5555"])
def test_beyond_loopback_nobody_listens_without_keys(tmp_path, endpoint):
    config = tmp_path / "pool.toml"
    config.write_text(TOYS)
    refused = onecopy("serve", config, "--listen", endpoint)
    assert (refused.returncode, "only loopback is allowed without keys" in refused.stderr) == (2, True)


def test_keys_that_are_not_there_or_that_others_can_get_at_are_not_used(tmp_path):
    config = tmp_path / "pool.toml"
    config.write_text(LISTEN + TOYS)
    refused = onecopy("serve", config)
    assert (refused.returncode, "`onecopy keys new` makes keys" in refused.stderr) == (2, True)
    keys = KeyFolder(str(tmp_path / "keys"))
    keys.make()
    file = keys.issue("alice")
    for path, mode, complaint in (
        (tmp_path / "keys" / "server.key_secret", 0o640, "is a secret, and its mode 0640 lets others at it"),
        (tmp_path / "keys" / "clients", 0o770, "must belong to uid"),
    ):
        path.chmod(mode)
        refused = onecopy("serve", config)
        assert (refused.returncode, complaint in refused.stderr) == (2, True)
        path.chmod(mode & 0o700)
    (tmp_path / "keys" / "clients" / "broken.key").write_text("nonsense")
    assert "broken.key is no certificate: it has no public-key" in onecopy("serve", config).stderr
    os.chmod(file, 0o604)
    with pytest.raises(ConfigError, match="mode 0604 lets others at it"):
        Pool.connect("tcp://127.0.0.1:1", keys=file)


def test_files_that_are_no_keys_of_a_client_are_named(tmp_path):
    keys = KeyFolder(str(tmp_path))
    keys.make()
    for file, complaint in (
        ("server.key", "has no secret-key"),
        ("server.key_secret", "has no server-key"),
        ("nowhere", "No such file or directory"),
        ("clients", "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            Pool.connect("tcp://127.0.0.1:1", keys=str(tmp_path / file))
    (tmp_path / "short").write_text('public-key = "abc"\n')
    with pytest.raises(ConfigError, match="its public-key is not 40 characters of Z85"):
        read_secret(str(tmp_path / "short"))
    with pytest.raises(ConfigError, match="keys are for tcp"):
        Pool.connect("ipc:///nowhere", keys=keys.issue("alice"))
    with pytest.raises(SupervisorLost, match="nobody serves"):
        Pool.connect("tcp://127.0.0.1:1", keys=keys.issue("bob"))
    with pytest.raises(ConfigError, match="its name becomes that of a file"):
        keys.issue("a/b")
    with pytest.raises(ConfigError, match=r"keys '\.\.'"):
        key_folder("..", "/")
