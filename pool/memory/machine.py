"""The seam between decisions about memory and the machine: what there is, and what of it can still be taken.

What limits this process counts before what the machine has: the control groups around it, and its affinity mask.
Swap counts nowhere. Memory is what fits without anything being swapped out, because weights and activations that
are swapped out serve nobody, and where there is no swap the kernel kills instead.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .cgroups import ControlGroups, fields, read


class NumaNode(NamedTuple):
    """Cores and the memory that is nearest to them.

    Attributes:
        cores: those that this process may use.
        memory_bytes: how much memory it has, whoever may take it.
    """

    cores: tuple[int, ...]
    memory_bytes: int


class Machine(Protocol):
    """Tells what there is."""

    def total_bytes(self) -> int:
        """Return how much memory this process and those beside it in its groups may take, in bytes."""
        ...

    def available_bytes(self) -> int:
        """Return how much memory could be taken now, in bytes, from 0.

        What the kernel would drop for it, pages of files that were read, counts as available. Nothing is reserved:
        two who ask at the same time get the same answer.
        """
        ...

    def cores(self) -> int:
        """Return how many cores' worth of time this process may use, at least one."""
        ...


class LinuxMachine:
    """The machine that this process runs on, as ``/proc`` and the control groups tell.

    Args:
        root: the folder in which ``proc`` and ``sys`` are found.
    """

    def __init__(self, root: str = "/") -> None:
        self._meminfo = os.path.join(root, "proc/meminfo")
        self._nodes = os.path.join(root, "sys/devices/system/node")
        self._groups = ControlGroups(root)

    def __repr__(self) -> str:
        return f"<LinuxMachine, {self.total_bytes():,} bytes, {self.cores()} cores>"

    def total_bytes(self) -> int:
        """Return the least of what the machine has and what any group around this process may take."""
        return min([self.physical_bytes(), *(group.limit_bytes for group in self._groups.memory())])

    def available_bytes(self) -> int:
        """Return the least of what the machine has available and what any group around this process leaves."""
        machine_bytes = fields(self._meminfo)["MemAvailable"] * 1024
        left_bytes = (group.limit_bytes - group.used_bytes for group in self._groups.memory())
        return max(0, min([machine_bytes, *left_bytes]))

    def cores(self) -> int:
        """Return the least of the cores in the affinity mask and the groups' quotas, which are rounded up."""
        quotas = (math.ceil(cores) for cores in self._groups.cores())
        return max(1, min([len(os.sched_getaffinity(0)), *quotas]))

    def numa_nodes(self) -> dict[int, NumaNode]:
        """Return the nodes by number; none where the kernel tells of none."""
        names = os.listdir(self._nodes) if os.path.isdir(self._nodes) else []
        mine = os.sched_getaffinity(0)
        nodes: dict[int, NumaNode] = {}
        for number in sorted(int(name[4:]) for name in names if name.startswith("node") and name[4:].isdigit()):
            folder = os.path.join(self._nodes, f"node{number}")
            cores = tuple(sorted(mine & read_cores(read(os.path.join(folder, "cpulist")))))
            kilobytes = fields(os.path.join(folder, "meminfo"), skip=2).get("MemTotal", 0)
            nodes[number] = NumaNode(cores, kilobytes * 1024)
        return nodes

    def physical_bytes(self) -> int:
        """Return how much memory the machine has, whoever may take it."""
        return fields(self._meminfo)["MemTotal"] * 1024


def read_cores(text: str) -> set[int]:
    """Return the cores of a kernel's list, such as ``0-3,8``."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


@dataclass
class FakeMachine:
    """A machine that is as large as it is told to be.

    Attributes:
        memory_bytes: what it has.
        used_bytes: what of it is taken.
        core_count: how many cores it has.
    """

    memory_bytes: int = 1 << 34
    used_bytes: int = 0
    core_count: int = 4

    def total_bytes(self) -> int:
        """Return what it was told; see `Machine.total_bytes`."""
        return self.memory_bytes

    def available_bytes(self) -> int:
        """Return what is not taken; see `Machine.available_bytes`."""
        return max(0, self.memory_bytes - self.used_bytes)

    def cores(self) -> int:
        """Return what it was told; see `Machine.cores`."""
        return self.core_count
