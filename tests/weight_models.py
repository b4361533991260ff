"""Modules that hold their weights in ways of their own, files of weights, and where weights lie."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn


class Tied(nn.Module):
    """Parameters tied as modules and as tensors; a buffer that others look into."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        gain = nn.Parameter(torch.randn(4), requires_grad=False)
        gain.note = "kept"
        self.gain, self.again = gain, gain
        self.register_buffer("table", torch.arange(6.0))
        self.first_half = self.table[:3]
        self.register_buffer("offset", torch.ones(1))
        self.same_offset = self.offset
        self.register_buffer("made", torch.full((2,), 7.0), persistent=False)

    def forward(self, x):
        hidden = self.embedding(x) * self.gain + self.again + self.first_half.sum() + self.same_offset
        return self.head(hidden) + self.table.sum() + self.offset + self.made.sum()


class Hidden(nn.Module):
    """Uses its weight through a list, where no module would look for it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept = [self.linear.weight]

    def forward(self, x):
        return x @ self.kept[0] + self.linear.bias


class Computing(nn.Module):
    """Computes a buffer from a weight while it is built."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        with torch.no_grad():
            self.linear.weight.fill_(0.5)
        self.register_buffer("doubled", self.linear.weight.detach() * 2, persistent=False)

    def forward(self, x):
        return self.linear(x) + self.doubled


class Asking(Computing):
    """Asks for the value of a weight while it is built."""

    def __init__(self):
        super().__init__()
        self.start = self.linear.weight[0, 0].item()


class Copying(nn.Linear):
    """Loads its weights its own way, under names of its own."""

    def __init__(self):
        super().__init__(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        with torch.no_grad():
            self.weight.copy_(state_dict[prefix + "weight"])
            self.bias.copy_(state_dict[prefix + "bias"])


class OldStyle(nn.Linear):
    """Overrides loading with the signature of old."""

    def __init__(self):
        super().__init__(4, 4)

    def load_state_dict(self, state_dict, strict=True):
        return super().load_state_dict({name.removeprefix("net."): v for name, v in state_dict.items()}, strict)


class Own(nn.Parameter):
    pass


class OwnKind(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = Own(torch.randn(4, 4))

    def forward(self, x):
        return x @ self.weight


def write_safetensors(path, header, data=b"", header_bytes=None):
    """Write a file by hand; ``header`` is JSON or bytes, ``header_bytes`` what the file says of its length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(raw) if header_bytes is None else header_bytes
    Path(path).write_bytes(length.to_bytes(8, "little") + raw + data)
    return str(path)


def file_of(tensor):
    """Return the path of the file in whose private mapping a tensor lies, "" for plain memory."""
    address = tensor.untyped_storage().data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, _, _, _, *path = line.split(None, 5)
        begin, end = (int(one, 16) for one in span.split("-"))
        if begin <= address < end:
            assert mode.endswith("p")
            return path[0] if path and os.path.isabs(path[0]) else ""
    raise AssertionError(f"nothing is mapped at {address:#x}")


class Pipeline:
    """Holds a module and is none."""

    def __init__(self):
        self.model = nn.Linear(2, 2)


def doubled(model):
    return model.double()


def double(model):
    model.double()


def large():
    return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(12)))


def measured(load):
    """Return what a call adds to the memory of this process: private in the end, and resident at its peak."""
    before = _kilobytes("smaps_rollup", "Pss_Anon"), _kilobytes("status", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    kept = load()
    after = _kilobytes("smaps_rollup", "Pss_Anon"), _kilobytes("status", "VmHWM")
    del kept
    return {"private": (after[0] - before[0]) * 1024, "peak": (after[1] - before[1]) * 1024}


def _kilobytes(file, field):
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {field} in {file}")


def main(path):
    """Measure loading by reference and loading by copy, and print both."""
    from onecopy.workers.by_reference import build_without_weights, load
    from onecopy.workers.weight_files import open_weights
    from safetensors.torch import save_file

    shapes = {name: tensor.shape for name, tensor in build_without_weights(large, (), {}).state_dict().items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(state, path)
    size_bytes = sum(tensor.nbytes for tensor in state.values())
    del state
    load(nn.Linear, (2, 2), {}, nn.Linear(2, 2).state_dict())  # what is imported for the first load only

    def copied():
        module = large()
        module.load_state_dict(open_weights(path).state)
        return module

    results = [measured(lambda: load(large, (), {}, open_weights(path).state)), measured(copied)]
    print(json.dumps([size_bytes, *results]))


if __name__ == "__main__":
    main(sys.argv[1])
