"""What a worker takes of the GPU's memory before it has done anything."""

from __future__ import annotations

from contextlib import ExitStack

from .. import torch_side
from ..check import Check
from ..children import Child, Link
from ..nvml import Gpu
from ..units import MIB

WORKERS = 4
STEPS = ("context", "first product", "small encoder")


def check(check: Check) -> None:
    """A worker's context takes as much for the first as for the fourth, with its libraries less than 1 GiB."""
    gpu = Gpu()
    taken: list[dict[str, float]] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(Child(work)) for _ in range(WORKERS)]
        for worker in workers:
            worker.receive()  # has imported torch, and no context yet
        start = gpu.settled_free_bytes()
        for number, worker in enumerate(workers, 1):
            own: dict[str, float] = {}
            before = start
            for step in STEPS:
                answer = worker.ask(step=step)
                after = gpu.settled_free_bytes()
                own[step] = (before - after) / MIB
                before = after
                if number == 1:
                    check.figure(f"{step}, ms", float(answer["ms"]))
            start = before
            check.figure(f"worker {number}, MiB", sum(own.values()))
            taken.append(own)
    for step in STEPS:
        check.figure(f"{step}, MiB in each worker", ", ".join(f"{own[step]:.0f}" for own in taken))
    sums = [sum(own.values()) for own in taken]
    check.claim("a worker takes at most 1 GiB", max(sums) <= 1024, f"{max(sums):.0f} MiB")
    check.claim(
        "all workers but the first take the same within 64 MiB", max(sums[1:]) - min(sums[1:]) <= 64,
        f"{min(sums[1:]):.0f} to {max(sums[1:]):.0f} MiB",
    )  # fmt: skip


def work(link: Link) -> None:
    """Do the steps one by one, as told, and keep what each takes."""
    import time

    import torch

    from ..models import encoder

    kept: list[object] = []

    def take(step: str) -> None:
        device = torch_side.gpu()
        if step == "context":
            torch_side.start()
        elif step == "first product":
            square = torch.ones(512, 512, device=device, dtype=torch.bfloat16)
            kept.append(float((square @ square).sum()))
        else:
            model = encoder(device)
            kept.append(model)
            with torch.inference_mode():
                model(torch.ones(1, 32, 384, device=device, dtype=torch.bfloat16))
            torch.cuda.synchronize()

    link.send(imported=True)
    for _ in STEPS:
        step = link.receive(120.0)["step"]
        started_at = time.perf_counter()
        take(step)
        link.send(ms=(time.perf_counter() - started_at) * 1e3)
    try:
        link.receive(120.0)
    except EOFError:
        return
