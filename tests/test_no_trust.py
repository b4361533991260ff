"""Nothing that arrives over ZeroMQ is unpickled, imported or run: read from the code, and tried over sockets."""

from __future__ import annotations

import ast
import os
import pickle
import re
import typing
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from leftovers import wait_until
from onecopy.pool import Pool
from onecopy.protocol import messages
from onecopy.protocol.frames import multipart, unpack_header
from onecopy.protocol.messages import NUMBERS, Failed, Hello, Pong, Query, Rejected, Released, Submit, Welcome
from standalone import TOYS, standalone

ROOT = Path(__file__).parents[1]
FILES = {
    str(path.relative_to(ROOT)): path
    for top in ("protocol", "pool", "workers")
    for path in (ROOT / top).rglob("*.py")
}
#: What makes code of data, by the name that is called, or of a class that is derived from.
MAKES_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "import_module",
    "run_module",
    "run_path",
    "exec_module",
    "Unpickler",
}
READERS = {"load", "loads"}
LIBRARIES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "numpy", "np", "shelve", "torch"}
#: Every place that does, and on whose word.
KNOWN = {
    "protocol/skeleton.py": "reads skeletons, for workers and attached processes",
    "protocol/reducers.py": "imports what a skeleton names",
    "pool/abilities.py": "imports what the doctor asks for, by constant names",
    "pool/handover.py": "imports a `prepare` that the app names, in the app",
    "pool/lines.py": "reads .npy files that the user names, with pickles refused",
    "workers/aoti.py": "imports what a declared model names",
    "workers/aoti_package.py": "reads a declared model's package, weights only",
    "workers/checkpoints.py": "reads a declared model's file; pickles only if it is trusted",
    "workers/dry_run.py": "imports what a declared model names",
    "workers/exported.py": "imports a part of torch by its constant name",
    "workers/folders.py": "imports what a declared model's folder is loaded with",
    "workers/sources.py": "unpickles and imports what an app or a pool.toml declares",
    "workers/stand_in.py": "imports constant names, to try what a machine can do",
    "workers/throwaway.py": "reads what a fork of its own tells it",
    "workers/zygote.py": "imports what loaders reported",
}
#: Where messages of clients are read, decided upon, passed on and decoded; nothing else ever has their bytes.
HANDLES_REQUESTS = [
    "protocol/frames.py", "protocol/messages.py", "protocol/values.py", "protocol/arrays.py",
    "protocol/tensors.py", "protocol/items.py", "protocol/lists.py", "protocol/channel.py",
    "workers/batches.py", "workers/calls.py", "workers/inbox.py", "workers/mailboxes.py", "workers/parts.py",
    "workers/rows.py", "workers/runs.py", "workers/signature.py", "workers/streams.py", "workers/worker.py",
]  # fmt: skip


def code_makers(path: Path) -> list[str]:
    """Each place in a file that makes code of data."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        called = (
            [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        )
        for function in called:
            *owner, name = ast.unparse(function).split(".")
            is_reader = name in READERS and owner and owner[-1] in LIBRARIES
            is_method = name in ("eval", "compile") and owner  # of a module, of `re`
            if is_reader or (name in MAKES_CODE and not is_method):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
        if isinstance(node, ast.ImportFrom) and node.module in LIBRARIES:
            found += [
                f"{path.name}:{node.lineno} {one.name}" for one in node.names if one.name in READERS | MAKES_CODE
            ]
    return found


class WithoutTypes(ast.NodeTransformer):
    """Takes out what only type checkers read."""

    def visit_If(self, node):
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def reached_from(*starts: str) -> set[str]:
    """Every file that some files import, at once or later, and what those import.

    Only ``pool/__init__.py`` is left out: it has names for apps, each of which is one of the other files.
    """
    seen, ahead = set(), list(starts)
    while ahead:
        name = ahead.pop()
        if name not in FILES or name in seen or name == "pool/__init__.py":
            continue
        seen.add(name)
        tree = WithoutTypes().visit(ast.parse(FILES[name].read_text()))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = Path(name).parts[: -node.level]
                module = "/".join([*folder, *(node.module or "").split(".")]).rstrip("/")
                ahead += [f"{module}.py", f"{module}/__init__.py"]
                ahead += [f"{module}/{one.name}.py" for one in node.names]
    return seen


# --- read from the code --------------------------------------------------------------------------------------


def test_every_place_that_makes_code_of_data_is_known():
    assert {name for name, path in FILES.items() if code_makers(path)} == set(KNOWN)


def test_the_process_that_talks_to_clients_has_no_such_place():
    reached = reached_from("pool/supervisor/__main__.py")
    assert len(reached) > 60
    assert {"pool/supervisor/clients_zmq.py", "pool/core/core.py", "protocol/messages.py"} <= reached
    assert reached & set(KNOWN) == set()


def test_nothing_that_handles_requests_or_answers_has_such_a_place():
    assert [name for name in HANDLES_REQUESTS if code_makers(FILES[name])] == []
    answers = reached_from("pool/connection.py", "pool/link_zmq.py", "protocol/values.py")
    assert {"pool/futures.py", "protocol/arrays.py"} <= answers
    assert answers & set(KNOWN) == set()


# --- tried over real sockets ---------------------------------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


@pytest.fixture
def tcp(tmp_path):
    with standalone(tmp_path, 'listen = ["tcp://127.0.0.1:*"]\n' + TOYS) as served:
        assert wait_until(lambda: "listening at" in served.log.read_text())
        yield re.search(r"tcp://[\d.]+:\d+", served.log.read_text())[0]


class Stranger:
    """Says what it likes over tcp, once it was let in."""

    def __init__(self, tcp: str) -> None:
        self._context = zmq.Context()
        self.dealer = self._context.socket(zmq.DEALER)
        self.dealer.set(zmq.LINGER, 0)
        self.dealer.set(zmq.RCVTIMEO, 20_000)
        self.dealer.connect(tcp)
        assert isinstance(self.asks(multipart(Hello(b"", 1))), Welcome)

    def asks(self, frames):
        """Send frames; return the first answer that is not said unasked."""
        self.dealer.send_multipart(frames)
        while isinstance(answer := unpack_header(self.dealer.recv_multipart()[0]), Pong | Released):
            continue
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.dealer.close()
        self._context.term()


def filled(kind, trap: bytes):
    """A message of a kind whose every field holds what would do harm if it were trusted."""
    values = {int: 1, float: 1.0, str: "os:system", bytes: trap, bool: True}
    values |= {list[str]: ["os"], list[int]: [1], list[Any]: [trap], dict[str, Any]: {"prepare": "os:system"}}
    values |= {dict[str, str]: {"prepare": "os:system"}}
    return kind(*(values[hint] for name, hint in typing.get_type_hints(kind).items() if name in kind._fields))


#: What a client may say; anything else ends the connection.
FOR_CLIENTS = {"Hello", "Submit", "Cancel", "Continue", "Query", "Goodbye", "Ping"}


def test_whatever_else_may_be_said_to_a_supervisor_is_refused_over_tcp(tcp, tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    others = [kind for kind in NUMBERS if kind.__name__ not in FOR_CLIENTS]
    assert {messages.LoadModel, messages.AttachModel, messages.OfferFile, messages.StopPool} <= set(others)
    for kind in others:
        with Stranger(tcp) as stranger:
            frames = [msgpack.packb([1, NUMBERS[kind], *filled(kind, trap)])]
            answer = stranger.asks(frames)
            assert isinstance(answer, Rejected), kind
            assert "is not for this socket" in answer.error["message"], (kind, answer)
    with Pool.connect(tcp) as pool:
        assert pool.run("toys", 3) == 9
        assert [model.name for model in pool.models()] == ["toys"]
    assert not (tmp_path / "sprung").exists()


def test_pickles_in_requests_are_bytes_and_names_in_them_are_text(tcp, tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    with Stranger(tcp) as stranger:
        bodies = [
            trap,
            msgpack.packb([[trap], {}]),
            *(
                b"\x92\x91\xc7" + bytes([len(trap), code]) + trap + b"\x80" for code in range(256)
            ),  # each extension
        ]
        for number, body in enumerate(bodies, 1):
            answer = stranger.asks(multipart(Submit(number, "toys", "echo", 0.0, 0, 0, "", 0, 0, body, [], [])))
            assert answer.request == number
        for name in ("os:system", "__class__", "__reduce__", "echo.__globals__", "../toys", trap.hex()):
            number += 1
            body = msgpack.packb([["true"], {}])
            for model, method in ((name, ""), ("toys", name)):
                asked = Submit(number, model, method, 0.0, 0, 0, "", 0, 0, body, [], [])
                assert isinstance(stranger.asks(multipart(asked)), Failed), (model, method)
        assert isinstance(stranger.asks(multipart(Query(number + 1, "os:system"))), Failed)
    with Pool.connect(tcp) as pool:
        assert pool.model("toys", method="echo")(trap) == trap
    assert not (tmp_path / "sprung").exists()
