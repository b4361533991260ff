"""The whole zoo, and the plain results that everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from zoo import decoders, dense, encoders, mixed, pairs, sound, vision
from zoo.specimens import Specimen
from zoo_models import Exhibit

GROUPS: dict[str, list[Specimen]] = {
    "encoders": encoders.ENCODERS,
    "decoders": decoders.DECODERS,
    "mixtures of experts": decoders.EXPERT_MIXTURES,
    "state spaces": decoders.STATE_SPACES,
    "encoder-decoders": pairs.ENCODER_DECODERS,
    "insides": pairs.INSIDES,
    "generations": pairs.GENERATIONS,
    "images": vision.CLASSIFIERS,
    "films": vision.VIDEOS,
    "detectors and segmenters": dense.DENSE,
    "sounds": sound.SOUNDS,
    "time series": sound.TIMES,
    "multimodal": mixed.MULTIMODAL,
    "composed": mixed.COMPOSED,
}
SPECIMENS = [specimen for group in GROUPS.values() for specimen in group]


@dataclass
class Shown:
    """A specimen that has run here once.

    Attributes:
        exhibit: what is frozen.
        inputs: what it is called with.
        expected: what it returned.
    """

    exhibit: Exhibit
    inputs: dict[str, object]
    expected: dict[str, torch.Tensor]


def show(specimen: Specimen) -> Shown:
    """Build a specimen and run it, as a worker would: one thread, inference mode."""
    exhibit, inputs = Exhibit(specimen.build(), specimen.method), specimen.inputs()
    with torch.inference_mode():
        expected = exhibit(inputs)
    # Constant or broken outputs would be equal whatever became of the weights.
    assert any(_tells_something(tensor) for tensor in expected.values()), f"{specimen.name} says nothing"
    return Shown(exhibit, inputs, expected)


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Name the tensors that do not agree bit for bit."""
    missing = [f"{path} is on one side only" for path in sorted(found.keys() ^ expected.keys())]
    return missing + [
        f"{path} differs" for path in found.keys() & expected.keys() if _bits(found[path]) != _bits(expected[path])
    ]


def weights_bytes(exhibit: Exhibit) -> int:
    """What the parameters and buffers of a model measure, shared ones once."""
    model = exhibit.model
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tensor.size(), flat.view(torch.uint8).numpy().tobytes()


def _tells_something(tensor: torch.Tensor) -> bool:
    return not tensor.isnan().any() and len(tensor.unique()) > 1
