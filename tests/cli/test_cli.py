"""The command line against real supervisors."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from leftovers import wait_until
from onecopy.pool import Model, cli_models
from onecopy.pool.cli import app
from safetensors.torch import save_file
from standalone import CLI, TESTS, onecopy, standalone, start_onecopy
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(120)


def _json(*arguments: object):
    done = onecopy(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pool_is_served_asked_and_stopped(tmp_path):
    with standalone(tmp_path, command=[*CLI, "serve"]) as served:
        assert _json("run", "toys", "--arg", "3") == 9
        status = _json("status", "--json")
        assert (status["name"], status["pid"], len(status["workers"])) == ("default", served.process.pid, 1)
        (model,) = _json("models", "--json")
        assert (model["name"], model["state"], model["answered"]) == ("toys", "ready", 1)
        memory = _json("memory", "--json")
        assert {one["role"] for one in memory["processes"]} == {"supervisor", "zygote", "worker"}
        for command in ("status", "models", "memory"):
            told = onecopy(command)
            assert told.returncode == 0
            assert ("toys" if command != "memory" else "zygote") in told.stdout
        assert onecopy("stop").returncode == 0
        assert served.process.wait(5) == 0
        assert not Path(served.directory).exists()
    assert "serving at ipc://" in served.log.read_text()


def test_the_process_that_serves_has_forgotten_the_command_line(tmp_path):
    with standalone(tmp_path, command=[*CLI, "serve"]) as served:
        maps = Path(f"/proc/{served.process.pid}/cmdline").read_text()
        assert "onecopy.pool.supervisor" in maps
        assert "onecopy.pool.cli" not in maps


def test_models_come_and_go_while_the_pool_serves(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Twice:\n    def __call__(self, x, plus=0):\n        return 2 * x + plus\n"
    )
    with standalone(tmp_path):
        loaded = onecopy("load", "twice", "mine:Twice", cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr
        assert _json("run", "twice", "--arg", "4", "--kwarg", "plus=1") == 9
        onecopy("load", "add", "toy_models:Add", "--arg", "2.5", "--method", "scaled", "--warm", "--grad")
        assert _json("run", "add", "--input", '{"args": [1], "kwargs": {"by": 2}}') == 7.0
        assert {model["name"] for model in _json("models", "--json")} == {"toys", "twice", "add"}
        assert onecopy("unload", "twice").returncode == 0
        gone = onecopy("run", "twice", "--arg", "4")
        assert gone.returncode == 1
        assert gone.stderr == "onecopy: no model 'twice' here; there are: add, toys\n"
        failed = onecopy("load", "bad", "toy_models:broken")
        assert failed.returncode == 1
        assert "RuntimeError: no such weights" in failed.stderr
        assert onecopy("unload", "nothing").returncode == 1


def test_load_has_an_option_for_all_that_a_model_has():
    wanted = {one.name for one in dataclasses.fields(Model)}
    had = set(inspect.signature(cli_models.load).parameters)
    assert wanted - had == {"args", "kwargs", "repoint"}  # --arg, --kwarg; and nothing is handed over


def test_a_model_is_loaded_where_and_as_it_is_said(tmp_path):
    (tmp_path / "mine.py").write_text("def doubled(model):\n    model.amount.data *= 2\n")
    with standalone(tmp_path):
        loaded = onecopy(
            "load", "add", "toy_models:Add", "--arg", "2.5", "--device", "cpu", "--prepare", "mine:doubled",
            "--example", '{"tensor": [1.0]}', "--max-workers", "1", "--fixed", "--whole", cwd=tmp_path,
        )  # fmt: skip
        assert loaded.returncode == 0, loaded.stderr
        assert wait_until(lambda: {one["name"]: one["answered"] for one in _json("models", "--json")}["add"] == 1)
        assert _json("run", "add", "--arg", "1") == 6.0
        elsewhere = onecopy("load", "more", "toy_models:Add", "--device", "cpu:7")
        assert "no device 'cpu:7' in this pool; there are: cpu" in elsewhere.stderr


def test_weights_come_from_files_and_what_models_share_is_told(tmp_path):
    table = torch.arange(1 << 18, dtype=torch.float32).reshape(-1, 4)
    save_file({"weight": table}, tmp_path / "table.safetensors")
    torch.save(torch.nn.Embedding.from_pretrained(table), tmp_path / "table.pt")
    factory = ["torch.nn:Embedding", "--arg", 1 << 16, "--arg", 4, "--weights", "table.safetensors"]
    with standalone(tmp_path):
        refused = onecopy("load", "saved", "./table.pt", cwd=tmp_path)
        assert refused.returncode == 1
        assert "a saved module is a pickle" in refused.stderr
        for name, source in {
            "built": factory, "saved": ["./table.pt", "--trusted"], "alone": [*factory, "--sharing", "private"],
            "mapped": [*factory, "--residency", "file"], "half": [*factory, "--dtype", "bfloat16"],
        }.items():  # fmt: skip
            loaded = onecopy("load", name, *source, "--warm", cwd=tmp_path)
            assert loaded.returncode == 0, loaded.stderr
            assert _json("run", name, "--arg", '{"tensor": [1, 7]}') == [[4, 5, 6, 7], [28, 29, 30, 31]]
        told = {one["model"]: one for one in _json("memory", "--json")["weights"]}
        assert set(told["built"]["shared_with"]) == {"saved"}
        assert told["alone"]["shared_with"] == told["half"]["shared_with"] == {}
        assert {name: one["size_bytes"] for name, one in told.items() if name != "mapped"} == {
            "built": 1 << 20, "saved": 1 << 20, "alone": 1 << 20, "half": 1 << 19, "toys": 0
        }  # fmt: skip
        assert onecopy("load", "locked", "pool_models:Locked", cwd=tmp_path).returncode == 0
        lines = onecopy("memory").stdout.splitlines()
        assert "locked: each worker builds it anew around the one copy, because it cannot be pickled" in lines
        rows = [re.split(r" {2,}", line.strip()) for line in lines]
        titles = ["model", "device", "state", "lies in", "size", "own", "shared with", "private per worker"]
        assert [*titles, "workers", "attached", "evicted"] in rows
        [built] = [row for row in rows if row[0] == "built"]
        assert built[:7] == ["built", "cpu", "ready", "memory", "1.0 MB", "0 B", "saved 1.0 MB"]
        assert built[8:] == ["1", "0", "0"]
        [mapped] = [row for row in rows if row[0] == "mapped"]
        assert mapped[3] == "file"


def test_over_tcp_models_run_but_neither_code_nor_control_travels(tmp_path):
    with standalone(tmp_path, TOYS_ON_TCP) as served:
        (tcp,) = set(re.findall(r"tcp://127\.0\.0\.1:\d+", _wait_for_note(served)))
        assert _json("run", "toys", "--arg", "5", "--endpoint", tcp) == 25
        assert _json("status", "--json", "--endpoint", tcp)["pid"] == served.process.pid
        orders = [["load", "x", "toy_models:toys"], ["unload", "toys"], ["pin", "toys"], ["evict", "toys"]]
        for command in (*orders, ["move", "toys", "cpu:1"], ["stop"], ["logs"]):
            refused = onecopy(*command, "--endpoint", tcp)
            assert refused.returncode == 1
            assert "never travel over tcp" in refused.stderr
            assert "Traceback" not in refused.stderr


TOYS_ON_TCP = """
workers = 1
listen = ["tcp://127.0.0.1:*"]
[models.toys]
source = "toy_models:toys"
method = "square"
"""


def _wait_for_note(served) -> str:
    assert wait_until(lambda: "listening at" in served.log.read_text())
    return served.log.read_text()


def test_a_second_supervisor_in_the_same_place_is_refused(tmp_path):
    with standalone(tmp_path) as served:
        second = onecopy("serve", tmp_path / "pool.toml")
        assert second.returncode == 1
        assert f"a supervisor (pid {served.process.pid}) already serves {served.endpoint}" in second.stderr
        assert served.is_serving()


def test_a_pool_can_be_named_and_found_by_its_name(tmp_path):
    with standalone(tmp_path) as served:
        other = start_onecopy("serve", tmp_path / "pool.toml", "--name", "other", stderr=subprocess.DEVNULL)
        assert wait_until(lambda: onecopy("status", "--endpoint", "other").returncode == 0)
        assert _json("status", "--json", "--endpoint", "other")["name"] == "other"
        assert onecopy("stop", "--endpoint", "other").returncode == 0
        assert other.wait(5) == 0
        assert served.is_serving()


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("worker = 2", "'worker'; did you mean 'workers'"),
        ("workers = '2'", "workers must be a whole number, two (the least and the most, such as [1, 8])"),
        ("workers = 0", "workers must be a whole number"),
        ("[models.a]\nmethod = 'x'", "[models.a] has no source"),
        ("[models.a]\nsource = 'm:f'\nwarmth = true", "unknown key 'warmth'"),
        ("[models.a]\nsource = 'm:f'\nwarm = 1", "models.a.warm must be bool"),
        ("[models.a]\nsource = 'no-colon'", "source 'no-colon' is neither of the form 'package.module:name'"),
        ("[models.a]\nsource = './model.pt'\nweights = 'w.pt'", "weights are for what a factory builds"),
        ("[models.a]\nsource = 'm:f'\nresidency = 'disk'", "residency must be one of 'memory', 'file'"),
        ("workers =", "not TOML"),
        ("listen = ['tcp://0.0.0.0:5555']", "only loopback is allowed"),
    ],
)
def test_a_wrong_pool_toml_is_wrong_usage_and_the_key_is_named(tmp_path, toml, named):
    (tmp_path / "pool.toml").write_text(toml)
    refused = onecopy("serve", tmp_path / "pool.toml")
    assert refused.returncode == 2
    assert named in refused.stderr
    assert str(tmp_path / "pool.toml") in refused.stderr
    assert "Traceback" not in refused.stderr


def test_serving_beyond_loopback_or_from_no_file_is_wrong_usage(tmp_path):
    (tmp_path / "pool.toml").write_text("workers = 1")
    beyond = onecopy("serve", tmp_path / "pool.toml", "--listen", "tcp://0.0.0.0:1")
    assert beyond.returncode == 2
    assert "tcp://0.0.0.0:1" in beyond.stderr
    missing = onecopy("serve", tmp_path / "missing.toml")
    assert missing.returncode == 2
    assert "missing.toml: No such file or directory" in missing.stderr


@pytest.mark.parametrize("how", ["SIGTERM", "stop"])
def test_stopping_drains_what_was_accepted_and_takes_nothing_new(tmp_path, how):
    gate = tmp_path / "gate"
    with standalone(tmp_path) as served:
        waiting = start_onecopy("run", "toys", "--arg", json.dumps(str(gate)), stdout=subprocess.PIPE)
        assert wait_until((tmp_path / "gate.seen").exists)
        stopper = start_onecopy("stop") if how == "stop" else None
        if stopper is None:
            served.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: _json("status", "--json")["is_stopping"])
        late = onecopy("run", "toys", "--arg", "1")
        assert late.returncode == 1
        assert "shutting down" in late.stderr
        gate.touch()
        assert json.loads(waiting.communicate(timeout=20)[0]) == str(gate)
        assert waiting.returncode == 0
        assert served.process.wait(20) == 0
        if stopper is not None:
            assert stopper.wait(5) == 0


def test_stopping_now_gives_up_what_runs(tmp_path):
    with standalone(tmp_path) as served:
        gate = json.dumps(str(tmp_path / "gate"))
        waiting = start_onecopy("run", "toys", "--arg", gate, stderr=subprocess.PIPE)
        assert wait_until((tmp_path / "gate.seen").exists)
        assert onecopy("stop", "--now").returncode == 0
        assert served.process.wait(5) == 0
        assert waiting.communicate(timeout=20)[1].startswith("onecopy: ")
        assert waiting.returncode == 1


def test_a_failed_request_tells_why_in_its_own_words(tmp_path):
    with standalone(tmp_path):
        raised = onecopy("run", "toys", "--arg", "-1")
        assert raised.returncode == 1
        assert raised.stderr.startswith("onecopy: toys: ValueError: -1 is negative\n")
        assert "toy_models.py" in raised.stderr  # the remote traceback
        assert "cli.py" not in raised.stderr  # and none of our own
        died = onecopy("run", "toys", "--method", "die", "--retries", "0")
        assert died.returncode == 1
        assert "SIGKILL" in died.stderr
        late = onecopy("run", "toys", "--arg", json.dumps(str(tmp_path / "never")), "--timeout", "0.2")
        assert late.returncode == 1
        assert "no answer within 0.2 s" in late.stderr
        (tmp_path / "never").touch()


def test_run_reads_its_request_from_a_file_or_from_standard_input(tmp_path):
    request = tmp_path / "request.json"
    request.write_text('{"args": [1, "a"], "kwargs": {"b": null}}')
    with standalone(tmp_path):
        expected = [[1, "a"], {"b": None}]
        assert _json("run", "toys", "--method", "echo", "--input", request) == expected
        piped = onecopy("run", "toys", "--method", "echo", "--input", "-", text=request.read_text())
        assert json.loads(piped.stdout) == expected
        assert onecopy("run", "toys", "--method", "odd", "--arg", '"text"').stdout == '"hé\\u2028"\n'


def test_logs_are_shown_and_followed_until_the_supervisor_ends(tmp_path):
    with standalone(tmp_path) as served:
        onecopy("run", "toys", "--method", "say", "--arg", '"first"')
        assert wait_until(lambda: "first" in onecopy("logs").stdout)
        (line,) = [json.loads(one) for one in onecopy("logs", "--json").stdout.splitlines() if "first" in one]
        assert (line["role"], line["text"], line["times"]) == ("worker", "first", 1)
        with (tmp_path / "followed").open("w") as output:
            follower = start_onecopy("logs", "--follow", stdout=output)
        assert wait_until(lambda: "first" in (tmp_path / "followed").read_text())
        onecopy("run", "toys", "--method", "say", "--arg", '"second"')
        assert wait_until(lambda: "second" in (tmp_path / "followed").read_text())
        assert "] second" in served.log.read_text()
        assert onecopy("stop").returncode == 0
        assert follower.wait(10) == 0


def test_without_a_supervisor_every_command_says_how_to_start_one(tmp_path):
    for command in (["status"], ["models"], ["memory"], ["run", "m"], ["stop"], ["logs"], ["unload", "m"]):
        failed = onecopy(*command)
        assert failed.returncode == 1
        assert failed.stderr.startswith("onecopy: nobody serves at ipc://")
        assert "onecopy serve pool.toml" in failed.stderr
        assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["serve"],
        ["run"],
        ["run", "m", "--arg", "text"],
        ["run", "m", "--kwarg", "5"],
        ["run", "m", "--kwarg", "a=b"],
        ["run", "m", "--arg", "1", "--input", "2"],
        ["run", "m", "--input", '{"foo": 1}'],
        ["run", "m", "--input", '{"npy": "missing.npy"}'],
        ["run", "m", "--timeout", "soon"],
        ["batch", "m", "--input", "x"],
        ["batch", "m", "--input", "missing.jsonl", "--output", "out.jsonl"],
        ["batch", "m", "--input", "-", "--output", "out.jsonl", "--resume"],
        ["batch", "m", "--input", "a", "--output", "b", "--resume", "--overwrite"],
        ["load", "m", "no-colon"],
        ["load", "bad name", "a:b"],
        ["load", "m", "a:b", "--dtype", "int8"],
        ["load", "m", "a:b", "--residency", "disk"],
        ["load", "m", "a:b", "--sharing", "some"],
        ["load", "m", "a:b", "--trusted"],
        ["load", "m", "./folder", "--weights", "model.safetensors"],
        ["load", "m", "./folder", "--arg", "1"],
        ["status", "--endpoint", "bad name"],
        ["logs", "--since", "yesterday"],
    ],
)
def test_wrong_usage_has_exit_code_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_help_and_version_are_told():
    runner = CliRunner()
    for command in app.registered_commands:
        assert runner.invoke(app, [command.callback.__name__, "--help"]).exit_code == 0
    assert re.fullmatch(r"onecopy \d+\.\d+.*\n", runner.invoke(app, ["--version"]).stdout)


def test_asking_imports_neither_torch_nor_numpy(tmp_path):
    with standalone(tmp_path):
        for command in (["status", "--json"], ["logs"], ["run", "toys", "--arg", "1"], ["stop"]):
            code = [sys.executable, "-X", "importtime", "-m", "onecopy.pool.cli", *command]
            done = subprocess.run(code, capture_output=True, text=True, timeout=60, check=True)
            imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
            assert "zmq" in imported or command[0] in ("logs", "stop")
            assert not imported & {"torch", "numpy", "cloudpickle", "rich"}


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("onecopy")
    done = subprocess.run([script, "--version"], capture_output=True, timeout=60, check=True, cwd=TESTS)
    assert done.stdout.startswith(b"onecopy ")


def test_items_of_a_stream_are_printed_as_they_come_and_options_reach_the_pool(tmp_path):
    with standalone(tmp_path, 'workers = 1\n[models.items]\nsource = "request_models:Yielding"\n'):
        told = onecopy("run", "items", "--stream", "--arg", "3", "--priority", "5")
        assert (told.returncode, told.stdout) == (0, "0\n1\n2\n")
        failed = onecopy("run", "items", "--stream", "--method", "fail_after", "--arg", "2")
        assert (failed.returncode, failed.stdout) == (1, "0\n1\n")
        assert "ValueError: only 2" in failed.stderr
        plain = onecopy("run", "items", "--arg", "3")
        assert plain.returncode == 1
        assert "pool.stream" in plain.stderr
        wrong = onecopy("run", "items", "--arg", "3", "--priority", "200")
        assert wrong.returncode == 2
        assert "priority must be a whole number from -100 to 100, not 200" in wrong.stderr
        loaded = onecopy(
            "load", "quick", "request_models:Quick", "--max-batch", 8, "--max-wait-ms", 2.5, "--share", 2,
            "--max-queue", 10,
        )  # fmt: skip
        assert loaded.returncode == 0, loaded.stderr
        assert _json("run", "quick", "--arg", "4") == 4
        refused = onecopy("load", "quick", "request_models:Quick", "--max-batch", 0)
        assert refused.returncode == 2
        assert "max_batch must be a whole number from 1" in refused.stderr
    assert "[default: -10]" in onecopy("batch", "--help").stdout


@pytest.mark.parametrize("line", ["example = 2026-01-01", "args = [2026-01-01]", "kwargs = {day = 2026-01-01}"])
def test_a_value_that_cannot_travel_is_named_with_its_file_and_model(tmp_path, line):
    path = tmp_path / "pool.toml"
    path.write_text(f"[models.m]\nsource = 'torch.nn:Linear'\n{line}\n")
    refused = onecopy("serve", str(path))
    assert refused.returncode == 2
    assert f"{path}: [models.m] " in refused.stderr
    assert "datetime.date" in refused.stderr
