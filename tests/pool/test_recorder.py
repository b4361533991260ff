"""The flight recorder: what it writes runs again to the same end, tells nothing of requests, and stays small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pool_models
import pytest
import torch
import toy_models
from leftovers import wait_until
from onecopy.pool import LoadFailed, Model, ModelError, Pool, WorkerDied
from onecopy.pool.control import ControlSocket
from onecopy.pool.core import events
from onecopy.pool.settings import Settings
from onecopy.pool.supervisor.reactor import Reactor
from onecopy.pool.supervisor.recorder import MAX_FILES, Recorder
from onecopy.pool.supervisor.records import Encoder, Header, read_record
from onecopy.protocol.messages import Submit, WriteRecord
from onecopy.protocol.states import ImpossibleTransition
from standalone import onecopy, standalone

#: No child is forked twice.
IMPOSSIBLE = (events.ZygoteReady(), events.ChildForked(1, 4713), events.ChildForked(1, 4713))
REPLAY = Path(__file__).parents[2] / "scripts" / "replaying.py"


def _replay(path, *options):
    return subprocess.run(
        [sys.executable, str(REPLAY), str(path), *options], check=False, capture_output=True, text=True, timeout=60
    )


def _record(pool):
    with ControlSocket(pool.endpoint.removeprefix("ipc://")) as control:
        return control.ask(WriteRecord()).note


# --- what real pools did -------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [None, {"cpu:0": {"budget": "1GiB"}, "cpu:1": {"budget": "1GiB"}}])
def test_what_a_pool_did_runs_again_with_the_same_instructions(devices):
    models = {
        "scale": pool_models.Scale(3.0),
        "toys": Model("toy_models:toys", method="square"),
        "embed": Model(torch.nn.Embedding(40_000, 64), warm=True, max_batch=4, max_wait_ms=2),
    }
    with Pool(models, workers=2, devices=devices) as pool:
        for _ in range(20):
            pool.run("scale", torch.ones(3))
        pool.run("scale", torch.ones(3, 100_000))  # by way of a mailbox
        list(pool.map("embed", [torch.arange(3)] * 30))
        with pytest.raises(ModelError):
            pool.run("toys", -1)
        with pytest.raises(WorkerDied):
            pool.model("toys", method="die", retries=1)()
        pool.model("toys", session="s")(3)
        with pytest.raises(LoadFailed):
            pool.load("broken", "toy_models:broken")
        pool.load("scale", pool_models.Scale(4.0))  # takes the other's place
        pool.evict("scale")
        assert float(pool.run("scale", torch.ones(1))) == 4.0
        pool.unload("embed")
        path = _record(pool)
    header, entries = read_record(path)
    assert [one.number for one in entries] == list(range(1, len(entries) + 1))
    assert header.why == f"asked for by process {os.getpid()}"
    again = _replay(path, "--all")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr
    assert again.stdout.endswith(f"all {len(entries):,} events were run again\nthe same throughout\n")
    assert "ChildExited" in again.stdout


def test_of_a_pool_that_ran_for_long_there_is_the_start_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECOPY_RECORD_EVENTS", "10")
    with Pool(toy_models.toys(), workers=1) as pool:
        for _ in range(30):
            pool.model("model", method="square")(3)
        path = _record(pool)
    _, entries = read_record(path)
    numbers = [one.number for one in entries]
    assert numbers[:10] == list(range(1, 11))
    assert numbers[10:] == list(range(numbers[-1] - 9, numbers[-1] + 1))
    assert numbers[-1] > 60
    again = _replay(path)
    assert again.returncode == 0
    first, last = numbers[10], numbers[-1]
    part = f"the first 10 of {last} events were run again; 11 to {first - 1} were not kept, and {first} to {last}"
    assert again.stdout.endswith(f"{part} were only read\nthe same throughout\n")


def test_a_record_tells_nothing_of_what_requests_carry():
    secret = "a-secret-of-our-users"
    with Pool({"toys": Model("toy_models:toys", method="echo")}, workers=1) as pool:
        for size in (1, 20_000):  # also where it is reduced at once
            assert pool.run("toys", secret * size, key=secret) == [[secret * size], {"key": secret}]
        with pytest.raises(ModelError, match=secret):
            pool.model("toys", method="odd")(secret)
        pool.run("toys", np.frombuffer(secret.encode() * 2000, np.uint8))
        pool.load("add", Model("toy_models:Toys", kwargs={}, method="say", example=[secret]))
        path = _record(pool)
    text = Path(path).read_text()
    assert '"model": "toys"' in text
    assert secret not in text
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_signal_and_a_command_write_one(tmp_path):
    folder = Path(os.environ["ONECOPY_CACHE_DIR"]) / "records"
    with standalone(tmp_path) as served:
        path = onecopy("record").stdout.strip()
        assert Path(path).parent == folder
        os.kill(served.process.pid, signal.SIGUSR2)
        assert wait_until(lambda: served.log.read_text().count("what the core did is in ") == 2)
        assert read_record(max(folder.iterdir()))[0].why == "SIGUSR2"
        assert onecopy("run", "toys", "--arg", "3").stdout == "9\n"
        folder.rename(folder.with_name("elsewhere"))
        folder.write_text("no folder")
        refused = onecopy("record")
        assert refused.returncode == 1
        assert f"what the core did cannot be written to {folder}: File exists" in refused.stderr


def test_a_number_of_events_that_is_none_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECOPY_RECORD_EVENTS", "many")
    (tmp_path / "pool.toml").write_text('[models.toys]\nsource = "toy_models:toys"\n')
    refused = onecopy("serve", tmp_path / "pool.toml")
    assert refused.returncode == 2
    assert "ONECOPY_RECORD_EVENTS must be a whole number of events, from 0; not 'many'" in refused.stderr


# --- the recorder alone --------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """Return a core, and its recorder; it writes to `records`."""
    reactor, made = Reactor(), []

    def make(most):
        sys.path.insert(0, str(REPLAY.parent))
        try:
            from replaying import fresh_core
        finally:
            sys.path.remove(str(REPLAY.parent))
        header = Header("1", Settings(workers=1).to_wire(), [1 << 34], {"cpu": []}, {}, {})
        made.append(Recorder(header, str(tmp_path / "records"), most, reactor, lambda *_: None))
        return fresh_core(header), made[-1]

    yield make
    for one in made:
        one.close()
    reactor.close()


def _feed(core, recorder, *several):
    for now, event in enumerate(several):
        try:
            out = core.handle(event, float(now))
        except Exception as error:
            recorder.explain(event, float(now), error)
            raise
        recorder.keep(event, float(now), out)


def test_when_the_core_raises_what_led_to_it_is_written(make, tmp_path):
    core, recorder = make(100)
    with pytest.raises(ImpossibleTransition) as caught:
        _feed(core, recorder, *IMPOSSIBLE)
    (path,) = (tmp_path / "records").iterdir()
    assert caught.value.__notes__ == [f"What led to it is in {path}; scripts/replay runs that again."]
    header, (first, _, last) = read_record(path)
    assert header.why == "the core raised ImpossibleTransition"
    assert first.instructions
    assert last.raised.startswith("Traceback ")
    assert _replay(path).returncode == 0  # it raises again


def test_what_cannot_be_written_hides_no_error(make, tmp_path):
    core, recorder = make(100)
    (tmp_path / "records").write_text("no folder")
    with pytest.raises(ImpossibleTransition) as caught:
        _feed(core, recorder, *IMPOSSIBLE)
    assert "could not be written" in caught.value.__notes__[0]


def test_large_requests_are_not_kept(make):
    class Buffer(bytearray):
        """What can be referred to weakly."""

    for most in (100, 2):  # at the start, and later
        core, recorder = make(most)
        _feed(core, recorder, *[events.TimePassed()] * 3)
        buffer = Buffer(1 << 20)
        gone = weakref.ref(buffer)
        submit = Submit(1, "m", "", 0.0, 0, 0, "", 0, 0, b"", [], [])
        recorder.keep(events.Submitted("ann", submit, [buffer]), 1.0, [])
        del buffer
        assert gone() is None


def test_the_start_has_a_bound_in_bytes(make, tmp_path):
    _, recorder = make(10_000)
    body = bytes(10_000)
    for number in range(1000):
        submit = Submit(number, "m", "", 0.0, 0, 0, "", 0, 0, body + b"", [], [])
        recorder.keep(events.Submitted("ann", submit, []), 1.0, [])
    recorder.explain(events.TimePassed(), 2.0, KeyError("x"))
    (path,) = (tmp_path / "records").iterdir()
    _, entries = read_record(path)
    whole = [one for one in entries if one.instructions is not None]
    assert 200 <= len(whole) <= 220
    assert [one.number for one in entries] == list(range(1, 1002))  # the rest takes next to nothing
    assert "body" not in entries[-2].event["submit"]


def test_only_the_last_files_stay(make, tmp_path):
    core, recorder = make(0)
    _feed(core, recorder, events.ZygoteReady())
    for number in range(MAX_FILES + 3):
        recorder.explain(events.TimePassed(), float(number), KeyError(number))
    names = sorted(os.listdir(tmp_path / "records"))
    assert len(names) == MAX_FILES
    assert len(read_record(tmp_path / "records" / names[0])[1]) == 1  # nothing else is kept here


# --- running it again ----------------------------------------------------------------------------------------


def test_the_first_difference_is_shown(make, tmp_path):
    core, recorder = make(100)
    with pytest.raises(ImpossibleTransition):
        _feed(core, recorder, *IMPOSSIBLE)
    (path,) = (tmp_path / "records").iterdir()
    header, first, *_ = path.read_text().splitlines()
    changed = json.loads(first)
    changed["instructions"][0]["child"] = 12345
    path.write_text("\n".join([header, json.dumps(changed)]))
    different = _replay(path)
    assert different.returncode == 1
    assert "event 1 is the first that does not bring the same" in different.stdout
    assert '"child": 12345' in different.stdout.partition("--- then ---")[2].partition("--- now ---")[0]


def test_what_was_kept_in_part_is_not_run_again_even_where_nothing_lacks_before_it(make, tmp_path):
    core, recorder = make(2)
    _feed(core, recorder, events.ZygoteReady(), events.TimePassed(), events.TimePassed())
    recorder.explain(events.TimePassed(), 9.0, KeyError("x"))
    (path,) = (tmp_path / "records").iterdir()
    again = _replay(path)
    assert again.returncode == 0
    assert again.stdout.endswith(
        "the first 2 of 4 events were run again; 3 to 4 were only read\nthe same throughout\n"
    )


def test_what_is_no_record_is_refused_by_name(tmp_path):
    file = tmp_path / "file"
    good = json.dumps({"format": 1, **Header("1", {}, [1], {"cpu": []}, {}, {})._asdict()})
    for text, complaint in (
        ("", "it does not begin as a record does"),
        ("[]", "it does not begin as a record does"),
        ('{"format": 1}', "it does not begin as a record does"),
        ('{"format": 7}', "is a record of format 7; this onecopy reads format 1"),
        (f"{good}\nnonsense", "line 2: it is no event"),
        (f'{good}\n{{"number": 1}}', "line 2: it is no event"),
    ):
        file.write_text(text)
        refused = _replay(file)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"replay: {file}")
        assert complaint in refused.stderr
    assert _replay(tmp_path / "nothing").returncode == 2


def test_what_is_nested_deeper_than_python_goes_is_left_out_and_the_rest_is_told():
    deep = []
    for _ in range(1000):
        deep = [deep]
    submit = Submit(1, "m", "", 0.0, 0, 0, "", 0, 0, b"body", [deep], [])
    plain = Encoder().encode(events.Submitted("ann", submit, []))
    assert plain["submit"]["places"] is None
    assert json.loads(json.dumps(plain))["submit"]["model"] == "m"
