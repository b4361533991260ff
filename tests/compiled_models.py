"""Packages of torch's ahead-of-time compiler for tests; run as a program, it compiles them into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

WIDTH = 1000
X = torch.arange(16)


@torch.library.custom_op("onecopy_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


class Net(nn.Module):
    """Ties, a transposed weight, a constant of its own; most of it in two large matrices."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.mixing = nn.Parameter(torch.randn(WIDTH, WIDTH).t() / WIDTH)

    def forward(self, tokens, *, scale):
        hidden = self.embedding(tokens) @ self.mixing
        return {"scores": self.head(self.down(torch.relu(self.up(hidden)))) * scale}


class Counter(nn.Module):
    """Calls an operator that is not torch's, and writes into a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x):
        self.count.add_(1)
        return torch.ops.onecopy_tests.twice(x) + self.count


def package(path):
    """A factory for a package that needs this file's operator."""
    from onecopy.workers.aoti_package import load_compiled

    return load_compiled(path).model


def net():
    torch.manual_seed(0)
    return Net().eval()


SCALE = torch.tensor(0.5)
WITHOUT = {"aot_inductor.package_constants_in_so": False}
SETTINGS = {
    "inside": {},
    "behind": {"aot_inductor.force_mmap_weights": True},
    "blob": WITHOUT | {"aot_inductor.package_constants_on_disk_format": "binary_blob"},
    "files": WITHOUT | {"aot_inductor.package_constants_on_disk_format": "pickle_weights"},
    "folded": {"aot_inductor.use_runtime_constant_folding": True},
}


def main(folder):
    from torch._inductor import aoti_compile_and_package

    module = net()
    torch.save(module.state_dict(), folder / "state.pt")
    program = torch.export.export(
        module, (X,), {"scale": SCALE}, dynamic_shapes={"tokens": {0: torch.export.Dim("n", min=2)}, "scale": {}}
    )
    for name, settings in SETTINGS.items():
        aoti_compile_and_package(program, package_path=str(folder / f"{name}.pt2"), inductor_configs=settings)
    program = torch.export.export(Counter().eval(), (torch.ones(4),))
    aoti_compile_and_package(program, package_path=str(folder / "counter.pt2"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
