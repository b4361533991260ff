"""Two language models of different size at once: what each keeps of the speed that it has alone.

Random weights, greedy decoding, batch 1. *One at a time*: each model has one user, who waits for every answer;
with a core for each, nobody should notice the other. *Saturated*: each has more to do than can be done, and gets
the part of the workers that its share says. Beside it stands what a Python program does that runs each model in a
thread of its own. What is compared is measured in turns.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from onecopy.pool import Model, Pool

os.environ["HF_HUB_OFFLINE"] = "1"
SIZES = {"small": (2, 128), "large": (6, 512)}
TOKENS, PROMPT = 16, 8
TURNS, WINDOW_S = 3, 3.0
#: Requests of each model that are under way at once when there is more to do than can be done.
DEPTH = 16


def language_model(layers: int, width: int) -> torch.nn.Module:
    """Return a decoder with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=5000, eos_token_id=None, bos_token_id=None
    )
    return GPT2LMHeadModel(config).eval()


class Decoder:
    """A model, and how it is asked."""

    def __init__(self, layers: int, width: int) -> None:
        self.model = language_model(layers, width)

    def __call__(self, prompt: torch.Tensor) -> torch.Tensor:
        """Return the prompt ``[1, P]`` with `TOKENS` tokens after it."""
        return self.model.generate(  # pyright: ignore[reportCallIssue]
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )


def measure() -> dict[str, Any]:
    """Return the tokens a second of each model alone, and the part of that which it keeps beside the other."""
    prompt = torch.arange(PROMPT).reshape(1, PROMPT)
    models: dict[str, Any] = {}
    for name, size in SIZES.items():
        for share in (1, 3):
            models[f"{name}-{share}"] = Model(Decoder, args=size, share=share)
    with Pool(models, workers=2, slots=2, threads=1) as pool, _threads() as run:
        for name in models:
            pool.run(name, prompt)

        def one(model: str) -> None:
            pool.run(model, prompt)

        waiting: dict[str, deque[Any]] = {name: deque() for name in models}

        def many(model: str) -> None:
            futures = waiting[model]
            while len(futures) < DEPTH:
                futures.append(pool.submit(model, prompt))
            futures.popleft().result()

        def in_thread(model: str) -> None:
            run(model.partition("-")[0], prompt)

        return {
            "one at a time, pool": _compare(one, "small-1", "large-1"),
            "one at a time, threads of one process": _compare(in_thread, "small-1", "large-1"),
            "saturated, shares 1:1, pool": _compare(many, "small-1", "large-1"),
            "saturated, shares 3:1, pool": _compare(many, "small-3", "large-1"),
            "saturated, shares 1:3, pool": _compare(many, "small-1", "large-3"),
        }


@contextmanager
def _threads() -> Iterator[Callable[[str, torch.Tensor], Any]]:
    """Yield what runs a model in this process, one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    decoders = {name: Decoder(*size) for name, size in SIZES.items()}

    def run(name: str, prompt: torch.Tensor) -> Any:
        with torch.inference_mode():
            return decoders[name](prompt)

    yield run
    torch.set_num_threads(before)


def _compare(ask: Callable[[str], None], first: str, second: str) -> dict[str, Any]:
    """Measure two models alone and together, in turns."""
    alone: dict[str, list[float]] = {first: [], second: []}
    beside: dict[str, list[float]] = {first: [], second: []}
    for _ in range(TURNS):
        for name in (first, second):
            alone[name] += _speeds(ask, [name])
        for name, speed in zip((first, second), _speeds(ask, [first, second]), strict=True):
            beside[name].append(speed)
    kept = {name: statistics.median(beside[name]) / statistics.median(alone[name]) for name in alone}
    return {
        "alone, tokens/s": {name: statistics.median(speeds) for name, speeds in alone.items()},
        "kept beside the other": kept,
        "sum": sum(kept.values()),
    }


def _speeds(ask: Callable[[str], None], names: list[str]) -> list[float]:
    """Ask models at once, a thread for each; return the tokens a second of each."""
    counts = [0.0] * len(names)
    starts = threading.Barrier(len(names))

    def run(index: int) -> None:
        for _ in range(2 * DEPTH):  # so that what others had waiting before is done
            ask(names[index])
        starts.wait()
        started_at = time.perf_counter()
        while time.perf_counter() - started_at < WINDOW_S:
            ask(names[index])
            counts[index] += TOKENS
        counts[index] /= time.perf_counter() - started_at

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts
