"""onecopy itself, measured like the others."""

from __future__ import annotations

from ..clients import Client, FutureClient
from ..models import weights_path
from .base import Adapter


class Onecopy(Adapter):
    """A pool whose supervisor loads the weights once. With ``mapped`` they stay in the file."""

    can_grow = True

    def start(self) -> Client:
        from onecopy.pool import Model, Pool

        job = self.job
        weights = None if job.workload == "minilm" else weights_path(job.workload, job.weights)
        residency = "file" if job.loading == "mapped" else "memory"
        model = Model("peers.models:build", args=(job.workload,), weights=weights, residency=residency)
        # `grow` wants one more, which a pool gets when requests have waited for a worker. All may run at once, as
        # those of the others do: by default no more would than there are cores.
        most = job.workers + job.spare
        self._pool = Pool({"model": model}, workers=(job.workers, most), slots=most, threads=1)
        handle = self._pool.model("model")
        return FutureClient(handle.submit, handle)

    def grow(self) -> Client:
        """The load that follows makes the pool grow by itself."""
        handle = self._pool.model("model")
        return FutureClient(handle.submit, handle)

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)
