"""Files that people write: pool.toml, the input and output of batch jobs, headers of safetensors."""

from __future__ import annotations

import json
import os
import re
import tempfile
from functools import cache
from random import Random
from typing import Final

import msgpack
from onecopy.pool.checks import ConfigError
from onecopy.pool.jobfiles import InputLines, JobOutput, JobState
from onecopy.pool.lines import arguments, id_of, read_json, to_bytes, to_json
from onecopy.pool.toml import read_toml
from onecopy.protocol.errors import InvalidRequest, LoadFailed, PoolError
from onecopy.workers.safetensors_file import read_header

from .mutation import changed_bytes, changed_json, changed_tree
from .target import Target, require

_TOML: Final = """\
workers = [1, 4]
slots = 1
slot = "64MiB"
mailbox_total = 1_000_000
name = "fuzzed"
listen = ["tcp://127.0.0.1:0"]
devices = { cpu = { budget = "2GiB", reserve = 1024 } }

[models.embed]
source = "package.module:name"
args = [1, "two", 3.0]
kwargs = { scale = 0.5 }
method = "square"
max_batch = 8
max_wait_ms = 2
share = 2.5
example = [1, 2]

[models.chat]
source = "./model.pt2"
weights = "weights.safetensors"
dtype = "bfloat16"
residency = "file"
pin = true
"""
_LITERALS: Final = (
    "0", "-1", "1e400", "nan", "inf", "-0.0", "9" * 400, "0x7fffffffffffffff", '""', '"\\u0000"', '"1e9TiB"',
    '"99999999999999999999 GiB"', "true", "[]", "[[]]", "[1, 2, 3]", "{}", "{ a = { a = {} } }", "1979-05-27",
    "07:32:00", "'''\n'''", '"é"', '"../../x"', '"tcp://0.0.0.0:1"', '"ipc:///x"', '"auto"', "[" * 200 + "]" * 200,
    "9" * 5000, "[" * 2000, '[3, "tcp://127.0.0.1:1"]',
)  # fmt: skip


@cache
def _folder() -> str:
    """Return a folder for the files of this process; removed with it."""
    kept.append(tempfile.TemporaryDirectory(prefix="onecopy-fuzzing-"))
    return kept[-1].name


#: What lives as long as the process.
kept: Final[list[tempfile.TemporaryDirectory[str]]] = []


def _written(name: str, data: bytes) -> str:
    path = os.path.join(_folder(), name)
    with open(path, "wb") as file:
        file.write(data)
    return path


# --- pool.toml -----------------------------------------------------------------------------------------------


def check_toml(data: bytes) -> None:
    """A pool.toml is settings and models, or a `ConfigError` that names the file."""
    path = _written("pool.toml", data)
    try:
        settings, models = read_toml(path)
    except ConfigError as error:
        require(path in error.message, f"an error names the file: {error.message:.200}")
        return
    require(settings.workers >= 1, "there is a worker")
    for model in models.values():
        require(msgpack.packb(model.options) != b"", "what a model is told can travel")


def changed_toml(data: bytes, random: Random) -> bytes:
    """Return TOML in which one line is another."""
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines:
        return data
    index = random.randrange(len(lines))
    key, equals, value = lines[index].partition(" = ")
    kind = random.randrange(5)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.insert(random.randrange(len(lines)), lines[index])
    elif kind == 2 and equals:
        lines[index] = f"{random.choice(lines).partition(' = ')[0] or key} = {value}"
    elif kind == 3:
        lines[index] = changed_bytes(lines[index].encode(), random).decode("utf-8", "replace")
    elif equals:
        lines[index] = f"{key} = {random.choice(_LITERALS)}"
    return "\n".join(lines).encode()


# --- batch jobs ----------------------------------------------------------------------------------------------

_STATE: Final = JobState(17, "00" * 16, "model", "")
_OUTPUT: Final = b'{"id": 0, "result": 1}\n{"id": 1, "error": {"code": "model_error", "message": "no"}}\n{"id": 2'


def check_job(data: bytes) -> None:
    """A job goes on behind the last whole line of its output, or an error says why it cannot.

    The input is ``[state, output]`` in msgpack; what is not is the state of a job with a usual output.
    """
    state, output = _state_and_output(data)
    path = _written("out.jsonl", output)
    _written("out.jsonl.state", state)
    try:
        job = JobOutput.begin(path, _STATE, resume=True, overwrite=False)
    except PoolError as error:
        require(path in error.message, f"an error names the file: {error.message:.200}")
        return
    job.close()
    with open(path, "rb") as file:
        kept_bytes = file.read()
    require(output.startswith(kept_bytes), "nothing is changed of what is kept")
    if not output:
        return
    require(kept_bytes.count(b"\n") == job.done >= job.failed, "a line is done, or failed, once")
    for line in kept_bytes.split(b"\n")[:-1]:
        require(line.startswith(b'{"id": ') and line.endswith(b"}"), "what is kept is whole")


def _state_and_output(data: bytes) -> tuple[bytes, bytes]:
    try:
        state, output = msgpack.unpackb(data)
    except (ValueError, TypeError):
        return data, _OUTPUT
    return (state, output) if type(state) is type(output) is bytes else (data, _OUTPUT)


def changed_job(data: bytes, random: Random) -> bytes:
    """Return a job of which the state is another, or a line of the output."""
    state, output = _state_and_output(data)
    if random.random() < 0.5:
        return msgpack.packb([changed_json(state, random), output])
    lines = output.split(b"\n")
    index = random.randrange(len(lines))
    lines[index] = random.choice((changed_json, changed_bytes))(lines[index], random)
    return msgpack.packb([state, b"\n".join(lines)])


def _jobs() -> list[bytes]:
    state = json.dumps({"format": 1, **_STATE._asdict()}).encode()
    return [msgpack.packb([state, output]) for output in (_OUTPUT, _OUTPUT[:-8], b"", b"\0" * 30)]


def check_lines(data: bytes) -> None:
    """A line of a job's input is arguments, or an `InvalidRequest`; what it echoes is one line again."""
    fd = os.memfd_create("fuzzing")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        lines = list(InputLines(fd))
    finally:
        os.close(fd)
    require(len(lines) <= data.count(b"\n") + 1, "there are no more lines than there are")
    for line in lines:
        try:
            document = read_json(line.text or b"")
            arguments(document, _folder())
            echoed = to_bytes(to_json(id_of(document, line.number)))
        except InvalidRequest as error:
            require(bool(error.message), "an error says what is wrong")
        else:
            require(len(echoed.decode().splitlines()) == 1, "a line is one line, whoever reads it")


def changed_lines(data: bytes, random: Random) -> bytes:
    """Return lines of which one is another."""
    lines = data.split(b"\n")
    index = random.randrange(len(lines))
    lines[index] = changed_json(lines[index], random)
    return b"\n".join(lines)


def _lines() -> list[bytes]:
    return [
        b'{"id": "a", "args": [1, {"tensor": [[1, 2]]}], "kwargs": {"x": {"base64": "AAE="}}}\n\n"text"\n[1, 2]\n',
        b'\xef\xbb\xbf{"args": [{"npy": "missing.npy"}, 1e5, null, true]}\r\n{"kwargs": {}}',
    ]


# --- safetensors ---------------------------------------------------------------------------------------------


def check_safetensors(data: bytes) -> None:
    """Tensors cover the data of a file from its first byte to its last, or `LoadFailed` names the file."""
    fd = os.memfd_create("fuzzing")
    try:
        os.write(fd, data)
        header = read_header(fd, "the.file")
    except LoadFailed as error:
        require("the.file" in error.message and len(error.message) < 5000, f"a short error: {error.message:.200}")
        return
    finally:
        os.close(fd)
    reached = int.from_bytes(data[:8], "little") + 8
    for entry in sorted(header.tensors.values(), key=lambda one: (one.offset_bytes, one.size_bytes)):
        require(entry.offset_bytes == reached, "a tensor begins where the one before it ends")
        reached += entry.size_bytes
    require(reached == len(data) == header.file_bytes, "the last tensor ends with the file")


def changed_safetensors(data: bytes, random: Random) -> bytes:
    """Return a file whose header is another, its length right but for a few."""
    size_bytes = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size_bytes], data[8 + size_bytes :]
    if random.random() < 0.3:
        number = re.compile(rb"-?\d+")
        found = list(number.finditer(header))
        if found:
            one = random.choice(found)
            header = header[: one.start()] + str(changed_tree(int(one[0]), random)).encode() + header[one.end() :]
    else:
        header = changed_json(header, random)
    said_bytes = len(header) + random.choice((0, 0, 0, 0, 0, 0, 1, -1, 8, 1 << 40))
    return max(0, said_bytes).to_bytes(8, "little") + header + rest


def _safetensors() -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]},
        "none": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [24, 24]},
    }
    packed = json.dumps(header).encode()
    return [len(packed).to_bytes(8, "little") + packed + bytes(24), (2).to_bytes(8, "little") + b"{}"]


TOML: Final = Target(check_toml, lambda: [_TOML.encode(), b""], changed_toml)
JOB: Final = Target(check_job, _jobs, changed_job)
LINES: Final = Target(check_lines, _lines, changed_lines)
SAFETENSORS: Final = Target(check_safetensors, _safetensors, changed_safetensors)
