"""`onecopy top`: its picture as a function of what a pool told, and the command on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time

import pytest
from leftovers import wait_until
from onecopy.pool import Pool
from onecopy.pool.top import Watcher
from onecopy.pool.top_picture import picture
from onecopy.pool.views import RunTimes
from recorded_views import models, recorded
from rich.console import Console
from standalone import CLI, environment, onecopy, standalone, start_onecopy


def _lines(*told):
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(picture(*told))
    return console.export_text().splitlines()


def _row(lines, *starts):
    return next(line.split() for line in lines if line.split()[: len(starts)] == list(starts))


def test_everything_that_a_pool_told_is_in_the_picture():
    lines = _lines(recorded(), None)
    assert lines[0].startswith("onecopy recorded, pid ")
    assert _row(lines, "cpu:0", "179.1")[-4:] == ["894.6", "MB", "0", "B"]
    assert _row(lines, "toys", "cpu:0")[2:] == ["ready", "0", "1", "200", "0", "0.2", "ms"]
    assert _row(lines, "broken", "cpu:1")[2] == "failed"
    assert "fallback: slots: runs take private memory: no C compiler was there at install" in lines
    assert any(line.startswith("broken: ") and "no such weights" in line for line in lines)
    first = next(line for index, line in enumerate(lines) if lines[index - 1].startswith("worker"))
    assert first.split()[1:4] == ["cpu:0", "busy", "toys"]  # those that do something stand first


def test_rates_are_of_the_time_between_two_pictures():
    lines = _lines(recorded(12.0, models=models(answered=700)), recorded(10.0))
    assert _row(lines, "toys", "cpu:0")[5] == "250.0"
    assert _row(lines, "broken", "cpu:1")[5] == "350.0"
    assert _row(_lines(recorded(12.0, models=[]), recorded(10.0)), "cpu:0")  # one that was unloaded meanwhile


def test_a_model_that_was_replaced_by_another_of_its_name_has_no_negative_rate():
    lines = _lines(recorded(12.0, models=models(answered=3)), recorded(10.0))
    assert _row(lines, "toys", "cpu:0")[5] == "0.0"


def test_a_quantile_lies_where_as_many_runs_were_shorter():
    assert RunTimes([1.0, 2.0, 4.0], [0, 0, 0, 0]).quantile_s(0.5) is None
    times = RunTimes([1.0, 2.0, 4.0], [10, 10, 20, 0])
    assert times.quantile_s(0.25) == 1.0
    assert times.quantile_s(0.5) == 2.0
    assert times.quantile_s(0.75) == 3.0
    assert RunTimes([1.0], [0, 5]).quantile_s(0.5) == 1.0  # longer than any bound


def test_a_worker_tells_what_it_runs(tmp_path):
    with standalone(tmp_path) as served, Pool.connect(served.endpoint) as pool:
        flag = tmp_path / "go"
        running = pool.submit("toys", str(flag))
        assert wait_until(lambda: (tmp_path / "go.seen").exists())
        lines = onecopy("top", "--once").stdout.splitlines()
        assert next(line.split()[1:5] for line in lines if " busy " in line) == ["cpu", "busy", "toys", "1"]
        flag.touch()
        running.result(20)
        told = Watcher(pool).look()
        assert told.status.models[0].run_times.counts[-1] == 0
        assert sum(told.status.models[0].run_times.counts) == 1


def test_a_busy_pool_is_not_measured_for_more_than_a_part_of_the_time(tmp_path):
    with standalone(tmp_path) as served, Pool.connect(served.endpoint) as pool:
        watcher = Watcher(pool)
        first = watcher.look()
        assert watcher.look().memory is first.memory  # a measurement of a millisecond is good for twenty


@pytest.mark.parametrize("end", [b"q", b"\x03"])
def test_a_key_ends_it(tmp_path, end):
    with standalone(tmp_path):
        ours, theirs = pty.openpty()
        command = [*CLI, "top", "--interval", "0.1"]
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment() | {"TERM": "xterm"},
            start_new_session=True, preexec_fn=lambda: _control(theirs),
        )  # fmt: skip
        try:
            os.close(theirs)
            shown = bytearray()
            while shown.count(b"onecopy default") < 2:
                shown += os.read(ours, 65536)

            def has_ended():
                os.write(ours, end)  # again, as people do: Python drops an interrupt that comes in a destructor
                later = time.monotonic() + 5
                while (rest_s := later - time.monotonic()) > 0:
                    if select.select([ours], [], [], rest_s)[0]:  # it must not wait for its output to be read
                        try:
                            shown.extend(os.read(ours, 65536))
                        except OSError:
                            return True
                return False

            assert wait_until(has_ended)
            assert process.wait(20) == 0
            assert b"\x1b[?1049h" in shown  # the terminal is as it was
            assert b"\x1b[?1049l" in shown
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def _control(terminal):
    """Have a terminal's Ctrl-C reach this process."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_without_a_terminal_picture_follows_picture_until_it_is_interrupted(tmp_path):
    with standalone(tmp_path):
        process = start_onecopy("top", "--interval", "0.1", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        with process:
            heads = 0
            for line in process.stdout:
                if line.startswith("onecopy default"):
                    heads += 1
                    if heads == 2:
                        process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def test_it_ends_with_the_pool(tmp_path):
    with standalone(tmp_path):
        process = start_onecopy("top", "--interval", "0.1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert process.stdout.readline()
            onecopy("stop")
            output, errors = process.communicate(timeout=20)
        assert process.returncode == 1, output
        assert errors.startswith("onecopy: ")
