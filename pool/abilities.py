"""What onecopy needs of kernel, C library and packages, each tried in the way in which it is used.

A check returns what it found, and raises `Missing` with what it did not find. What it looks at are its arguments,
so that each can be shown something that is not there.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import importlib.metadata
import inspect
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import zmq

from . import environment
from .memory.machine import LinuxMachine
from .memory.spill import SpillFolder, SpillRefused
from .views import size

#: Linux's SO_PEERPIDFD (6.5); Python's socket module does not name it.
SO_PEERPIDFD: Final = 77
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_BOUND: Final = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)*)")


class Missing(Exception):
    """Something is not there; the message says what."""


# --- the kernel ----------------------------------------------------------------------------------------------


def sealed_memory(seals: int = _SEALS) -> str:
    """Try to write into a sealed memfd that is mapped privately."""
    with ExitStack() as stack:
        fd = os.memfd_create("doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, fd)
        os.write(fd, b"x")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        stack.enter_context(mmap.mmap(fd, 1, access=mmap.ACCESS_COPY))
        try:
            os.write(fd, b"x")
        except PermissionError:
            return "a write is refused"
    raise Missing("sealed memory can be written")


def executable_memory(flags: int = os.MFD_CLOEXEC) -> str:
    """Map a memfd as code."""
    fd = os.memfd_create("doctor", flags)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(fd)
    return "can be mapped"


def slots() -> str:
    """Start a process as workers are started, and have it try a slot."""
    if without := in_a_worker(
        "from onecopy.workers.preload import without_slots; import torch; print(without_slots())"
    ):
        raise Missing(without)
    return "torch takes its memory from them"


def is_compiled(module: str = "onecopy.pool.core.core") -> bool:
    """Whether a module, by default one that every request goes through, is compiled."""
    return not (importlib.import_module(module).__file__ or ".py").endswith(".py")


def compiled_modules(module: str = "onecopy.pool.core.core") -> str:
    """Look whether the modules that every request goes through are compiled."""
    if not is_compiled(module):
        raise Missing("this is an editable install, or was built without a C compiler or with ONECOPY_COMPILE=0")
    return "by mypyc"


def in_a_worker(program: str) -> str:
    """Return what a program says in a process that is started as workers are; it is missing if that fails."""
    done = subprocess.run(  # noqa: S603 - our own modules
        [sys.executable, "-P", "-c", program],
        env=environment.zygote_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Missing(done.stderr.strip().rpartition("\n")[2])
    return done.stdout.strip()


def sent_file(path: str = "/proc/self/exe") -> str:
    """Have the kernel copy from a file into a memfd."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("doctor", os.MFD_CLOEXEC)
    try:
        if not os.sendfile(fd, source, 0, mmap.PAGESIZE):
            raise Missing(f"nothing was copied from {path}")
    finally:
        os.close(fd)
        os.close(source)
    return "copies"


def process_descriptor(pid: int | None = None) -> str:
    """Open a descriptor of a process."""
    os.close(os.pidfd_open(os.getpid() if pid is None else pid))
    return "opens"


def peer_descriptor(option: int = SO_PEERPIDFD) -> str:
    """Ask a unix socket for a descriptor of the process at its other end."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        os.close(one.getsockopt(socket.SOL_SOCKET, option))
    return "opens"


def signal_of_a_pipe(signum: int = signal.SIGKILL) -> str:
    """Choose the signal that a pipe is to send when its writers are gone."""
    read_fd, write_fd = os.pipe()
    try:
        fcntl.fcntl(read_fd, fcntl.F_SETSIG, signum)
        fcntl.fcntl(read_fd, fcntl.F_SETOWN, os.getpid())
    finally:
        os.close(read_fd)
        os.close(write_fd)
    return "can be chosen"


def line_of(path: str, beginning: str) -> str:
    """Find a line in a file of the kernel's."""
    with open(path, encoding="utf-8", errors="replace") as file:
        if any(line.startswith(beginning) for line in file):
            return f"tells {beginning.rstrip(':')}" if beginning else "can be read"
    raise Missing(f"{path} has no line {beginning!r}")


def descriptors(least: int, limits: Callable[[], tuple[int, int]] | None = None) -> str:
    """Look at how many descriptors a process may open if it asks for it."""
    soft, hard = limits() if limits else resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < least:
        raise Missing(f"{hard:,} at most, and {least:,} are good to have; raise it with ulimit -Hn")
    return f"{soft:,}, and {'any number' if hard == resource.RLIM_INFINITY else f'{hard:,}'} if asked for"


def mappings(least: int, path: str = "/proc/sys/vm/max_map_count") -> str:
    """Look at how many mappings a process may have."""
    with open(path, encoding="ascii") as file:
        most = int(file.read())
    if most < least:
        raise Missing(f"{most:,} at most, and {least:,} are good to have; raise it with sysctl vm.max_map_count")
    return f"{most:,}"


def limits(root: str = "/") -> str:
    """Look at how much memory and time a pool may take, and at what keeps it from taking all of the machine's."""
    machine = LinuxMachine(root)
    total_bytes, physical_bytes = machine.total_bytes(), machine.physical_bytes()
    there, mine = os.cpu_count() or 1, machine.cores()
    memory = f"{size(total_bytes)} of memory, {size(machine.available_bytes())} available"
    if total_bytes < physical_bytes:
        memory += f" (a control group's limit; the machine has {size(physical_bytes)})"
    return f"{memory}; {mine} cores" + (f" of {there}" if mine < there else "")


def spill_folder(path: str = "") -> str:
    """Look at the folder to which weights are evicted."""
    folder = SpillFolder(path or environment.cache_folder())
    try:
        return f"{folder.path}: room for {size(folder.check(0))}"
    except SpillRefused as error:
        raise Missing(str(error)) from None


def socket_folder() -> str:
    """Return the folder under which pools would keep their sockets."""
    base = environment.runtime_base()
    if not os.access(base if os.path.isdir(base) else os.path.dirname(base), os.W_OK | os.X_OK):
        raise Missing(f"{base} cannot be written to; set XDG_RUNTIME_DIR to a folder that can")
    return base


# --- libraries -----------------------------------------------------------------------------------------------


def encryption() -> str:
    """Look whether ZeroMQ has CURVE; return its version."""
    if not zmq.has("curve"):
        raise Missing(f"ZeroMQ {zmq.zmq_version()} was built without CURVE")
    return f"ZeroMQ {zmq.zmq_version()}"


def symbol(name: str) -> str:
    """Find a function in the C library."""
    try:
        getattr(ctypes.CDLL(None), name)
    except AttributeError:
        raise Missing(f"this C library has no {name}") from None
    return "there"


def package(name: str) -> str:
    """Find a package, importing none of it; return its version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(f"not installed; pip install {name}") from None


def supported_version(name: str, requirements: list[str] | None = None) -> str:
    """Import a package that onecopy requires, and compare its version with what onecopy was tested with."""
    wanted = next(one for one in requirements or _requirements() if re.match(rf"{name}\b(?!-)", one))
    version = package(name)
    _import(name)
    here = _numbers(version)
    for relation, bound in _BOUND.findall(wanted):
        if (here >= _numbers(bound)) != (relation == ">="):
            raise Missing(f"{version} is here, and tested is {wanted.partition(';')[0]}")
    return version


def parameter(path: str, name: str) -> str:
    """Find a parameter of a function of a package: ``"package.module:Class.method"``."""
    function = attribute_of(path)
    try:
        is_there = name in inspect.signature(function).parameters
    except ValueError:  # written in C++: its signature is the first line of what it says of itself
        is_there = f"{name}:" in (function.__doc__ or "").split("\n", 1)[0]
    if not is_there:
        raise Missing(f"{path} takes no {name}")
    return "there"


def attribute(path: str) -> str:
    """Find an attribute of a package: ``"package.module:Class.method"``."""
    attribute_of(path)
    return "there"


def attribute_of(path: str) -> Any:
    """Return what a path such as ``"package.module:Class.method"`` leads to."""
    module, _, names = path.partition(":")
    found = _import(module)
    for name in names.split("."):
        found = getattr(found, name, None)
    if found is None:
        raise Missing(f"there is no {path}")
    return found


def _import(name: str) -> Any:
    top = name.partition(".")[0]
    if not sys.modules.get(top):  # the command line does without it where it need not be there
        sys.modules.pop(top, None)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise Missing(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _requirements() -> list[str]:
    return importlib.metadata.requires("onecopy") or []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
