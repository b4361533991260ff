"""Metrics and health over HTTP: what they say, and that nobody can harm a pool through them."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket

import pytest
from leftovers import wait_until
from onecopy.pool import ConfigError, Pool, PoolError
from onecopy.pool.metrics import Metrics, complaints
from onecopy.pool.settings import Settings
from onecopy.pool.supervisor import exporter
from onecopy.pool.supervisor.exporter import Exporter
from onecopy.pool.supervisor.reactor import Reactor
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from recorded_views import models, recorded
from standalone import TOYS, onecopy, standalone
from toy_models import Toys


def _parsed(text: str):
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples


def _get(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# --- what a pool told ----------------------------------------------------------------------------------------


def test_everything_that_a_pool_told_has_a_metric():
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Metrics(recorded()))
    samples = _parsed(generate_latest(registry).decode())
    toys = (("device", "cpu:0"), ("model", "toys"))
    assert samples["onecopy_requests_total", *toys, ("outcome", "answered")] == 200
    assert samples["onecopy_running", *toys] == 1
    assert samples["onecopy_run_seconds_count", *toys] == 200
    assert samples["onecopy_run_seconds_bucket", *toys[:1], ("le", "+Inf"), *toys[1:]] == 200
    assert samples["onecopy_workers", ("device", "cpu:0"), ("state", "busy")] == 1
    assert samples["onecopy_memory_bytes", ("account", "weights"), ("device", "cpu:1")] == 5_120_000
    assert samples["onecopy_processes", ("role", "worker")] == 4
    assert samples["onecopy_fallbacks",] == 1


def test_a_pool_is_ready_once_its_warm_models_were_loaded_and_a_worker_is_there():
    assert complaints(recorded().status) == []  # the model that failed is not to be warm
    (found,) = complaints(recorded(models=models(is_warm=True)).status)
    assert found == "model 'broken' on cpu:1 is failed: broken: RuntimeError: no such weights"
    assert complaints(recorded(models=models(is_warm=True, state="evicted")).status) == []
    assert complaints(recorded(models=models(is_warm=True, state="building", error=None)).status) == [
        "model 'toys' on cpu:0 is building", "model 'embed' on cpu:1 is building",
        "model 'broken' on cpu:1 is building",
    ]  # fmt: skip
    assert complaints(recorded(workers=[], is_stopping=True).status) == [
        "the pool is stopping", "no worker is ready"
    ]  # fmt: skip


# --- a pool that serves them ---------------------------------------------------------------------------------


def test_a_pool_serves_metrics_and_health(tmp_path, free_port):
    with standalone(tmp_path, f'metrics = "127.0.0.1:{free_port}"\n{TOYS}warm = true\n') as served:
        with Pool.connect(served.endpoint) as pool:
            assert pool.model("toys", method="square")(3) == 9
            roles = [one.role for one in pool.memory().processes]
            assert roles.count("metrics") == 1
        assert wait_until(lambda: _answers(free_port, "ready"))
        assert _get(free_port, "/health/live")[:2] == (200, "ok\n")
        status, text, headers = _get(free_port, "/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        key = ("onecopy_requests_total", ("device", "cpu"), ("model", "toys"), ("outcome", "answered"))
        assert _parsed(text)[key] == 1
        open_metrics = _get(free_port, "/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert open_metrics[1].endswith("# EOF\n")
        assert _get(free_port, "/metrics", "HEAD")[1] == ""
        assert f"metrics at http://127.0.0.1:{free_port}/metrics" in served.log.read_text()


def test_the_pool_of_an_app_serves_them_as_long_as_it_lives(free_port):
    with Pool({"toys": Toys}, workers=1, metrics=f"127.0.0.1:{free_port}") as pool:
        assert pool.model("toys", method="square")(3) == 9
        assert wait_until(lambda: _answers(free_port, "ready"))
        key = ("onecopy_requests_total", ("device", "cpu"), ("model", "toys"), ("outcome", "answered"))
        assert _parsed(_get(free_port, "/metrics")[1])[key] == 1
    assert not _answers(free_port)


def test_the_pool_of_an_app_does_not_start_where_it_cannot_serve_them():
    with pytest.raises(ConfigError, match="beyond loopback anyone may read it; if that is meant"):
        Pool(Toys, metrics="0.0.0.0:9464")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PoolError, match=f"cannot serve metrics at {address}: Address already in use"):
            Pool(Toys, metrics=address)


def test_what_is_no_request_for_them_is_refused_and_harms_nobody(tmp_path, free_port):
    with standalone(tmp_path, f'metrics = "127.0.0.1:{free_port}"\n{TOYS}'):
        assert wait_until(lambda: _answers(free_port))
        assert _get(free_port, "/")[:2] == (404, "there are /metrics, /health/live and /health/ready\n")
        assert _get(free_port, "/metrics", "POST")[0] == 405
        assert _get(free_port, "/metrics", padding="x" * 10_000)[0] == 400
        for sent in (b"\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET /metrics HTTP/9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", free_port)) as connection:
                connection.sendall(sent)
                assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        idle = [socket.create_connection(("127.0.0.1", free_port)) for _ in range(60)]
        try:
            # Most wait for what they will ask for; the others were hung up on.
            assert wait_until(lambda: sum(_is_hung_up(one) for one in idle) == 60 - 32)
            assert onecopy("run", "toys", "--arg", "3").stdout == "9\n"
        finally:
            for one in idle:
                one.close()
        assert wait_until(lambda: _answers(free_port))


def _is_hung_up(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _answers(port, health="live"):
    try:
        return _get(port, f"/health/{health}")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_supervisor_that_does_not_answer_is_not_alive(tmp_path, free_port):
    with standalone(tmp_path, f'metrics = "127.0.0.1:{free_port}"\n{TOYS}') as served:
        assert wait_until(lambda: _answers(free_port))
        os.kill(served.process.pid, signal.SIGSTOP)
        try:
            assert wait_until(lambda: _get(free_port, "/health/live")[0] == 503)
        finally:
            os.kill(served.process.pid, signal.SIGCONT)
        assert wait_until(lambda: _answers(free_port))


def test_an_address_that_is_in_use_is_told_at_once(tmp_path):
    (tmp_path / "pool.toml").write_text(TOYS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = onecopy("serve", tmp_path / "pool.toml", "--metrics", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"cannot serve metrics at 127.0.0.1:{port}: Address already in use" in done.stderr


# --- settings ------------------------------------------------------------------------------------------------


def test_beyond_loopback_they_are_served_only_if_that_is_said():
    for address in ("0.0.0.0:9464", "[::]:9464", "192.168.1.5:9464", "host.example:9464"):
        with pytest.raises(ConfigError, match="metrics_public = true"):
            Settings(metrics=address)
        Settings(metrics=address, metrics_public=True)
    for address in ("127.0.0.1:9464", "[::1]:9464", "localhost:0"):
        Settings(metrics=address)
    for address in ("9464", "127.0.0.1", "http://127.0.0.1:9464", "127.0.0.1:70000", "::1:9464"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            Settings(metrics=address, metrics_public=True)


# --- the process that serves them ----------------------------------------------------------------------------


@pytest.fixture
def reactor():
    one = Reactor()
    yield one
    one.close()


def test_what_is_not_installed_is_named(tmp_path, reactor, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one = Exporter(Settings(metrics="127.0.0.1:0"), str(tmp_path), reactor, print)
    with pytest.raises(ConfigError, match=r"pip install 'onecopy\[metrics\]'"):
        one.start()


def test_an_address_of_another_machine_cannot_be_served(tmp_path, reactor):
    settings = Settings(metrics="192.0.2.1:9464", metrics_public=True)  # an address for documentation: RFC 5737
    with pytest.raises(PoolError, match=r"cannot serve metrics at 192\.0\.2\.1:9464"):
        Exporter(settings, str(tmp_path), reactor, print).start()


def test_a_process_that_dies_is_told_and_started_anew(tmp_path, reactor, monkeypatch, capfd):
    monkeypatch.setattr(exporter, "_AGAIN_S", 0.01)
    notes = []

    def note(text, _level):
        notes.append(text)
        if len(notes) == 3:
            reactor.stop()

    one = Exporter(Settings(metrics="127.0.0.1:0"), str(tmp_path), reactor, note)  # where nobody serves
    one.start()
    reactor.run(lambda: float("inf"), lambda: None)
    one.close()
    assert notes[0].startswith("metrics at http://127.0.0.1:")
    assert notes[1:] == [
        "the process that serves metrics died (exit code 1); another is started in 0.01 s"
    ] * 2  # fmt: skip
    assert capfd.readouterr().err.count("onecopy: metrics: nobody serves at ipc://") == 2


def test_it_ends_when_the_supervisor_is_killed(tmp_path, free_port):
    with standalone(tmp_path, f'metrics = "127.0.0.1:{free_port}"\n{TOYS}') as served:
        assert wait_until(lambda: _answers(free_port, "ready"))  # a zygote is there that will clear up
        served.process.kill()  # that nothing is left behind is looked at after every test
        served.process.wait()
        assert wait_until(lambda: not _answers(free_port))
