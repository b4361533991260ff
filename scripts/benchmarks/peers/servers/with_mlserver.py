"""The model of an MLServer server, of one workload."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from ..adapters.base import Job
from ..workloads import encode


class Answerer(MLModel):
    """Bytes in, bytes out: one element of a BYTES tensor each."""

    async def load(self) -> bool:
        from ..models import load

        self._job = Job.of_environment()
        self._answer = load(self._job.workload, self._job.weights, self._job.loading)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answer = bytes(encode(self._answer(self._job.about.decode(payload.inputs[0].data[0]))))
        output = ResponseOutput(name="y", shape=[1], datatype="BYTES", data=[answer])
        return InferenceResponse(model_name=self.name, outputs=[output])
