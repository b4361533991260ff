"""Models that tell where their memory lies, and that do with it what models may do."""

from __future__ import annotations

import os
import signal

import torch
from torch import nn

MIB = 1 << 20


def place_of(tensor: torch.Tensor) -> str:
    """What lies at a tensor's address, as the kernel calls it: the name of a file, or nothing."""
    address = tensor.data_ptr()
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end:
                return name[0].strip() if name else ""
    return "nowhere"


def is_in_slot(tensor: torch.Tensor) -> bool:
    return "onecopy-slot" in place_of(tensor)


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether another process would see what is written here."""
    address = tensor.data_ptr()
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, mode, *_ = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end:
                return mode[3] == "s"
    return False


class Slotted(nn.Module):
    """Tells about memory, and uses it."""

    def __init__(self, count: int = 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(count)))
        self.kept: list[torch.Tensor] = []
        self.table: torch.Tensor | None = None

    def forward(self, x):
        return x * 2 + self.weight[1]

    def places(self, x):
        """Who runs this; whether the input, what is computed, and the weight lie in a slot."""
        result = x + 1
        return os.getpid(), is_in_slot(x), is_in_slot(result), is_in_slot(self.weight)

    def use(self, count_bytes: int, value: int = 7) -> int:
        """Fill so much memory with a pattern; return the sum of its first and last byte."""
        memory = torch.full((count_bytes,), value, dtype=torch.uint8)
        return int(memory[0]) + int(memory[-1])

    def keep(self, value: int, count: int = 100_000):
        """Keep a tensor of a value; return who has it."""
        self.kept.append(torch.full((count,), float(value)))
        return os.getpid()

    def kept_values(self):
        """Who this is, and what is in what was kept: it must all be one value."""
        values = []
        for tensor in self.kept:
            assert float(tensor.min()) == float(tensor.max()), f"somebody else wrote here: {tensor.unique()}"
            values.append(float(tensor[0]))
        return os.getpid(), values, [is_shared(tensor) for tensor in self.kept]

    def let_go(self):
        self.kept.clear()
        return os.getpid()

    def with_table(self, x):
        """Build something lazily, once, as rotary embeddings do."""
        if self.table is None:
            self.table = torch.arange(200_000.0)
        return x + self.table[: x.numel()]

    def shapes(self, count: int):
        x = torch.arange(float(count))
        return float((x.reshape(-1, 1) * torch.ones(1, 50)).sum())

    def spoil_and_die_once(self, x, path: str):
        """Write into the input, and die; the second time tell what was in it."""
        seen = float(x.min()), float(x.max())
        x.fill_(-1.0)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return seen
        os.kill(os.getpid(), signal.SIGKILL)
        return seen

    def fork(self, x):
        """What a forked child reads of a tensor of this run, although this process writes into it meanwhile."""
        from_child, to_parent = os.pipe()
        parent_done, done = os.pipe()
        y = x * 3
        pid = os.fork()
        if pid == 0:
            os.read(parent_done, 1)
            z = y + 1  # its own memory
            y.fill_(0)
            os.write(to_parent, float(z.max()).hex().encode())
            os._exit(0)
        y += 100
        os.write(done, b"x")
        told = float.fromhex(os.read(from_child, 100).decode())
        os.waitpid(pid, 0)
        for fd in (from_child, to_parent, parent_done, done):
            os.close(fd)
        return told, float(y.max())

    def load_in_parallel(self, x):
        """Read a tensor of this run through a DataLoader with processes of its own."""
        from torch.utils.data import DataLoader, TensorDataset

        total = 0.0
        for (batch,) in DataLoader(TensorDataset(x * 2), batch_size=64, num_workers=2):
            total += float(batch.sum())
        return total

    def run_program(self):
        """What a program that the model starts sees of the allocator."""
        import subprocess

        command = ["/bin/sh", "-c", "echo ${LD_PRELOAD:-none}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def hold(self, path: str, begun: str):
        from pool_models import Trouble

        y = torch.ones(MIB)
        Trouble().wait_for(path, begun)
        return float(y.sum())

    def raising(self, x):
        y = x * 2
        raise ValueError(f"no {float(y[0])}")

    def cores(self):
        """By thread, where this process may run; after having used all its threads."""
        a = torch.ones(600, 600)
        float((a @ a).sum())
        tasks = sorted(int(task) for task in os.listdir("/proc/self/task"))
        return torch.get_num_threads(), [sorted(os.sched_getaffinity(task)) for task in tasks]


def make_slotted():
    return Slotted()
