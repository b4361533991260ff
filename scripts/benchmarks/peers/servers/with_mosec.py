"""A mosec server of one workload. mosec reads the command line itself; the job is in the environment."""

from typing import Any

from mosec import Server, Worker

from ..adapters.base import Job
from ..workloads import encode

JOB = Job.of_environment()


class Answerer(Worker):
    """Bytes in, bytes out."""

    def __init__(self) -> None:
        super().__init__()
        from ..models import load

        self._model = load(JOB.workload, JOB.weights, JOB.loading)

    def deserialize(self, data: bytes) -> Any:
        return JOB.about.decode(data)

    def serialize(self, data: Any) -> bytes:
        return bytes(encode(data))

    def forward(self, data: Any) -> Any:
        return self._model(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Answerer, num=JOB.workers, timeout=60)
    server.run()
