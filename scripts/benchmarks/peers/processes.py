"""The processes of a peer, seen from outside: what they take of memory, and their end, whatever they do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

SHARED_MEMORY = "/dev/shm"
_PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
#: How long processes may take to be gone after they were killed.
_END_S = 10.0
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever that of the file system is


@dataclass(frozen=True, slots=True)
class Footprint:
    """What processes take together.

    Attributes:
        anonymous_bytes, file_bytes: their proportional shares of anonymous pages, and of pages of files.
        shared_bytes: every piece of shared memory that one of them has open or mapped, once.
        processes: how many there are.
    """

    anonymous_bytes: int
    file_bytes: int
    shared_bytes: int
    processes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.anonymous_bytes + self.file_bytes + self.shared_bytes


def footprint(pids: Iterable[int]) -> Footprint:
    """Measure processes: the total is anonymous and file pages of each, and shared memory once.

    Shared memory is counted by the blocks that it has allocated. What is mapped and not open can be looked at by
    the superuser alone; for others the pages that these processes have touched are counted, if they are more.
    """
    anonymous = files = touched = count = 0
    blocks: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            sizes = _rollup(pid)
            anonymous += sizes.get("Pss_Anon", 0)
            files += sizes.get("Pss_File", 0)
            touched += sizes.get("Pss_Shmem", 0)
            count += 1
            blocks |= _shared_memory(pid)
    return Footprint(anonymous, files, max(touched, sum(blocks.values())), count)


def _rollup(pid: int) -> dict[str, int]:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        lines = file.read().splitlines()[1:]
    return {name.rstrip(":"): int(value) * 1024 for name, value, *_ in map(str.split, lines)}


def _shared_memory(pid: int) -> dict[tuple[int, int], int]:
    """Return the allocated bytes of all shared memory that a process has open or mapped, by device and inode."""
    found: dict[tuple[int, int], int] = {}
    for folder in ("fd", "map_files"):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/{folder}"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/{folder}/{name}")
                    if status.st_dev in _shared_devices() and stat.S_ISREG(status.st_mode):
                        found[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return found


def _shared_devices() -> set[int]:
    """Return the file systems whose files are shared memory: the kernel's own, and /dev/shm."""
    if not _devices:
        fd = os.memfd_create("probe")
        _devices.update((os.fstat(fd).st_dev, os.stat(SHARED_MEMORY).st_dev))
        os.close(fd)
    return _devices


_devices: set[int] = set()


def adopt_orphans() -> None:
    """Let processes whose parent ends become children of this one, so that none can leave its tree."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int) -> list[int]:
    """Return the processes that descend from one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def end_all() -> None:
    """Kill every process that descends from this one, orphans too, and wait until they are gone.

    Raises:
        TimeoutError: one of them cannot be killed.
    """
    left = psutil.Process().children(recursive=True)
    while left:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(left, _END_S)
        if alive:
            raise TimeoutError(f"processes that cannot be killed: {alive}")
        left = psutil.Process().children(recursive=True)  # what was started meanwhile, or has become an orphan


def remove_left_shared_memory(before: Iterable[str]) -> None:
    """Remove what has appeared in /dev/shm and nobody uses any more: names outlive processes that were killed.

    Args:
        before: what was there before, and stays.
    """
    for name in set(os.listdir(SHARED_MEMORY)) - set(before) - _shared_memory_in_use():
        with contextlib.suppress(OSError):
            os.unlink(f"{SHARED_MEMORY}/{name}")


def _shared_memory_in_use() -> set[str]:
    """Return the names in /dev/shm that any process has open or mapped."""
    prefix = f"{SHARED_MEMORY}/"
    return {
        os.path.basename(path.removesuffix(" (deleted)"))
        for process in psutil.process_iter()
        for path in (*_open_files(process.pid), *_mapped_files(process.pid))
        if path.startswith(prefix)
    }


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.readlink(f"/proc/{pid}/fd/{fd}")


def _mapped_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as file:
        for line in file:
            if len(fields := line.split(maxsplit=5)) == 6:
                yield fields[5].strip()
