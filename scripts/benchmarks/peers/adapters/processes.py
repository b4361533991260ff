"""Plain processes and the pools of processes that Python programs use: all clients are futures."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from ..clients import Client, FutureClient
from .base import Adapter, Job

#: The model of a worker process; of the parent, too, where workers are forked from it.
_model: Callable[[Any], Any] | None = None


def _set_up(workload: str, weights: str, loading: Any) -> None:
    global _model
    from ..models import load

    _model = load(workload, weights, loading)


def _adopt(model: Callable[[Any], Any]) -> None:
    global _model
    import torch

    torch.set_num_threads(1)
    _model = model


def _answer(payload: Any) -> Any:
    assert _model is not None
    return _model(payload)


def _answer_directly(payload: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(_answer(payload))
    return future


class Plain(Adapter):
    """The model in the process that asks it: no worker, no way to anywhere."""

    counts_client = True

    def start(self) -> Client:
        _set_up(self.job.workload, self.job.weights, self.job.loading)
        return FutureClient(_answer_directly, _answer)

    def stop(self) -> None:
        """There is nothing to end."""


class Executor(Adapter):
    """`concurrent.futures.ProcessPoolExecutor` with spawned workers, each of which loads the model."""

    def start(self) -> Client:
        self._pool = ProcessPoolExecutor(
            self.job.workers, multiprocessing.get_context("spawn"), _set_up, _arguments(self.job)
        )
        return FutureClient(lambda payload: self._pool.submit(_answer, payload))

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class ForkedExecutor(Executor):
    """The same, forked from a parent that has loaded the model: pages are shared until somebody writes to them."""

    counts_client = True

    def start(self) -> Client:
        _set_up(*_arguments(self.job))
        self._pool = ProcessPoolExecutor(self.job.workers, multiprocessing.get_context("fork"))
        return FutureClient(lambda payload: self._pool.submit(_answer, payload))


class Loky(Adapter):
    """loky, the pool beneath joblib, which can be resized."""

    can_grow = True

    def start(self) -> Client:
        return self._resize(self.job.workers)

    def grow(self) -> Client:
        return self._resize(self.job.workers + 1)

    def stop(self) -> None:
        self._pool.shutdown(kill_workers=True)

    def _resize(self, workers: int) -> Client:
        from loky import get_reusable_executor

        self._pool = get_reusable_executor(
            workers, timeout=3600, initializer=_set_up, initargs=_arguments(self.job), reuse=True
        )
        return FutureClient(lambda payload: self._pool.submit(_answer, payload))


class TorchPool(Adapter):
    """`torch.multiprocessing.Pool`, spawned, with a model whose tensors were moved to shared memory."""

    counts_client = True

    def start(self) -> Client:
        import torch.multiprocessing

        from ..models import load

        model = load(self.job.workload, self.job.weights, self.job.loading).share_memory()
        context = torch.multiprocessing.get_context("spawn")
        self._pool = context.Pool(self.job.workers, _adopt, (model,))
        return FutureClient(self._send)

    def stop(self) -> None:
        self._pool.terminate()
        self._pool.join()

    def _send(self, payload: Any) -> Future[Any]:
        import torch

        future: Future[Any] = Future()
        sent = payload if isinstance(payload, str) else torch.from_numpy(payload)  # travels in shared memory
        self._pool.apply_async(_answer, (sent,), callback=future.set_result, error_callback=future.set_exception)
        return future


def _arguments(job: Job) -> tuple[str, str, str]:
    return job.workload, job.weights, job.loading
