"""A file of weights is loaded by reference, made ready once for all workers, or mapped where it lies.

One network, five ways: its weights taken from a safetensors file into the one copy; a program that was exported
with other weights, and computes with these; the file itself mapped, which takes no memory; the weights folded by a
``prepare`` that runs once, however many workers there are; and the same in eight bits, whose storages are shared
as they are. No way holds a second copy in any worker.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from onecopy.pool import Model, Pool
from safetensors.torch import save_file
from showing import arguments, row_of, show
from torch import nn

WIDTH, LAYERS = 1024, 10
WORKERS = 2
X = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


class Net(nn.Module):
    """Ten layers of 4 MB, each scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.scale = nn.Parameter(torch.full((LAYERS,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layers make of ``x``."""
        for layer, scale in zip(self.layers, self.scale, strict=True):
            x = torch.tanh(layer(x) * scale)
        return x


class EightBits(nn.Module):
    """A layer whose weights are whole numbers of eight bits, with a scale for each row."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("numbers", torch.round(weight / scale).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of ``x``."""
        return x @ (self.numbers.float() * self.scale).T


def fold(net: Net) -> Net:
    """Put the scales into the weights, and say in a file that this was done."""
    for layer, scale in zip(net.layers, net.scale, strict=True):
        layer.weight = nn.Parameter(layer.weight.detach() * scale.detach())
    net.scale = nn.Parameter(torch.ones(LAYERS))
    with open(os.environ["EXAMPLE_FOLDED"], "a") as file:
        print(os.getpid(), file=file)
    return net


def quantise(net: Net) -> Net:
    """Make the weights of each layer whole numbers of eight bits."""
    net.layers = nn.ModuleList(map(EightBits, net.layers))
    return net


def exported(folder: str) -> str:
    """Export the network with weights of no use; return the path of the program."""
    path = os.path.join(folder, "net.pt2")
    torch.export.save(torch.export.export(Net(), (X,)), path)
    return path


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    torch.manual_seed(0)
    net = Net()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.safetensors")
        os.environ["EXAMPLE_FOLDED"] = os.path.join(folder, "folded")
        save_file(net.state_dict(), path)
        models = {
            "loaded": Model(Net, weights=path),
            "exported": Model(exported(folder), weights=path),
            "mapped": Model(Net, weights=path, residency="file", sharing="private"),
            "folded": Model(Net, weights=path, prepare=fold),
            "eight_bits": Model(Net, weights=path, prepare=quantise),
        }
        rows, facts = measure(net, models)
        with open(os.environ["EXAMPLE_FOLDED"]) as file:
            facts["times_folded"] = len(file.readlines())
        facts["file_bytes"] = os.path.getsize(path)
    show(f"one file of weights, {WORKERS} workers", rows, facts, as_json=options.json)


def measure(net: Net, models: dict[str, Model]) -> tuple[list[Any], dict[str, Any]]:
    """Use one model after another; return a row for each, and what came out."""
    rows, facts, private = [], {}, []
    with Pool(models, workers=WORKERS, slots=WORKERS) as pool, torch.inference_mode():
        torch.set_num_threads(pool.status().threads)
        expected = net(X)
        for name in models:
            answers = list(pool.map(name, [X] * 20 * WORKERS))
            facts[f"{name}_is_off_by"] = max(float((answer - expected).abs().max()) for answer in answers)
            memory = pool.memory()
            rows.append(row_of(f"{name!r} used", memory))
            private.append([one.private_bytes for one in memory.processes if one.role == "worker"])
        facts["workers_grew_by_at_most_bytes"] = max(private[-1]) - min(private[0])
        facts["fallbacks"] = list(pool.status().fallbacks)
    return rows, facts


if __name__ == "__main__":
    main()
