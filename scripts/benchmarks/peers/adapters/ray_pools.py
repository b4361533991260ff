"""Ray: actors, with and without tensors in its object store, and Ray Serve's handles."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

from ..clients import CallingClient, Client, FutureClient
from .base import Adapter

#: Room for requests and answers under way, and for the weights of the big model.
_OBJECT_STORE_BYTES = 3 << 30


class _Answerer:
    """What runs in an actor.

    Args:
        make: returns the model; a state dict for it, where the actor is given one, comes last.
        arguments: its arguments.
    """

    def __init__(self, make: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        self._model = make(*arguments)

    def __call__(self, payload: Any) -> Any:
        return self._model(payload)

    answer = __call__


def _load(*arguments: Any) -> Any:
    from ..models import load

    return load(*arguments)


def _adopt(*arguments: Any) -> Any:
    from ..models import adopt

    return adopt(*arguments)


class _Ray(Adapter):
    """A cluster of one node that ends with this process."""

    def _init(self) -> Any:
        import ray

        ray.init(
            address="local",
            num_cpus=self.job.workers + self.job.spare,  # as many processes are started ahead
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=self.job.folder,
            log_to_driver=False,
        )
        return ray

    def stop(self) -> None:
        import ray

        ray.shutdown()


class Actors(_Ray):
    """An actor for each worker, asked in turn; each loads the weights."""

    can_grow = True

    def start(self) -> Client:
        ray = self._init()
        self._actor = ray.remote(num_cpus=1)(_Answerer)
        self._actors = [self._actor.remote(*self._how()) for _ in range(self.job.workers)]
        return self._client()

    def grow(self) -> Client:
        self._actors.append(self._actor.remote(*self._how()))
        return self._client()

    def _how(self) -> tuple[Any, ...]:
        return _load, self.job.workload, self.job.weights, self.job.loading

    def _client(self) -> Client:
        import ray

        turns = itertools.cycle(self._actors)

        def send(payload: Any) -> Future[Any]:
            return cast("Future[Any]", next(turns).answer.remote(payload).future())

        return FutureClient(send, lambda payload: ray.get(next(turns).answer.remote(payload)))


class SharingActors(Actors):
    """The same with the weights in Ray's object store, whose tensors actors map without a copy.

    Needs RAY_ENABLE_ZERO_COPY_TORCH_TENSORS=1, which the catalogue sets.
    """

    def _how(self) -> tuple[Any, ...]:
        import ray

        if not hasattr(self, "_state"):
            name, weights = self.job.workload, self.job.weights

            def state() -> Any:  # in a worker: the process that asks holds no model
                return _load(name, weights, "copied").state_dict()

            self._state = ray.remote(num_cpus=0)(state).remote()
        return _adopt, self.job.workload, self._state


class Serve(_Ray):
    """Ray Serve: a deployment with a replica for each worker, asked through its handle."""

    can_grow = True

    def start(self) -> Client:
        self._init()
        return self._run(self.job.workers)

    def grow(self) -> Client:
        return self._run(self.job.workers + 1)

    def stop(self) -> None:
        from ray import serve

        serve.shutdown()
        super().stop()

    def _run(self, replicas: int) -> Client:
        from ray import serve

        deployment = serve.deployment(
            num_replicas=replicas, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64
        )(_Answerer)
        job = self.job
        handle = serve.run(deployment.bind(_load, job.workload, job.weights, job.loading), route_prefix=None)
        return CallingClient(lambda payload: handle.remote(payload).result(), threads=64)
