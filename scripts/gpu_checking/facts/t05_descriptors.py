"""Who gets a copy of an exported descriptor without having asked for it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from .. import vmm
from ..check import Check
from ..nvml import Gpu
from ..units import GIB, MIB


def check(check: Check) -> None:
    """An exported descriptor is closed on exec; where it is not, the program that inherits it holds the memory."""
    gpu = Gpu()
    inheritable_before = inheritable()
    vmm.start()
    check.figure("inheritable descriptors opened by cuInit", len(inheritable() - inheritable_before))
    before = gpu.settled_free_bytes()
    region = vmm.create(GIB)
    fd = region.export()
    target = os.readlink(f"/proc/self/fd/{fd}")
    check.figure("what the descriptor is", target)
    closes = bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    check.claim("the driver exports it closed on exec", closes, f"FD_CLOEXEC: {closes}")
    for is_inheritable in (False, True):
        os.set_inheritable(fd, is_inheritable)
        with started(["sleep", "60"]) as program:
            has_it = target_in(program.pid, fd) == target
            words = "inherits it if it is inheritable" if is_inheritable else "does not inherit it otherwise"
            check.claim(f"a program that is started {words}", has_it == is_inheritable)
            if is_inheritable:
                os.close(fd)
                region.release()
                held = before - gpu.settled_free_bytes()
                check.claim("then it alone holds the memory", held >= GIB, f"{held / MIB:.0f} MiB taken")
    back_ms = gpu.wait_until_free(before - vmm.SLACK_BYTES)
    check.claim("the memory is free after that program's end", back_ms is not None)
    if back_ms is not None:
        check.figure("free after the end of the program, ms", back_ms)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program with all inheritable descriptors, and kill it in the end."""
    with subprocess.Popen(command, close_fds=False) as program:
        try:
            yield program
        finally:
            program.kill()


def inheritable() -> set[int]:
    """Return the descriptors of this process that a program started by it would get."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if not fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.add(int(name))
        except OSError:  # the one by which the folder was listed
            continue
    return found


def target_in(pid: int, fd: int) -> str:
    """Return what a descriptor of another process is; nothing if it has none of that number."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""
