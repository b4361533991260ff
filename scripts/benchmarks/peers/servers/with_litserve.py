"""A LitServe server of one workload. Annotations are values here: LitServe reads them."""

import os
from typing import Annotated, Any

import litserve
from fastapi import Body, Response

from ..adapters.base import PORT_VARIABLE, Job
from ..workloads import encode


class Api(litserve.LitAPI):
    """Bytes in, bytes out: JSON would cost far more than the models."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it
        from ..models import load

        self._model = load(self._job.workload, self._job.weights, self._job.loading)

    def decode_request(self, request: Annotated[bytes, Body()]) -> Any:
        return self._job.about.decode(request)

    def predict(self, x: Any) -> Any:
        return self._model(x)

    def encode_response(self, output: Any) -> Response:
        return Response(bytes(encode(output)), media_type="application/octet-stream")


if __name__ == "__main__":
    job = Job.of_environment()
    server = litserve.LitServer(Api(job), accelerator="cpu", devices=1, workers_per_device=job.workers, timeout=60)
    port = int(os.environ[PORT_VARIABLE])
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
