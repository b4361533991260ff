"""How long a small encoder takes, whose launches take longer than its kernels, alone and beside others."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from .. import torch_side
from ..check import Check
from ..children import Child, Link

PROCESSES = 4
SECONDS = 2.0
TOKENS = 32


def check(check: Check) -> None:
    """Four processes run a small encoder more often together than one alone: the floor of workers, without MPS."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Child(measure)) for _ in range(PROCESSES)]
        for worker in workers:
            worker.receive()
        alone = workers[0].ask(how="launched by Python")
        check.figure("one process, p50 ms", alone["p50_ms"])
        check.figure("one process, requests/s", alone["rate"])
        for how in ("launched by Python", "replayed from a graph"):
            for worker in workers:
                worker.send(how=how)
            together = [worker.receive() for worker in workers]
            p50_ms = statistics.median(one["p50_ms"] for one in together)
            check.figure(f"{PROCESSES} processes, {how}, p50 ms", p50_ms)
            rate = sum(one["rate"] for one in together)
            check.figure(f"{PROCESSES} processes, {how}, requests/s", rate)
            if how == "launched by Python":
                times = rate / alone["rate"]
                check.claim(
                    f"{PROCESSES} processes do 1.5 times what one does", times >= 1.5, f"{times:.2f} times"
                )
        check.figure("one process, replayed from a graph, p50 ms", workers[0].ask(how=how)["p50_ms"])


def measure(link: Link) -> None:
    """Run the encoder for a while whenever told, in one of two ways."""
    import torch

    from ..models import encoder

    device = torch_side.start()
    torch.set_num_threads(1)
    model = encoder(device)
    given = torch.randn(1, TOKENS, 384, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch_side.latencies_ms(lambda: model(given), SECONDS / 4)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(given)
        ways = {"launched by Python": lambda: model(given), "replayed from a graph": graph.replay}
        link.send(ready=True)
        while True:
            times = torch_side.latencies_ms(ways[link.receive(120.0)["how"]], SECONDS)
            link.send(p50_ms=statistics.median(times), rate=len(times) / SECONDS)
