"""What the environment says: cores, folders, and what children are started with. Nobody else in `pool` reads it.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile

from .memory.machine import LinuxMachine, NumaNode


def my_cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def cores() -> int:
    """Return how many cores' worth of time this process may use: those above, or less where a group limits it."""
    return LinuxMachine().cores()


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


def history_path() -> str:
    """Return the file in which this user's pools remember what models need."""
    return os.path.join(cache_folder(), "needs.json")


def runtime_base() -> str:
    """Return the folder under which this user's pools keep their sockets.

    ``$XDG_RUNTIME_DIR/onecopy`` where there is one, else ``onecopy-UID`` in the folder for temporary files.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return os.path.join(runtime, "onecopy")
    return os.path.join(tempfile.gettempdir(), f"onecopy-{os.getuid()}")


def default_directory(name: str = "default") -> str:
    """Return the folder in which this user's standalone supervisor of that name keeps its sockets."""
    return os.path.join(runtime_base(), name)


def default_endpoint() -> str:
    """Return where a standalone supervisor of this user is found: ``$ONECOPY_ENDPOINT``, or the default pool."""
    return os.environ.get("ONECOPY_ENDPOINT", "") or f"ipc://{default_directory()}"


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
