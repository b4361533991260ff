"""Batch jobs: order, failures, interruption at any moment, resumption."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import numpy
import pytest
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, jobfiles, lines
from onecopy.pool.jobfiles import InputLine, InputLines, JobOutput, JobState
from standalone import CLI, onecopy, standalone, start_onecopy

pytestmark = pytest.mark.timeout(120)

STATE = JobState(3, "digest", "m", "")


def _read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _gated_input(path, gate, count=400):
    """Write lines of which some fail and one waits until the gate is open."""
    texts = [json.dumps(-1 if number % 7 == 3 else number) for number in range(count)]
    texts[count // 2] = json.dumps(str(gate))
    path.write_text("\n".join(texts) + "\n")


def _wait_for_lines(output, job, gate):
    """Wait until a job waits at the gate; return how many lines it has written: what travels with it waits too."""

    def written():
        return output.read_bytes().count(b"\n") if output.exists() else 0

    assert wait_until(lambda: (written() and Path(f"{gate}.seen").exists()) or job.poll() is not None)
    assert job.poll() is None, job.stderr.read()
    return written()


# --- whole jobs ----------------------------------------------------------------------------------------------


def test_five_hundred_lines_come_out_in_order_and_failed_ones_are_errors(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    special = {10: "", 20: "{broken", 30: '{"foo": 1}', 40: '{"id": "mine", "args": [5]}', 50: '{"args": 5}'}
    texts = [special.get(n, json.dumps(-n if n % 100 == 99 else n)) for n in range(500)]
    source.write_text("\n".join(texts))  # the last line lacks its end
    with standalone(tmp_path):
        done = onecopy("batch", "toys", "--input", source, "--output", output)
    assert done.returncode == 1
    assert done.stderr == "onecopy: 499 lines, 8 failed\n"
    results = _read(output)
    assert [one["id"] for one in results] == ["mine" if n == 40 else n for n in range(500) if n != 10]
    by_id = {one["id"]: one for one in results}
    assert by_id["mine"]["result"] == 25
    assert by_id[7] == {"id": 7, "result": 49}
    assert by_id[99]["error"]["code"] == "model_error"
    assert by_id[99]["error"]["message"] == "toys: ValueError: -99 is negative"
    assert "toy_models.py" in by_id[99]["error"]["details"]["traceback"]
    assert "not JSON" in by_id[20]["error"]["message"]
    assert "'foo'" in by_id[30]["error"]["message"]
    assert by_id[50]["error"]["message"] == "args must be a list, not a number"
    assert sum("error" in one for one in results) == 8


def test_a_job_killed_in_the_middle_is_resumed_without_losing_or_repeating_a_line(tmp_path):
    gate, source = tmp_path / "gate", tmp_path / "in.jsonl"
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    _gated_input(source, gate)
    job = ["batch", "toys", "--input", source, "--output"]
    with standalone(tmp_path):
        with start_onecopy(*job, output, "--resume", stderr=subprocess.PIPE) as killed:
            assert 0 < _wait_for_lines(output, killed, gate) <= 200
            killed.kill()
        with output.open("ab") as file:
            file.write(b'{"id": ')  # as if it had been killed in the middle of a write
        gate.touch()
        resumed = onecopy(*job, output, "--resume")
        assert resumed.returncode == 1
        assert onecopy(*job, whole).returncode == 1
        assert output.read_bytes() == whole.read_bytes()
        assert [one["id"] for one in _read(output)] == list(range(400))
        again = onecopy(*job, output, "--resume")  # nothing is left to do
        assert (again.returncode, again.stderr) == (resumed.returncode, resumed.stderr)
        assert output.read_bytes() == whole.read_bytes()


def test_a_job_that_loses_its_supervisor_goes_on_with_the_next_one(tmp_path):
    gate, source, output = tmp_path / "gate", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    _gated_input(source, gate)
    with standalone(tmp_path) as served:
        job = start_onecopy("batch", "toys", "-i", source, "-o", output, stderr=subprocess.PIPE)
        assert 0 < _wait_for_lines(output, job, gate) <= 200
        served.process.kill()
        said = job.communicate(timeout=20)[1]
        assert job.returncode == 1
        assert "is gone" in said
        written = _read(output)
        assert f"{len(written)} lines are done; use --resume" in said
        assert 0 < len(written) <= 200
    gate.touch()
    assert wait_until(lambda: not os.path.exists(served.directory))
    with standalone(tmp_path):
        assert onecopy("batch", "toys", "-i", source, "-o", output, "--resume").returncode == 1
    assert [one["id"] for one in _read(output)] == list(range(400))


def test_stopping_the_pool_at_once_leaves_the_unanswered_lines_to_a_resumed_job(tmp_path):
    gate, source, output = tmp_path / "gate", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    _gated_input(source, gate, 20)
    with standalone(tmp_path):
        job = start_onecopy("batch", "toys", "-i", source, "-o", output, stderr=subprocess.PIPE)
        assert wait_until((tmp_path / "gate.seen").exists)
        assert onecopy("stop", "--now").returncode == 0
        assert "use --resume" in job.communicate(timeout=20)[1]
        assert job.returncode == 1
    assert [one["id"] for one in _read(output)] == list(range(10))


def test_what_does_not_belong_together_is_refused(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("1\n2\n3\n")
    job = ["batch", "toys", "--input", source, "--output", output]
    with standalone(tmp_path):
        assert onecopy(*job).returncode == 0
        before = output.read_bytes()
        exists = onecopy(*job)
        assert exists.returncode == 2
        assert "use --resume to go on with it, or --overwrite" in exists.stderr
        other = onecopy(*job, "--resume", "--method", "echo")
        assert other.returncode == 1
        assert "was begun with toys; resume with that" in other.stderr
        itself = onecopy("batch", "toys", "--input", source, "--output", source, "--overwrite")
        assert itself.returncode == 2
        assert "is the input, too" in itself.stderr
        source.write_text("1\n2\n4\n")
        changed = onecopy(*job, "--resume")
        assert changed.returncode == 1
        assert "the input has changed since" in changed.stderr
        assert output.read_bytes() == before
        assert onecopy(*job, "--overwrite").returncode == 0
        assert [one["result"] for one in _read(output)] == [1, 4, 16]
        (tmp_path / "out.jsonl.state").unlink()
        unknown = onecopy(*job, "--resume")
        assert unknown.returncode == 1
        assert "there is no" in unknown.stderr
        nobody = onecopy("batch", "nobody", "-i", source, "-o", tmp_path / "new.jsonl")
        assert nobody.returncode == 1
        assert not (tmp_path / "new.jsonl").exists()


def test_a_pipe_gets_each_answer_while_it_waits_for_the_next_line(tmp_path):
    with (
        standalone(tmp_path),
        subprocess.Popen([*CLI, "batch", "toys", "-i", "-", "-o", "-"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job,
    ):  # fmt: skip
        for number in range(5):
            job.stdin.write(b"%d\n" % number)
            job.stdin.flush()
            assert json.loads(job.stdout.readline()) == {"id": number, "result": number**2}
        job.stdin.close()
        assert job.wait(10) == 0


def test_arrays_tensors_and_bytes_go_in_and_have_a_form_when_they_come_out(tmp_path):
    numpy.save(tmp_path / "x.npy", numpy.arange(3, dtype=numpy.float32))
    values = [{"npy": "x.npy"}, {"tensor": {"npy": "x.npy"}}, {"tensor": [[1, 2]]}, {"base64": "YWJj"}, [1.5]]
    described = [
        "numpy.ndarray float32", "torch.Tensor torch.float32", "torch.Tensor torch.int64", "builtins.bytes",
        "builtins.list",
    ]  # fmt: skip
    kinds = ["nan", "bytes", "complex", "tuple", "keys", "array", "half", "text", "tuple key"]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps({"id": kind, "args": [kind]}) for kind in kinds))
    with standalone(tmp_path):
        told = onecopy(
            "run", "toys", "--method", "describe", "--input", json.dumps({"args": values}), cwd=tmp_path
        )
        assert json.loads(told.stdout) == described
        assert onecopy("batch", "toys", "-i", source, "-o", output, "--method", "odd").returncode == 1
    results = {one["id"]: one.get("result", one.get("error")) for one in _read(output)}
    assert results["nan"] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert results["bytes"] == {"base64": "YWJj"}
    assert results["complex"] == {"real": 1.0, "imag": 2.0}
    assert results["tuple"] == [1, [2, None]]
    assert results["keys"] == {"1": "one", "null": "none"}
    assert results["array"] == [[float(numpy.float32(0.1)), "NaN"]]
    assert math.isclose(results["half"][0], 0.1, rel_tol=0.01)
    assert results["text"] == "hé\u2028"
    assert "the result['a'] has the key (1, 2)" in results["tuple key"]["message"]


# --- the parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "args", "kwargs"),
    [
        ("5", [5], {}),
        ("[1, 2]", [[1, 2]], {}),
        ("null", [None], {}),
        ('{"args": [1, [2]]}', [1, [2]], {}),
        ('{"id": 7, "kwargs": {"a": {"b": 1}}}', [], {"a": {"b": 1}}),
        ('{"args": [{"text": "hi"}]}', [{"text": "hi"}], {}),
        ('{"base64": "YWJj"}', [b"abc"], {}),
        ("\ufeff1", [1], {}),
    ],
)
def test_a_line_is_a_value_or_a_request(text, args, kwargs):
    assert lines.arguments(lines.read_json(text.encode()), "/")[:2] == (args, kwargs)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 10_000, "not JSON"),
        ("{}", "neither args nor kwargs"),
        ('{"id": 1}', "neither args nor kwargs"),
        ('{"arg": [1]}', "unknown key 'arg'"),
        ('{"args": {}}', "args must be a list, not an object"),
        ('{"args": [], "kwargs": null}', "kwargs must be an object, not null"),
        ('{"npy": 1}', "npy must be the path"),
        ('{"npy": "nowhere.npy"}', "No such file"),
        ('{"base64": "%"}', "base64"),
        ('{"tensor": "text"}', "tensor"),
        ('{"tensor": [[1], [1, 2]]}', "tensor"),
    ],
)
def test_a_line_that_is_neither_says_why(text, reason):
    with pytest.raises(InvalidRequest, match=reason):
        lines.arguments(lines.read_json(text), "/")


def test_no_npy_file_is_ever_unpickled(tmp_path):
    numpy.save(tmp_path / "x.npy", numpy.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="allow_pickle"):
        lines.arguments({"npy": "x.npy"}, str(tmp_path))
    numpy.savez(tmp_path / "x.npz", a=numpy.zeros(1))
    with pytest.raises(InvalidRequest, match="archive"):
        lines.arguments({"npy": "x.npz"}, str(tmp_path))


def test_numbers_keep_their_full_precision():
    values = numpy.random.default_rng(0).standard_normal(1000)
    assert json.loads(lines.to_json(values)) == values.tolist()
    single = values.astype(numpy.float32)
    assert (numpy.array(json.loads(lines.to_json(single)), numpy.float32) == single).all()
    assert lines.to_json([numpy.int8(3), numpy.float32(0.5), 2**80]) == f"[3, 0.5, {2**80}]"


def test_half_a_surrogate_pair_still_gives_a_line_of_utf8():
    assert lines.to_bytes(lines.to_json("\ud800é")) == b'"\\ud800\\u00e9"\n'


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1000])
def test_input_lines_are_the_same_however_they_are_cut(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(jobfiles, "_READ_BYTES", read_bytes)
    monkeypatch.setattr(jobfiles, "MAX_LINE_BYTES", 6)
    path = tmp_path / "in"
    path.write_bytes(b"1\n\n  \nlonger than six\r\n22\r\n333333\nend")
    with path.open("rb") as file:
        found = list(InputLines(file.fileno()))
    expected = [(0, b"1"), (3, None), (4, b"22\r"), (5, b"333333"), (6, b"end")]
    assert found == [InputLine(*one) for one in expected]


def test_an_input_is_ready_only_if_a_whole_line_or_its_end_is_there():
    read_fd, write_fd = os.pipe()
    source = InputLines(read_fd)
    assert not source.is_ready()
    os.write(write_fd, b"half")
    assert not source.is_ready()
    os.write(write_fd, b" a line\n")
    assert source.is_ready()
    assert next(source).text == b"half a line"
    assert not source.is_ready()
    os.close(write_fd)
    assert source.is_ready()
    assert next(source, None) is None
    os.close(read_fd)


GOOD = b'{"id": 0, "result": 1}\n{"id": 1, "error": {"code": "x"}}\n'


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b"{",
        b'{"id": 2, "result": 4}',
        b"\0" * 5000,
        b'{"id": 2, "res\0\0\0\0"}\n{"id": 3, "result": 9}\n',
        b"\n",
    ],
)
def test_resuming_keeps_what_is_complete_and_cuts_off_the_rest(tmp_path, torn):
    path = tmp_path / "out"
    begun = JobOutput.begin(str(path), STATE, resume=True, overwrite=False)
    begun.write(GOOD + torn)
    begun.close()
    resumed = JobOutput.begin(str(path), STATE, resume=True, overwrite=False)
    assert (resumed.done, resumed.failed) == (2, 1)
    resumed.write(b'{"id": 2, "result": 4}\n')
    resumed.close()
    assert path.read_bytes() == GOOD + b'{"id": 2, "result": 4}\n'
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "out.state"]


def test_two_jobs_cannot_write_one_output(tmp_path):
    path = str(tmp_path / "out")
    first = JobOutput.begin(path, STATE, resume=True, overwrite=False)
    with pytest.raises(InvalidRequest, match="another job is writing"):
        JobOutput.begin(path, STATE, resume=True, overwrite=False)
    with pytest.raises(ConfigError, match="is there already"):
        JobOutput.begin(path, STATE, resume=False, overwrite=False)
    first.close()
    JobOutput.begin(path, STATE, resume=True, overwrite=False).close()


@pytest.mark.parametrize("broken", ["", "[]", '{"format": 1}', '{"format": 1, "other": 2}'])
def test_a_broken_state_is_no_reason_to_guess(tmp_path, broken):
    (tmp_path / "out").write_bytes(GOOD)
    (tmp_path / "out.state").write_text(broken)
    with pytest.raises(InvalidRequest, match="is broken"):
        JobOutput.begin(str(tmp_path / "out"), STATE, resume=True, overwrite=False)
    assert (tmp_path / "out").read_bytes() == GOOD
