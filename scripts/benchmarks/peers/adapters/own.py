"""onecopy itself, measured like the others."""

from __future__ import annotations

import time

from ..clients import Client, FutureClient
from ..workloads import weights_path
from .base import Adapter


class Onecopy(Adapter):
    """A pool whose supervisor loads the weights once. With ``mapped`` they stay in the file.

    The model is warm: workers are forked from a process that has it, once it is loaded, and those that were there
    before are replaced.
    """

    can_grow = True

    def start(self) -> Client:
        from onecopy.pool import Model, Pool

        job = self.job
        weights = None if job.workload == "minilm" else weights_path(job.workload, job.weights)
        residency = "file" if job.loading == "mapped" else "memory"
        args = (job.workload,)
        model = Model("peers.models:build", args=args, weights=weights, residency=residency, warm=True)
        # `grow` wants one more, which a pool gets when requests have waited for a worker. All may run at once, as
        # those of the others do: by default no more would than there are cores.
        most = job.workers + job.spare
        self._pool = Pool({"model": model}, workers=(job.workers, most), slots=most, threads=1)
        handle = self._pool.model("model")
        return FutureClient(handle.submit, handle)

    def settle(self) -> None:
        before: set[int] = set()
        while True:
            workers = self._pool.status().workers
            now = {one.pid for one in workers if one.is_thawed and one.models}
            if now == before and len(now) == len(workers) == self.job.workers:
                return
            before = now
            time.sleep(1)

    def grow(self) -> Client:
        """The load that follows makes the pool grow by itself."""
        handle = self._pool.model("model")
        return FutureClient(handle.submit, handle)

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)
