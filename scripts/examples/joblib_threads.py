"""joblib with a pool: ``Parallel(n_jobs=8, backend="threading")(delayed(model)(x) for x in xs)`` uses all workers.

There is no joblib backend that sends functions to a pool, and there will be none: code never travels to a pool's
workers, so whoever may use a pool can do nothing else with it. Nor is one needed. A handle of a model is called
like a function; its thread sleeps while a worker runs, and holds no lock of Python. Threads that do nothing but
wait cost next to nothing, and as many workers run as there are.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from joblib import Parallel, delayed
from onecopy.pool import Pool
from showing import arguments, row_of, show
from torch import nn

WORKERS, CALLS = 2, 64
WIDTH, LAYERS = 512, 8


class Stack(nn.Module):
    """Eight layers of 1 MB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the result, and which process it is of."""
        return self.layers(x), os.getpid()


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    plain, xs = Stack(), [torch.full((256, WIDTH), float(number)) for number in range(CALLS)]
    torch.set_num_threads(1)
    with Pool({"stack": Stack}, workers=WORKERS, slots=WORKERS, threads=1) as pool:
        stack = pool.model("stack")
        stack(xs[0])
        began_at = time.perf_counter()
        results: list[Any] = Parallel(n_jobs=8, backend="threading")(delayed(stack)(x) for x in xs)
        took_s = time.perf_counter() - began_at
        rows = [row_of(f"{WORKERS} workers", pool.memory())]
    with torch.inference_mode():
        is_equal = all(torch.equal(plain(x)[0], y) for x, (y, _) in zip(xs, results, strict=True))
    facts = {
        "calls_per_s": round(CALLS / took_s),
        "workers_that_ran": len({pid for _, pid in results}),
        "equal_to_plain": is_equal,
    }
    show(f"{CALLS} calls by joblib's threads", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
