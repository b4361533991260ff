"""NVIDIA's Multi-Process Service beside memory that somebody outside it made."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any

from .. import torch_side, vmm
from ..check import Check, Untried
from ..children import Child, ChildFailed, Link
from ..holder import give
from ..mps import Mps, daemon
from ..nvml import Gpu
from ..units import GIB, MIB

LIMIT_GIB = 2
SHARED_BYTES = 10 * GIB


def check(check: Check) -> None:
    """Clients of our MPS daemon map memory made outside it, beyond their own limit; a fault ends all of them."""
    gpu = Gpu()
    vmm.start()  # before the daemon is there: this process is none of its clients
    region = vmm.create(SHARED_BYTES)
    with daemon() as mps, ExitStack() as stack:
        check.figure("started by user", str(os.getuid()))
        limited = mps.environment | {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={LIMIT_GIB}G"}
        before = gpu.settled_free_bytes()
        workers = [stack.enter_context(Child(work, environment=mps.environment)) for _ in range(4)]
        one_limited = stack.enter_context(Child(work, environment=limited))
        start_in_turn(check, gpu, mps, workers)
        with check.part("the daemon lists the workers as its clients"):
            clients = mps.clients()
            known = {worker.pid for worker in workers} <= set(clients)
            check.claim("the daemon lists the workers as its clients", known, f"{clients}; {mps.log()}")
        check.figure("daemon, server and four clients, MiB", (before - gpu.settled_free_bytes()) / MIB)
        with check.part("clients map memory that was made outside"):
            answers = [map_in(worker, region) for worker in workers]
            check.claim("clients map memory that was made outside", all(one["right"] for one in answers))
        limits(check, one_limited, region)
        killed(check, workers)
        faulted(check, workers)
        with check.part("a new client starts after the fault"):
            after = stack.enter_context(Child(work, environment=mps.environment))
            answer = after.ask(15.0, step="start")
            check.claim("a new client starts after the fault", answer["right"], mps.log())


def start_in_turn(check: Check, gpu: Gpu, mps: Mps, workers: list[Child]) -> None:
    """Let workers start CUDA one by one, and tell what each takes.

    Raises:
        Untried: One does not start.
    """
    taken = []
    for worker in workers:
        before = gpu.settled_free_bytes()
        answer = worker.ask(20.0, step="start")
        if not answer["right"]:
            raise Untried(f"a client does not start: {answer['seen']}; {mps.log()}")
        taken.append((before - gpu.settled_free_bytes()) / MIB)
    check.figure("context and first product, MiB in each client", ", ".join(f"{one:.0f}" for one in taken))


def limits(check: Check, worker: Child, region: vmm.Region) -> None:
    """See what the limit of a client's memory counts."""
    with check.part("a limit of the client's memory counts its own"):
        worker.ask(step="start")
        answer = worker.ask(step="allocate", size_bytes=(LIMIT_GIB + 1) * GIB)
        check.claim("a limit of the client's memory counts its own", not answer["right"], answer["seen"])
    with check.part("... but not what it maps"):
        answer = map_in(worker, region)
        check.claim("... but not what it maps", answer["right"], answer["seen"])
        answer = worker.ask(step="allocate", size_bytes=GIB // 2)
        check.claim("... and leaves it its own beside that", answer["right"], answer["seen"])


def killed(check: Check, workers: list[Child]) -> None:
    """Kill one client while all of them compute."""
    text = "clients go on when one is killed in the middle of its work"
    with check.part(text):
        for worker in workers:
            worker.ask(step="load")
        check.figure("from SIGKILL of a client to its pidfd, ms", workers.pop().kill())
        answers = [worker.ask(step="compute") for worker in workers]
        check.claim(text, all(one["right"] for one in answers), [one["seen"] for one in answers])


def faulted(check: Check, workers: list[Child]) -> None:
    """Have one client write where it may only read."""
    text = "a fault of one client ends the others too"
    with check.part(text):
        culprit = workers.pop()
        culprit.send(step="fault")
        seen = []
        for worker in [culprit, *workers]:
            try:
                seen.append(worker.receive(6.0)["seen"] if worker is culprit else ask_again(worker))
            except ChildFailed as error:
                seen.append(str(error))
        check.claim(text, all("right" not in one for one in seen[1:]), seen)


def ask_again(worker: Child) -> str:
    """Have a client compute for a moment; return what came of it."""
    until, answer = time.monotonic() + 1.0, ""
    while time.monotonic() < until and answer in ("", "right"):
        answer = str(worker.ask(4.0, step="compute")["seen"])
    return answer


def map_in(worker: Child, region: vmm.Region) -> dict[str, Any]:
    """Have a worker map a region."""
    give(worker, region, step="map")
    return worker.receive().values


def work(link: Link) -> None:
    """Do what is asked, and say how it went."""
    import torch

    device, mapped = torch_side.gpu(), 0
    kept: list[torch.Tensor] = []
    while True:
        message = link.receive(120.0)
        step, right, seen = message["step"], True, "right"
        try:
            if step == "start":
                torch_side.start()
                right = computes(device)
            elif step == "map":
                mapped = vmm.map_fd(message.fds[0], SHARED_BYTES, is_writable=False)
                tensor = torch_side.tensor_at(mapped, SHARED_BYTES, device)
                right = int(tensor[:: 64 * MIB].sum()) >= 0
            elif step == "allocate":
                kept.append(torch.empty(message["size_bytes"], dtype=torch.uint8, device=device).fill_(1))
                torch.cuda.synchronize()
            elif step == "load":
                square = torch.ones(4096, 4096, device=device, dtype=torch.bfloat16)
                kept.append(torch.empty_like(square))
                for _ in range(800):  # some 0.2 s of work, not waited for
                    torch.mm(square, square, out=kept[-1])
            elif step == "fault":
                torch_side.tensor_at(mapped, SHARED_BYTES, device)[:1024].fill_(1)
                torch.cuda.synchronize()
            elif step == "compute":
                right = computes(device)
        except RuntimeError as error:
            right, seen = False, f"{type(error).__name__}: {error}"[:160]
        link.send(right=right, seen=seen if right or seen != "right" else "wrong")


def computes(device: Any) -> bool:
    """Return whether a product is right."""
    import torch

    square = torch.ones(256, 256, device=device)
    return bool((square @ square == 256).all())
