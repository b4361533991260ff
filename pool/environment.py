"""What the environment says: cores, folders, and what children are started with. Nobody else in `pool` reads it.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Final

from .checks import ConfigError
from .memory.machine import LinuxMachine, NumaNode

#: A pool's start, and its first requests; a few megabytes of memory, and of a file.
RECORDED_EVENTS: Final = 1000

#: Where files that do not last can be; the last has only the few names of sockets, never memory.
_TEMPORARY: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - the folder made there is private


def my_cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def cores() -> int:
    """Return how many cores' worth of time this process may use: those above, or less where a group limits it."""
    return LinuxMachine().cores()


def spare_cores() -> int:
    """Return how many cores are left for workers if their supervisor and a client have one each; at least one."""
    return max(1, cores() - 2)


def cores_are_limited() -> bool:
    """Whether a group grants less time than all those cores have: then no cores are anybody's own."""
    return cores() < len(my_cores())


def numa_nodes() -> dict[int, NumaNode]:
    """Return the nodes of this machine that have cores which this process may use, by number."""
    return {number: node for number, node in LinuxMachine().numa_nodes().items() if node.cores}


def memory_bytes() -> int:
    """Return how much memory this process may take: what the machine has, or less where a group limits it."""
    return LinuxMachine().total_bytes()


def cache_folder() -> str:
    """Return the folder in which this user's pools keep what can be made again: ``$ONECOPY_CACHE_DIR``, if set."""
    cache = os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache")
    return os.environ.get("ONECOPY_CACHE_DIR", "") or os.path.join(cache, "onecopy")


def config_folder() -> str:
    """Return the folder in which this user keeps settings of onecopy."""
    config = os.environ.get("XDG_CONFIG_HOME", "") or os.path.expanduser("~/.config")
    return os.path.join(config, "onecopy")


def default_keys() -> str:
    """Return the file with this client's keys for endpoints over tcp: ``$ONECOPY_KEYS``, or nothing."""
    return os.environ.get("ONECOPY_KEYS", "")


def use_keys(path: str) -> None:
    """Let this process, and what it starts, have these keys by default."""
    os.environ["ONECOPY_KEYS"] = path


def history_path() -> str:
    """Return the file in which this user's pools remember what models need."""
    return os.path.join(cache_folder(), "needs.json")


def recorded_events() -> int:
    """Return how many events the flight recorder keeps of a pool's start, and of its end.

    ``$ONECOPY_RECORD_EVENTS``, if that is set; 0: none.

    Raises:
        ConfigError: that is no whole number.
    """
    said = os.environ.get("ONECOPY_RECORD_EVENTS", "") or str(RECORDED_EVENTS)
    if not said.isdecimal():
        raise ConfigError(f"ONECOPY_RECORD_EVENTS must be a whole number of events, from 0; not {said!r}")
    return int(said)


def runtime_base() -> str:
    """Return the folder under which this user's pools keep their sockets.

    ``$XDG_RUNTIME_DIR/onecopy`` where there is one, else ``onecopy-UID`` in the folder for temporary files; where
    that cannot be written to, as in many a read-only container, in the one for shared memory.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return os.path.join(runtime, "onecopy")
    given = (os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP"))
    folders = [folder for folder in (*given, *_TEMPORARY) if folder]
    usable = (folder for folder in folders if os.access(folder, os.W_OK | os.X_OK))
    return os.path.join(os.path.abspath(next(usable, folders[0])), f"onecopy-{os.getuid()}")


def default_directory(name: str = "default") -> str:
    """Return the folder in which this user's standalone supervisor of that name keeps its sockets."""
    return os.path.join(runtime_base(), name)


def default_endpoint() -> str:
    """Return where a standalone supervisor of this user is found: ``$ONECOPY_ENDPOINT``, or the default pool."""
    return os.environ.get("ONECOPY_ENDPOINT", "") or f"ipc://{default_directory()}"


def visible_gpus() -> str:
    """Return which GPUs CUDA is to show, as ``$CUDA_VISIBLE_DEVICES`` says; empty if that says nothing."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def with_also(values: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with some more, for one that it starts."""
    return {**os.environ, **values}


def zygote_environment() -> dict[str, str]:
    """Return the environment of the zygote and, through it, of every worker."""
    # OpenBLAS starts its threads when numpy is imported, and a process with threads must not fork. NVML tells
    # whether there is a GPU without initialising CUDA, which would not survive a fork either.
    needed = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    # Arrow's allocator, which pandas may import, starts a thread unless told not to. A compiled package aborts its
    # process on an input of another dtype, and computes nonsense on one of another shape, unless it checks them.
    better = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    return better | os.environ | needed | _preloaded_allocator()


def _preloaded_allocator() -> dict[str, str]:
    """Return what puts the slots' allocator in front of whatever is preloaded here already."""
    package = importlib.util.find_spec("onecopy.workers")
    for folder in (package and package.submodule_search_locations) or ():
        path = os.path.join(folder, "libonecopy_arena.so")
        if os.path.exists(path) and not set(path) & set(" :"):  # which would end it in a list of libraries
            theirs = os.environ.get("LD_PRELOAD", "")
            return {"LD_PRELOAD": f"{path}:{theirs}" if theirs else path}
    return {}
