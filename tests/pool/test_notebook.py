"""A pool in a notebook: no main guard, interrupts end the wait alone, a cell may run again."""

from __future__ import annotations

import os
import re
import signal

import jupyter_client
import pool_models
import psutil
import pytest
from jupyter_core.utils import ensure_event_loop
from leftovers import wait_until

MAKE = f"""
import os, sys, time, warnings
sys.path.insert(0, {os.path.dirname(pool_models.__file__)!r})
import pool_models, torch
from onecopy.pool import Pool
class Here(torch.nn.Module):  # defined in the notebook
    def forward(self, x): return x + 1
pool = Pool({{"here": Here(), "trouble": pool_models.Trouble()}}, workers=2)
print("answer", float(pool.run("here", torch.ones(1))))
print("supervisor", pool.status().pid)
"""


@pytest.fixture
def kernel(tmp_path):
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield Notebook(manager, client)
    client.stop_channels()
    manager.shutdown_kernel()
    manager.cleanup_resources()
    client.context.destroy()
    ensure_event_loop().close()  # which the client made in this thread


class Notebook:
    """Runs cells as a notebook does."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    def run(self, code: str, when_running=None) -> str:
        message = self.client.execute(code)
        output = ""
        while True:
            reply = self.client.get_iopub_msg(timeout=60)
            if reply["parent_header"].get("msg_id") != message:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind == "stream":
                output += content["text"]
            elif kind == "error":
                output += content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                self.client.get_shell_msg(timeout=60)
                return output
            if when_running is not None and "running" in output:
                when_running()
                when_running = None


def test_a_notebook_can_interrupt_rerun_and_end(kernel, tmp_path):
    output = kernel.run(MAKE)
    assert "answer 2.0" in output
    first = int(re.search(r"supervisor (\d+)", output)[1])
    wait = f"print('running', flush=True); pool.model('trouble', method='wait_for')({str(tmp_path / 'go')!r})"
    output = kernel.run(wait, when_running=lambda: kernel.manager.interrupt_kernel())
    assert "KeyboardInterrupt" in output
    (tmp_path / "go").touch()
    assert "answer 3.0" in kernel.run("print('answer', float(pool.run('here', torch.ones(1) * 2)))")
    assert psutil.pid_exists(first)
    output = kernel.run(MAKE)  # the cell again: the old pool must go
    second = int(re.search(r"supervisor (\d+)", output)[1])
    assert second != first
    assert wait_until(lambda: not psutil.pid_exists(first))
    assert "hello from a worker" in kernel.run(
        "pool.model('trouble', method='say')('hello from a worker'); time.sleep(0.5)"
    )
    os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(second))
