"""In a container whose memory is limited: pressure ends in evictions and refusals, not in a kill."""

import json
import os
import subprocess
import sys

from containers import memory_group

MB = 10**6

PROGRAM = """
import os, sys
with open({procs!r}, "w") as file:
    file.write(str(os.getpid()))
import torch
from onecopy.pool import Model, OutOfBudget, Pool

class Constant(torch.nn.Module):
    def __init__(self, number, size_mb):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((size_mb * 250_000,), float(number)))

    def forward(self, x):
        return x + self.weight[-1]

class Large(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty({large} // 4))

if __name__ == "__main__":
    models = {{f"m{{one}}": Model(Constant, args=(one, 60)) for one in range(8)}}
    with Pool(models, workers=2) as pool:
        for _ in range(2):
            for one in range(8):
                assert float(pool.run(f"m{{one}}", torch.zeros(()))) == one
        (device,) = pool.memory().devices
        assert device.total_bytes <= {limit}, device
        assert device.evicted_bytes > 0, device
        try:
            pool.load("large", Model(Large, weights={weights!r}))
        except OutOfBudget as error:
            print(error)
        assert float(pool.run("m3", torch.zeros(()))) == 3
"""


def write_zeros(path, size_bytes):
    """Write a safetensors file with one tensor, which takes no room on the disk."""
    header = {"weight": {"dtype": "F32", "shape": [size_bytes // 4], "data_offsets": [0, size_bytes]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors itself does it: the tensor can be mapped then
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size_bytes)


def test_models_that_do_not_fit_together_take_turns_and_the_kernel_kills_nobody(tmp_path):
    limit_bytes, large_bytes = 800 * MB, 900 * MB
    program, weights = tmp_path / "program.py", tmp_path / "large.safetensors"
    write_zeros(weights, large_bytes)
    with memory_group(limit_bytes) as group:
        values = {"procs": group.procs, "limit": limit_bytes, "large": large_bytes, "weights": str(weights)}
        program.write_text(PROGRAM.format(**values))
        done = subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, timeout=100, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stderr
        assert group.kills == 0
    assert "Eviction could free" in done.stdout
