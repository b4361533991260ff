"""Two models of different size that are asked for tokens at once: in a pool, and by threads of one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..check import Check
from ..children import Child, Link
from .p2_one_copy import shape_of
from .setting import pool_of, sizes

#: Of what both would do if each had the GPU for half of the time.
LEAST_SUM = 1.0
#: Of one answer: each takes all weights once, as a token of a user who is alone does.
TOKENS = 16
#: How much smaller one of them is.
TIMES = 4

#: Asks a model for one answer.
Ask = Callable[[str], object]


def check(check: Check) -> None:
    """Two decoders of 1.7 and 7 B parameters at once do what each does in its share of the time, or more."""
    shapes = shapes_of_both()
    for mps in ("off", "on"):
        text = f"together they keep {LEAST_SUM:g} of what each does alone, recorded as graphs, MPS {mps}"
        with check.part(text):
            kept = pooled(shapes, mps)
            told(check, f"in a pool, MPS {mps}", kept)
            check.claim(text, sum(kept.values()) >= LEAST_SUM, f"{sum(kept.values()):.2f}")
    with Child(threaded, shapes) as child:
        told(check, "in threads of one process", child.receive(timeout_s=60.0)["kept"])


def shapes_of_both() -> dict[str, dict[str, int]]:
    """Return what makes either of them."""
    large = shape_of(sizes())
    return {"small": large | {"layers": max(1, large["layers"] // TIMES)}, "large": large}


def told(check: Check, where: str, kept: Mapping[str, float]) -> None:
    """Tell what each keeps of its rate."""
    for name, part in kept.items():
        check.figure(f"{where}, the {name} one keeps of its rate", part)


def pooled(shapes: Mapping[str, Mapping[str, int]], mps: str) -> dict[str, float]:
    """Return what each keeps in a pool with two workers."""
    import torch
    from onecopy.pool import Model

    from .pool_models import decoder_there

    models = {
        name: Model(decoder_there, kwargs=dict(shape), method="decode", cuda_graph=True, sharing="private")
        for name, shape in shapes.items()
    }
    given = torch.zeros(1, 1, next(iter(shapes.values()))["width"], dtype=torch.bfloat16)
    with pool_of(models, workers=2, slots=2, threads=1, mps=mps) as pool:
        for name in models:  # in both workers as they are, and recorded
            for _ in range(3):
                for future in [pool.submit(name, given, TOKENS) for _ in range(4)]:
                    future.result()
        return kept_of(list(models), lambda name: pool.run(name, given, TOKENS))


def threaded(link: Link, shapes: Mapping[str, Mapping[str, int]]) -> None:
    """Send what each keeps if a thread of this process runs it, on a stream of its own."""
    import torch

    from .pool_models import decoder_there, device

    models = {name: decoder_there(**shape) for name, shape in shapes.items()}
    given = torch.zeros(1, 1, next(iter(shapes.values()))["width"], dtype=torch.bfloat16, device=device())
    streams = {name: torch.cuda.Stream() for name in models} if torch.cuda.is_available() else {}

    def ask(name: str) -> None:
        with torch.inference_mode(), torch.cuda.stream(streams.get(name)):
            models[name].decode(given, TOKENS).cpu()

    for name in models:
        ask(name)
    link.send(kept=kept_of(list(models), ask))


def kept_of(names: Sequence[str], ask: Ask) -> dict[str, float]:
    """Return what each keeps of the rate that it has alone when a user of each asks at once."""
    alone = {name: rates([name], ask)[name] for name in names}
    together = rates(names, ask)
    return {name: together[name] / alone[name] for name in names}


def rates(names: Sequence[str], ask: Ask) -> dict[str, float]:
    """Return how many answers a second each user gets, who waits for every one."""
    seconds = sizes().seconds / 2
    until = time.perf_counter() + seconds

    def use(name: str) -> float:
        count, began_at = 0, time.perf_counter()
        while time.perf_counter() < until:
            ask(name)
            count += 1
        return count / (time.perf_counter() - began_at)

    with ThreadPoolExecutor(len(names)) as threads:
        return dict(zip(names, threads.map(use, names), strict=True))
