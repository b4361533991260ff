"""A PyTriton server of one workload. Its workers are threads of this process, which share the model."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from ..adapters.base import PORT_VARIABLE, Job
from ..adapters.servers import free_port
from ..models import load


def main() -> None:
    """Serve until the process is ended."""
    job = Job.of_environment()
    about = job.about
    model = load(job.workload, job.weights, job.loading)

    def answer(requests: list[Any]) -> list[dict[str, np.ndarray]]:
        return [{"y": _answer(request["x"])} for request in requests]

    def _answer(x: np.ndarray) -> np.ndarray:
        result = model(x if about.shape else x.tobytes().decode())
        result[-1] = threading.get_native_id()  # who has answered is a thread here
        return result

    config = TritonConfig(
        http_port=int(os.environ[PORT_VARIABLE]),
        grpc_port=free_port(),
        metrics_port=free_port(),
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
        log_verbose=0,
    )
    sent = Tensor(name="x", dtype=np.float32 if about.shape else np.uint8, shape=about.shape or (-1,))
    received = Tensor(name="y", dtype=np.float32, shape=(-1,))
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[answer] * job.workers,
            inputs=[sent],
            outputs=[received],
            config=ModelConfig(batching=False),
        )
        triton.serve()


if __name__ == "__main__":
    main()
