"""Activation memory of 8 workers that run 4 models in 2 slots, against 8 plain processes that do the same.

Measured from outside, as everywhere: the proportional share of anonymous and file pages of all processes, and
every region once. What a process takes when it has loaded the models, and has run nothing yet, is not counted; the
most that is seen from then on is. All processes run all models in turn, as fast as they can, with one thread each.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from forwards import conv_net, mlp, transformer
from onecopy.pool import Model, Pool
from onecopy.pool.supervisor.sampler import read_memory
from outside import Watch
from torch import nn

WORKERS, SLOTS = 8, 2
ROUNDS = 5
#: Requests with shapes of their own, and how many of them come before memory is looked at.
SHAPES, WARM_UP = 10_000, 1000


def wide() -> tuple[nn.Module, torch.Tensor]:
    """Return a model whose activations are larger than its weights by far, and its input."""
    return nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 64)), torch.rand(20_000, 64)


MAKERS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "conv net": conv_net,
    "MLP": mlp,
    "transformer": transformer,
    "wide": wide,
}


class Runner:
    """A model with its input: a request need only ask for a run."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model, self.x = MAKERS[name]()
        self.model.eval()

    def __call__(self) -> float:
        return float(self.model(self.x).sum())

    def ready(self) -> bool:
        """Be loaded, and no more."""
        return True


def measure() -> dict[str, Any]:
    """Return megabytes."""
    alone = {name: _alone(name) for name in MAKERS}
    largest = max(alone.values())
    pool, plain = _pool(), _plain()
    return {
        "one run in a plain process, MB": alone,
        **{f"pool, MB: {name}": value for name, value in pool.items()},
        "plain processes, MB": plain,
        "(slots + spilled) / (2 x the largest)": (pool["slots"] + pool["spilled"]) / (SLOTS * largest),
        "pool / plain processes": pool["all activations"] / plain,
        f"{SHAPES:,} shapes": _shapes(),
    }


def _pool() -> dict[str, float]:
    models = {name: Model(Runner, args=(name,), warm=True) for name in MAKERS}
    names = {name: name.replace(" ", "-") for name in MAKERS}
    with Pool({names[name]: models[name] for name in MAKERS}, workers=WORKERS, slots=SLOTS, threads=1) as pool:

        def run_everywhere(method: str) -> None:
            """Until each worker has run each model: they are handed work in any order."""
            for name in names.values():
                handle = pool.model(name, method=method)
                for future in [handle.submit() for _ in range(2 * WORKERS)]:
                    future.result()

        run_everywhere("ready")
        with Watch(lambda: pool.memory().total_bytes / 1e6) as watch:
            for _ in range(ROUNDS):
                run_everywhere("__call__")
        memory = pool.memory()
        slots, spilled = memory.slots_bytes / 1e6, memory.spilled_bytes / 1e6
        return {
            "all activations": watch.taken,
            "slots": slots,
            "spilled": spilled,
            "each worker besides": (watch.taken - slots) / WORKERS,
        }


class Shaped:
    """Takes memory in proportion to what it is asked for."""

    def __call__(self, rows: int) -> float:
        return float((torch.full((rows, 4096), 0.5) * 2)[-1].sum())


def _shapes() -> dict[str, float]:
    """Run a model with other shapes each time, larger and larger: answers stay right, and memory stays."""
    # After the first thousand they have been as small as they get, but not as large.
    sizes = [1 + (7919 * number) % (100 + min(number, SHAPES // 2) * 23 // 50) for number in range(SHAPES)]
    with Pool({"m": Shaped()}, workers=2, slots=2, threads=1) as pool:

        def private_mb() -> float:
            return sum(one.private_bytes for one in pool.memory().processes if one.role == "worker") / 1e6

        wrong = sum(found != 4096.0 for found in pool.map("m", sizes[:WARM_UP]))
        before_mb = private_mb()
        wrong += sum(found != 4096.0 for found in pool.map("m", sizes[WARM_UP:]))
        [ring] = pool.status().rings
        return {
            "wrong answers": wrong,
            "private memory of both workers grew by, MB": private_mb() - before_mb,
            "runs that did not fit": ring.spills,
            "slots may take, MB": ring.size_bytes / 1e6,
            "slots take, MB": ring.allocated_bytes / 1e6,
        }


def _plain() -> float:
    context = get_context("spawn")
    pipes, processes = [], []
    for _ in range(WORKERS):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    with Watch(lambda: sum(one.pss for p in processes if (one := read_memory(p.pid or 0))) / 1e6) as watch:
        for pipe in pipes:
            pipe.send(ROUNDS)
        for pipe in pipes:
            pipe.recv()
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(0)
        process.join()
    return watch.taken


def _serve(pipe: Any) -> None:
    torch.set_num_threads(1)
    runners = [Runner(name) for name in MAKERS]
    pipe.send("ready")
    with torch.inference_mode():
        while rounds := pipe.recv():
            for _ in range(rounds):
                for runner in runners:
                    runner()
            pipe.send("done")


def _alone(name: str) -> float:
    """Return what one run takes in a process of its own, in MB: by how much its largest size grew."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_grow, args=(theirs, name))
    process.start()
    grown = ours.recv()
    process.join()
    return grown


def _grow(pipe: Any, name: str) -> None:
    torch.set_num_threads(1)
    runner = Runner(name)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the largest size so far: that of the parent counts too
    before_kb = _status("VmRSS:")
    with torch.inference_mode():
        runner()
    pipe.send((_status("VmHWM:") - before_kb) * 1024 / 1e6)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


if __name__ == "__main__":
    import json

    print(json.dumps(measure(), indent=1))
