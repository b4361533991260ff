"""Models of the usual kinds, a few megabytes each, whose runs take megabytes too; importable by workers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

#: One row of 64 words.
WORDS = [list(range(64))] * 4


class Layers(nn.Module):
    """Linear layers, each of 1 MiB."""

    def __init__(self, layers: int = 8):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(512, 512) for _ in range(layers)])

    def forward(self, rows: int):
        return self.layers(torch.ones(rows, 512)).relu().sum(0)


class Words(nn.Module):
    """A small encoder."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, words):
        return self.encoder(self.embedding(torch.tensor(words))).mean(1)


class Images(nn.Module):
    """Convolutions, which take more than their results."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, count: int):
        return self.layers(torch.ones(count, 3, 96, 96))


class Waves(nn.Module):
    """A recurrent net."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(64, 128, batch_first=True)

    def forward(self, length: int):
        return self.layer(torch.ones(4, length, 64))[0][:, -1]


class Choosing(nn.Module):
    """Looks at what it computes, which tensors without values cannot tell."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(256, 256), nn.Linear(256, 4096)
        nn.init.zeros_(self.small.weight)
        nn.init.ones_(self.small.bias)

    def forward(self, rows: int):
        hidden = self.small(torch.ones(rows, 256))
        return self.large(hidden).relu().sum(0) if bool(hidden.sum() > 0) else hidden.sum(0)


class Broken(nn.Module):
    """Cannot run."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, _):
        raise ValueError("there is nothing to be done")


class Wide(nn.Module):
    """Holds 64 MiB."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4096, 4096, bias=False)

    def forward(self, rows: int):
        return self.layer(torch.ones(rows, 4096)).sum(0)


def wide() -> nn.Module:
    """Return the same each time."""
    torch.manual_seed(0)
    return Wide()


def dies() -> nn.Module:
    """End the process that builds this."""
    os.abort()


#: What is run, with what, and what it is called.
KINDS: dict[str, tuple[type[nn.Module], object]] = {
    "layers": (Layers, 512),
    "words": (Words, (WORDS,)),
    "images": (Images, 4),
    "waves": (Waves, 200),
    "choosing": (Choosing, 256),
}


def write_weights(model: nn.Module, path: Path) -> str:
    """Write the weights of a module into a file; return its path."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)
