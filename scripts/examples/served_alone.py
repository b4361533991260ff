"""A pool that nobody owns: an app, a batch job and a client over the network use one copy of the weights.

``onecopy serve`` reads a pool.toml and serves until it is told to stop. On the machine itself clients are known by
their user; over tcp they need keys, which ``onecopy keys`` makes and revokes. A batch job that is interrupted goes
on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from onecopy.pool import InvalidRequest, Pool, SupervisorLost
from showing import arguments, row_of, show, wait_until

ONECOPY = [sys.executable, "-m", "onecopy.pool.cli"]
LINES = 20_000
TOML = """
workers = 2
listen = ["tcp://127.0.0.1:*"]
keys = "./keys"

[models.linear]
source = "torch.nn:Linear"
args = [4, 3]
"""


def onecopy(*words: str) -> str:
    """Run a command; return what it printed."""
    return subprocess.run([*ONECOPY, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


@contextlib.contextmanager
def served(folder: str) -> Iterator[tuple[str, str]]:
    """Serve a pool.toml; yield the endpoint for this machine, and that for others."""
    with open(os.path.join(folder, "pool.toml"), "w") as file:
        file.write(TOML)
    directory, log = os.path.join(folder, "sockets"), os.path.join(folder, "log")
    with open(log, "w") as output:
        command = [*ONECOPY, "serve", os.path.join(folder, "pool.toml"), "--directory", directory]
        process = subprocess.Popen(command, stderr=output)

    def tcp() -> list[str]:
        with open(log) as file:
            return re.findall(r"listening at (tcp://\S+)", file.read())

    try:
        wait_until(lambda: bool(tcp()) or process.poll() is not None, timeout_s=60)
        yield f"ipc://{directory}", tcp()[0]
    finally:
        process.terminate()
        process.wait()


def run_batch(folder: str, endpoint: str) -> dict[str, Any]:
    """Have a job run, killed in the middle and resumed; return how it went."""
    given, results = os.path.join(folder, "in.jsonl"), os.path.join(folder, "out.jsonl")
    with open(given, "w") as file:
        file.writelines(
            json.dumps({"id": number, "args": [{"tensor": [number / LINES] * 4}]}) + "\n"
            for number in range(LINES)
        )
    command = ["batch", "linear", "--input", given, "--output", results, "--endpoint", endpoint, "--no-progress"]
    job = subprocess.Popen([*ONECOPY, *command], stderr=subprocess.DEVNULL)
    wait_until(lambda: os.path.exists(results) and os.path.getsize(results) > 0, timeout_s=60)
    job.kill()
    job.wait()
    with open(results) as file:
        before = len(file.readlines())
    subprocess.run([*ONECOPY, *command, "--resume"], check=True, stderr=subprocess.DEVNULL)
    with open(results) as file:
        ids = [json.loads(line)["id"] for line in file]
    return {"lines_before_the_kill": before, "each_line_once_and_in_order": ids == list(range(LINES))}


def refused(endpoint: str, keys: str | None = None) -> str:
    """Return why a client is not let in."""
    try:
        Pool.connect(endpoint, keys=keys).shutdown()
    except (InvalidRequest, SupervisorLost) as error:
        return error.message
    return ""


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        keys = os.path.join(folder, "keys")
        onecopy("keys", "new", keys, "--client", "alice", "--client", "bob")
        alice, bob = (os.path.join(folder, f"{name}.key_secret") for name in ("alice", "bob"))
        for path in (alice, bob):  # to where they are used
            os.rename(os.path.join(keys, "issued", os.path.basename(path)), path)
        x = torch.ones(4)
        with served(folder) as (local, tcp):
            with Pool.connect(local) as app, Pool.connect(tcp, keys=alice) as remote:
                is_equal = torch.equal(app.run("linear", x), remote.run("linear", x))
                facts: dict[str, Any] = {"lines": LINES} | run_batch(folder, local)
                onecopy("keys", "revoke", keys, "bob")
                rows = [row_of("an app, a job, a client over tcp", app.memory())]
            other = onecopy("keys", "new", os.path.join(folder, "other"), "--client", "mallory").split()[1]
            facts |= {
                "all_get_the_same": is_equal,
                "without_keys": refused(tcp),
                "with_keys_of_another_server": refused(tcp, other),
                "with_keys_that_were_revoked": refused(tcp, bob),
            }
    show("a pool that nobody owns, 2 workers", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
