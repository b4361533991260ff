"""Models with quantised weights, of every kind; importable by workers, because `tests` is on the path."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator

import torch
from onecopy.workers.heap import anonymous_bytes
from onecopy.workers.opaque import opaque_parts
from torch import nn

WIDTH, LAYERS = 1024, 8

#: What one copy of the weights takes when each is one byte, without scales and biases.
INT8_BYTES = LAYERS * WIDTH * WIDTH

INPUT = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


def layers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]).eval()


def torchao_model(config: str, **options) -> nn.Module:
    from torchao import quantization

    model = layers(1)
    quantization.quantize_(model, getattr(quantization, config)(**options))
    return model


def torchao_int4_model() -> nn.Module:
    """Two weights a byte, packed for the CPU's own kernel."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    model = layers(2)
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=128, set_inductor_config=False))
    return model


def bitsandbytes_model(kind: str, **options) -> nn.Module:
    import bitsandbytes

    model = layers(3)
    for index, layer in enumerate(model):
        quantised = getattr(bitsandbytes.nn, kind)(WIDTH, WIDTH, **options)
        quantised.load_state_dict(layer.state_dict())
        model[index] = quantised
    model = model.to("cpu").eval()  # moving is what quantises
    # The first run moves weights to where they stay, and packs those of 4 bits for the CPU that it finds.
    with torch.inference_mode():
        model(INPUT)
    return model


class PackedInts(nn.Module):
    """Eight weights in each integer, as GPTQ and AWQ have them: plain buffers."""

    def __init__(self) -> None:
        super().__init__()
        words = torch.randint(-(2**31), 2**31 - 1, (WIDTH // 8, WIDTH), dtype=torch.int32)
        self.register_buffer("qweight", words)
        self.register_buffer("scales", torch.rand(WIDTH // 128, WIDTH) / WIDTH)
        self.register_buffer("group", torch.arange(WIDTH) // 128)
        self.register_buffer("shifts", torch.arange(0, 32, 4, dtype=torch.int32), persistent=False)

    def forward(self, x):
        nibbles = (self.qweight[:, None, :] >> self.shifts[None, :, None]) & 15
        return x @ ((nibbles.reshape(WIDTH, WIDTH) - 8) * self.scales[self.group])


def packed_ints_model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(*[PackedInts() for _ in range(LAYERS)]).eval()


class Channels(nn.Module):
    """A quantised tensor of torch's own, as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        weight, scales = torch.randn(WIDTH, WIDTH), torch.rand(WIDTH, dtype=torch.float64) + 0.1
        zeros = torch.zeros(WIDTH, dtype=torch.int64)
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.register_buffer("weight", quantised)

    def forward(self, x):
        return x @ self.weight.dequantize() / WIDTH


def channels_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(*[Channels() for _ in range(LAYERS)]).eval()


def dynamic_model(dtype: torch.dtype = torch.qint8) -> nn.Module:
    """Torch's dynamic quantisation: packed parameters, objects in C++."""
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(layers(6), {nn.Linear}, dtype=dtype)


#: Those whose weights are in storages, and how many bytes a weight takes there.
SHARED = {
    "torchao int8": (lambda: torchao_model("Int8WeightOnlyConfig"), 1),
    "torchao int8 dynamic": (lambda: torchao_model("Int8DynamicActivationInt8WeightConfig"), 1),
    "torchao intx": (lambda: torchao_model("IntxWeightOnlyConfig"), 1),
    "torchao float8": (lambda: torchao_model("Float8WeightOnlyConfig"), 1),
    "torchao int4": (torchao_int4_model, 0.5),
    "bitsandbytes int8": (lambda: bitsandbytes_model("Linear8bitLt", has_fp16_weights=False), 1),
    "bitsandbytes nf4": (lambda: bitsandbytes_model("Linear4bit", quant_type="nf4"), 0.5),
    "bitsandbytes fp4": (lambda: bitsandbytes_model("Linear4bit", quant_type="fp4"), 0.5),
    "packed ints": (packed_ints_model, 0.5),
    "torch qint8": (channels_model, 1),
}

#: Those whose weights are packed, each worker for itself.
PACKED = {
    "dynamic int8": dynamic_model,
    "dynamic float16": lambda: dynamic_model(torch.float16),
}


def run_plain(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(INPUT)


class Meter:
    """What this process had for itself when this was made, which is also when it is thawed."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        for name in packages:  # an import takes memory, too, that weights have nothing to do with
            importlib.import_module(name)
        self.packages = packages
        self.start_bytes = anonymous_bytes()

    def __reduce__(self):
        return Meter, (self.packages,)


class Measured:
    """A model that tells what its thaw took: the meter comes first in the pickle."""

    def __init__(self, model: nn.Module) -> None:
        packages = ("torchao.quantization", "bitsandbytes")
        self.meter = Meter(tuple(name for name in packages if name in sys.modules))
        self.model = model
        self.grown = Growth(self.meter)

    def __call__(self, x):
        return os.getpid(), self.model(x)

    def report(self) -> dict[str, object]:
        return {
            "grown_bytes": self.grown.by_bytes,
            "private": [name for name, tensor in memory_of(self.model) if not is_in_region(tensor)],
            "opaque": opaque_parts(self.model),
        }


class Growth:
    """How much more this process had for itself when this was made, or thawed: it comes last in the pickle."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.by_bytes = anonymous_bytes() - meter.start_bytes

    def __reduce__(self):
        return Growth, (self.meter,)


def memory_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that hold the weights, those inside of others as well."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield from _inner(name, tensor)


def _inner(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:
            yield from _inner(f"{name}.{inner}", getattr(tensor, inner))
        return
    yield name, tensor
    if getattr(tensor, "quant_state", None) is not None:
        yield f"{name}.quant_state.absmax", tensor.quant_state.absmax


def is_in_region(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in a memfd, as this process maps it."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, _, _, *path = line.split()
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= tensor.data_ptr() < end:
                return bool(path) and path[0].startswith("/memfd:")
    return False
