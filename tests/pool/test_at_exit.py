"""What becomes of a pool when the process that has it exits, or a fork of that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from standalone import TOYS, environment, standalone

HEAD = """
import os, sys, threading
from pathlib import Path
from onecopy.pool import Pool
def main():
    global pool  # one that is garbage is ended at once
    pool = {pool}
    toys = pool.model("toys", method="wait_for")
"""
OWN = 'Pool({"toys": "toy_models:toys"}, workers=1)'


def script(tmp_path, pool, body):
    """Start a script whose function ``main`` goes on with this."""
    path = tmp_path / "script.py"
    path.write_text(f"{HEAD.format(pool=pool)}{body}\nif __name__ == '__main__':\n    main()\n")
    return subprocess.Popen(
        [sys.executable, path], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output.split(), errors


SUBMIT = """
    for number in range(3):
        future = pool.model("toys", method="square").submit(number)
        future.add_done_callback(lambda future: print(future.result()))
"""


def test_what_was_submitted_is_answered_before_an_app_exits(tmp_path):
    assert ended(script(tmp_path, OWN, SUBMIT)) == (0, ["0", "1", "4"], "")


def test_what_a_connected_app_submitted_is_answered_too(tmp_path):
    with standalone(tmp_path) as served:
        process = script(tmp_path, f"Pool.connect({served.endpoint!r})", SUBMIT)
        assert ended(process) == (0, ["0", "1", "4"], "")
        assert served.is_serving()


DAEMONS = """
    def ask():
        while True:
            pool.model("toys", method="square")(2)
    def read():
        for _ in pool.model("endless", method="count").stream():
            pass
    pool.load("endless", "toy_models:Endless")
    for target in (ask, read):
        threading.Thread(target=target, daemon=True).start()
    models = {}
    while not models or not models["toys"].answered or not models["endless"].running:
        models = {one.name: one for one in pool.models()}
"""


def test_daemons_that_ask_and_read_on_and_on_keep_no_app_from_exiting(tmp_path):
    assert ended(script(tmp_path, OWN.replace("workers=1", "workers=2"), DAEMONS))[0] == 0
    with standalone(tmp_path, TOYS.replace("workers = 1", "workers = 2")) as served:
        assert ended(script(tmp_path, f"Pool.connect({served.endpoint!r})", DAEMONS))[0] == 0


def test_who_exits_by_an_exception_does_not_wait(tmp_path):
    body = """
    toys.submit("never")
    raise SystemError("enough")
"""
    code, _, errors = ended(script(tmp_path, OWN, body))
    assert (code, errors.strip().splitlines()[-1]) == (1, "SystemError: enough")


@pytest.mark.parametrize("child", ["sys.exit(0)", "os._exit(0)", "pool.shutdown(); sys.exit(0)"])
@pytest.mark.parametrize("holds", ["with pool:", "if True:"])
def test_a_fork_that_exits_leaves_the_pool_of_its_parent_alone(tmp_path, child, holds):
    body = f"""
    square = pool.model("toys", method="square")
    {holds}
        due = toys.submit("go")
        while not Path("go.seen").exists():
            pass
        if os.fork() == 0:
            {child}
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        Path("go").touch()
        print(due.result(), square(3))
"""
    body = body.replace('"go', f'"{tmp_path}/go')
    assert ended(script(tmp_path, OWN, body)) == (0, ["0", f"{Path(tmp_path)}/go", "9"], "")
