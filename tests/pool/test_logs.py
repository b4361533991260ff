"""Lines of the log: what each tells, as text and as JSON, and that a machine can read all of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from leftovers import wait_until
from onecopy.pool.supervisor.logs import Line, Logs
from standalone import TOYS, onecopy, standalone


def _collected():
    told, calls = [], []
    return Logs(told.extend, lambda _, call: calls.append(call)), told, calls


def test_equal_lines_are_told_once_with_a_count_and_the_time_of_the_first():
    logs, told, calls = _collected()
    before = time.time()
    for pid in (1, 2, 3):
        logs.printed(pid, b"loaded\n", lambda pid=pid: (pid, "worker", "m", 7))
    logs.add((9, "supervisor", "", 0), "loaded", "warning")
    (flush,) = calls
    flush()
    first, second = told
    assert first[:-1] == (1, "worker", "m", 7, "loaded", 3, "info")
    assert before <= first.at_s <= time.time()
    assert second[:-1] == (9, "supervisor", "", 0, "loaded", 1, "warning")
    assert list(logs.kept) == told


def test_a_line_as_text_and_as_json():
    line = Line(4713, "worker", "m", 7, 'a "quoted" \x1b\n line', 2, "info", 1_700_000_000.5)
    assert str(line) == '[worker 4713 m#7] a "quoted" \x1b\n line (x2)'
    assert "\n" not in line.to_json()
    assert json.loads(line.to_json()) == {
        "time": "2023-11-14T22:13:20.500+00:00", "level": "info", "role": "worker", "pid": 4713, "model": "m",
        "request": 7, "text": 'a "quoted" \x1b\n line', "times": 2,
    }  # fmt: skip
    idle = json.loads(line._replace(model="", request=0).to_json())
    assert (idle["model"], idle["request"]) == (None, None)


def test_the_log_of_a_supervisor_can_be_read_by_machines(tmp_path):
    with standalone(tmp_path, TOYS, "--log-format", "json") as served:
        onecopy("run", "toys", "--method", "say", "--arg", '"two\\nlines"')
        assert wait_until(lambda: '"lines"' in served.log.read_text())
        shown = [json.loads(line) for line in onecopy("logs", "--json").stdout.splitlines()]
        logged = [json.loads(line) for line in served.log.read_text().splitlines()]
        assert shown == logged
        serving, *_, last = logged
        assert serving["text"] == f"serving at {served.endpoint}"
        assert (serving["role"], serving["pid"], serving["level"]) == ("supervisor", served.process.pid, "info")
        assert (last["role"], last["model"], last["request"]) == ("worker", "toys", 1)
        assert datetime.fromisoformat(last["time"]) <= datetime.now(UTC)
        onecopy("run", "toys", "--method", "die")
        assert wait_until(lambda: onecopy("status", "--json").returncode == 0)
    assert all(json.loads(line) for line in served.log.read_text().splitlines())


def test_a_format_that_there_is_not_is_refused_by_name(tmp_path):
    (tmp_path / "pool.toml").write_text(TOYS)
    refused = onecopy("serve", tmp_path / "pool.toml", "--log-format", "xml")
    assert refused.returncode == 2
    assert refused.stderr == "onecopy: log_format must be text or json, not 'xml'\n"
