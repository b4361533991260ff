"""Several instances of one model, and different models with the same weights: each weight is in memory once.

Nobody says what is to be shared: equal weights are found by their content. Memory appears when a model is first
used, and goes with its last user, however that user ends. Only who says ``sharing="private"`` has its own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import get_context
from typing import Any

import torch
from onecopy.pool import Model, Pool
from showing import arguments, row_of, show, wait_until
from torch import nn

WIDTH, LAYERS = 1024, 8
TEXT = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)


class Classifier(nn.Module):
    """A backbone of 34 MB that is the same in all, and a head of 4 MB that is not."""

    def __init__(self, head: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        torch.manual_seed(1 + head)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the head makes of the text."""
        return self.head(self.backbone(x))


#: What comes into use, one after another.
MODELS = {
    "first": Model(Classifier, args=(0,)),
    "again": Model(Classifier, args=(0,)),  # another instance of the same model
    "other": Model(Classifier, args=(1,)),  # a different model with the same backbone
    "own": Model(Classifier, args=(0,), sharing="private"),
}
PRIVATE = {name: Model(Classifier, args=model.args, sharing="private") for name, model in MODELS.items()}


def use(models: dict[str, Model], pool: Pool) -> list[Any]:
    """Use one model after another; return a row for each."""
    rows = [row_of("declared, none used", pool.memory())]
    for name in models:
        pool.run(name, TEXT)
        rows.append(row_of(f"{name!r} used", pool.memory()))
    return rows


def run_while_loading(pool: Pool) -> dict[str, Any]:
    """Use a model for as long as another is loaded; return how many requests were answered meanwhile."""
    loading = threading.Thread(target=pool.load, args=("late", Model(Classifier, args=(2,))))
    started_at = time.perf_counter()
    loading.start()
    answered = 0
    while loading.is_alive():
        pool.run("first", TEXT)
        answered += 1
    took_s = time.perf_counter() - started_at
    pool.unload("late")
    return {"load_took_s": round(took_s, 2), "answered_during_the_load": answered}


def hold(endpoint: str, pipe: Any) -> None:
    """Hold a model in this process, until the end."""
    with Pool.connect(endpoint) as pool:
        model = pool.attach("first")
        pipe.send(model(TEXT).detach().numpy())
        signal.pause()


def kill_users(pool: Pool) -> list[Any]:
    """Have users of the weights end by ``kill -9``; return a row for each step."""
    ours, theirs = get_context("spawn").Pipe()
    holder = get_context("spawn").Process(target=hold, args=(pool.endpoint, theirs))
    holder.start()
    ours.recv()
    rows = [row_of("a process attached to 'first'", pool.memory())]
    for worker in pool.status().workers:
        os.kill(worker.pid, signal.SIGKILL)
    for name in MODELS:
        pool.unload(name)
    rows.append(row_of("workers killed, all unloaded", pool.memory()))
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    wait_until(lambda: pool.memory().weights_bytes == 0)
    rows.append(row_of("the attached process killed", pool.memory()))
    return rows


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    with Pool(MODELS, workers=2) as pool:
        rows = use(MODELS, pool)
        shared = {one.model: one for one in pool.memory().weights}
        plain = Classifier(1)
        torch.set_num_threads(pool.status().threads)
        with torch.inference_mode():
            is_equal = torch.equal(pool.run("other", TEXT), plain(TEXT))
        facts = run_while_loading(pool)
        rows += kill_users(pool)
    with Pool(PRIVATE, workers=2) as pool:
        unshared = use(PRIVATE, pool)[-1]
    rows.append(unshared._replace(what="all four used, none sharing"))
    facts |= {
        "other_shares_with": sorted(shared["other"].shared_with),
        "own_shares_with": sorted(shared["own"].shared_with),
        "equal_to_plain": is_equal,
    }
    show("four models with one backbone, 2 workers", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
