"""What a pool takes and leaves, looked at from outside: from /proc alone, without asking the pool."""

from __future__ import annotations

import os
import signal
import stat
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 512


@dataclass(frozen=True)
class Memory:
    """What processes take, in bytes.

    Attributes:
        private: their part of anonymous pages (``Pss_Anon``).
        files: their part of pages of files (``Pss_File``); it changes with whoever else maps those.
        regions: the blocks of every memfd that the supervisor has open, each once.
    """

    private: int
    files: int
    regions: int

    @property
    def own(self) -> int:
        """What nobody else has a part in: private pages and regions."""
        return self.private + self.regions

    @property
    def total(self) -> int:
        """Everything."""
        return self.own + self.files


def processes(runtime: Path) -> list[int]:
    """Return the processes that were started with this runtime folder, this one left out; no zombies."""
    pids = [int(one.name) for one in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != os.getpid() and _is_of(pid, runtime)]


def memory(pids: Iterable[int], supervisor: int) -> Memory:
    """Measure these processes, and the supervisor's regions."""
    sums: Counter[str] = Counter()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        for name, value, *_ in map(str.split, lines):
            sums[name] += int(value) * 1024
    return Memory(sums["Pss_Anon:"], sums["Pss_File:"], _regions_bytes(supervisor))


def descriptors(pid: int | str) -> Counter[str]:
    """Return how many descriptors of which kind a process has open; what it looks at in /proc is for a moment."""
    kinds: Counter[str] = Counter()
    for target in _targets(pid).values():
        if target.startswith("/proc/"):
            continue
        # Memory has a name after a colon, sockets and pipes a number; files are what they are called.
        kinds[target.split(":")[0] if target.startswith(("/memfd", "socket", "pipe")) else target] += 1
    return kinds


def children_of(pid: int) -> list[int]:
    """Return a process's children."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def held(pid: int, runtime: Path) -> Generator[int]:
    """Have a descriptor of a process, or -1 if it is none of this runtime folder's: numbers are given anew."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield -1
        return
    try:
        yield pidfd if _is_of(pid, runtime) else -1
    finally:
        os.close(pidfd)


def send(pidfd: int, number: signal.Signals) -> bool:
    """Signal a process; false if it is gone."""
    if pidfd < 0:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    return True


@contextmanager
def stopped(pids: Iterable[int], runtime: Path) -> Generator[None]:
    """Let processes stand still meanwhile, those of this runtime folder."""
    with ExitStack() as stack:
        for pid in pids:
            pidfd = stack.enter_context(held(pid, runtime))
            stack.callback(send, pidfd, signal.SIGCONT)
            send(pidfd, signal.SIGSTOP)
        yield


def nameless_files(pid: int, size_bytes: int) -> list[Path]:
    """Return the files of this size that a process has open and that have no name, each once; memory is none."""
    found: dict[int, Path] = {}
    for fd, target in _targets(pid).items():
        path = Path(f"/proc/{pid}/fd/{fd}")
        if target.endswith(" (deleted)") and not target.startswith("/memfd:"):
            with suppress(OSError):
                status = path.stat()
                if status.st_size == size_bytes:
                    found[status.st_ino] = path
    return list(found.values())


@contextmanager
def cut(path: Path) -> Generator[None]:
    """Let a file of at most a few megabytes be empty meanwhile."""
    with ExitStack() as stack:
        mode = path.stat().st_mode
        path.chmod(0o600)
        file = stack.enter_context(path.open("r+b"))  # the process may close it
        content = file.read()
        file.truncate(0)
        try:
            yield
        finally:
            file.seek(0)
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(mode))


def shared_memory() -> frozenset[str]:
    """Return what lies in the folder of named shared memory."""
    return frozenset(os.listdir("/dev/shm"))


def left_in(folder: Path) -> list[str]:
    """Return what lies in a runtime or cache folder that should not be there after the end."""
    expected = (folder / "run" / "onecopy", folder / "cache" / "needs.json")
    found = [path for name in ("run", "cache") for path in (folder / name).rglob("*")]
    return [str(path.relative_to(folder)) for path in found if path not in expected]


def _is_of(pid: int, runtime: Path) -> bool:
    """Whether a process was started with this runtime folder; what it was forked from may be gone."""
    try:
        return f"XDG_RUNTIME_DIR={runtime}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _targets(pid: int | str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
    return found


def _regions_bytes(pid: int) -> int:
    blocks: dict[int, int] = {}
    for fd, target in _targets(pid).items():
        if target.startswith("/memfd:"):
            try:
                status = os.stat(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) * _BLOCK_BYTES
