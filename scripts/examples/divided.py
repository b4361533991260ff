"""A model that is larger than any device is divided by layers among two, beside a model that was there before.

The machine is divided into two logical devices, with room for two thirds of the model each. Nobody says where to
cut: the first device that is tried tells what it lacks, the loader gives each as many layers as it has room for,
and every worker maps both parts. What no division makes fit is refused, with the numbers.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from onecopy.pool import Model, OutOfBudget, Pool
from safetensors.torch import save_file
from showing import arguments, row_of, show
from torch import nn

WIDTH, LAYERS = 2048, 40  # 16 MiB each
DEVICES = {name: {"budget": "680MiB", "workers": 1} for name in ("cpu:0", "cpu:1")}
X = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)


class Deep(nn.Module):
    """Layers of the same size, one after the other."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layers make of ``x``."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def serve(deep: Deep, path: str) -> tuple[list[Any], dict[str, Any]]:
    """Load the model beside a small one; return what that takes, and what comes of it."""
    torch.set_num_threads(1)
    with Pool({"small": Model(Deep, args=(2,))}, devices=DEVICES, threads=1) as pool:
        pool.run("small", X)
        rows = [row_of("the small one", pool.memory())]
        pool.load("deep", Model(Deep, args=(LAYERS,), weights=path))
        answer, memory = pool.run("deep", X), pool.memory()
        rows.append(row_of("the deep one beside it", memory))
        with torch.inference_mode():
            is_equal = torch.equal(answer, deep(X))
        pool.unload("deep")
        try:
            pool.load("deep", Model(Deep, args=(LAYERS,), weights=path, divide=False))
        except OutOfBudget as error:
            refusal = str(error)
        else:
            refusal = ""
    return rows, {
        "equal_to_plain": is_equal,
        "weights_bytes": sum(tensor.nbytes for tensor in deep.state_dict().values()),
        "parts_bytes": {one.device: one.size_bytes for one in memory.weights if one.model == "deep"},
        "used_bytes": {one.name: one.used_bytes for one in memory.devices},
        "limits_bytes": {one.name: one.limit_bytes for one in memory.devices},
        "undivided": refusal,
    }


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    torch.manual_seed(0)
    deep = Deep(LAYERS)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "deep.safetensors")
        save_file(deep.state_dict(), path)
        rows, facts = serve(deep, path)
    show("a model that is larger than any device", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
