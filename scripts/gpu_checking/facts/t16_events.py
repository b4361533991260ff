"""Events between processes, with which a slot could be handed over while the GPU still works on it."""

from __future__ import annotations

import statistics
import time
from typing import Any

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..holder import give
from ..units import MIB

SIZE_BYTES = 2 * MIB
SLEEP_S = 0.3
WAITS_S = 8.0


def check(check: Check) -> None:
    """A stream can wait for another process's event, then sees what that wrote, and outlives its maker."""
    vmm.start()
    region = vmm.create(SIZE_BYTES)
    with Child(wait) as waiter, Child(record) as recorder, Child(record) as victim:
        for child in (waiter, recorder, victim):
            give(child, region)
            child.receive()
        recorded = recorder.ask(value=1.0)
        waiter.ask(handle=recorded["handle"])
        answer = waiter.receive()
        check.claim("the waiting stream sees what the last kernel wrote", answer["value"] == 1.0, answer["value"])
        check.claim(
            "it waited on the GPU, not in Python", answer["waited_ms"] > SLEEP_S * 500 > answer["launched_ms"],
            f"launched in {answer['launched_ms']:.1f} ms, done after {answer['waited_ms']:.0f} ms",
        )  # fmt: skip
        check.figure("import of an event, ms", answer["import_ms"])
        text = "hand-over by a message after a synchronisation"
        with check.part(text):
            times = [handed_over_ms(recorder, waiter) for _ in range(200)]
            check.figure(f"{text}, median ms", statistics.median(times))
        text = "after the maker's death a wait ends, and its process goes on"
        with check.part(text):
            recorded = victim.ask(value=2.0)
            waiter.ask(handle=recorded["handle"])
            victim.kill()
            answer = waiter.receive(WAITS_S)
            check.claim(text, answer["computes"], answer.values)


def handed_over_ms(writer: Child, reader: Child) -> float:
    """Hand over by message; return how long it takes from the wish to write to the value that was read."""
    started_at = time.perf_counter()
    writer.ask(plain=True)
    reader.ask(plain=True)
    return (time.perf_counter() - started_at) * 1e3


def record(link: Link) -> None:
    """Launch a long kernel and a write after it, and hand an event out while they wait."""
    import torch

    shared = mapped(link)
    event = torch.cuda.Event(interprocess=True)
    while True:
        message = link.receive(120.0)
        if "plain" in message.values:
            shared.fill_(3)
            torch.cuda.synchronize()
            link.send(done=True)
            continue
        shared.fill_(0)  # the same kernel as below: loading it first could wait for what runs
        torch.cuda.synchronize()
        torch_side.sleep_on_gpu(SLEEP_S)
        shared.fill_(message["value"])
        event.record()  # before another imports it: a wait for what was not recorded passes at once
        link.send(handle=event.ipc_handle().hex())


def wait(link: Link) -> None:
    """Let a stream wait for an event and copy what was written before it; say when and what."""
    import torch

    shared = mapped(link)
    own = shared.clone()
    torch.cuda.synchronize()
    while True:
        message = link.receive(120.0)
        if "plain" in message.values:
            link.send(value=float(shared[0]))
            continue
        started_at = time.perf_counter()
        event = torch.cuda.Event.from_ipc_handle(shared.device, bytes.fromhex(message["handle"]))
        imported_at = time.perf_counter()
        torch.cuda.current_stream().wait_event(event)
        own.copy_(shared)
        launched_at = time.perf_counter()
        link.send(launched=True)
        torch.cuda.synchronize()
        waited_at = time.perf_counter()
        link.send(
            value=float(own[-1]),
            computes=float(torch.ones_like(own).sum()) == own.numel(),
            import_ms=(imported_at - started_at) * 1e3,
            launched_ms=(launched_at - started_at) * 1e3,
            waited_ms=(waited_at - started_at) * 1e3,
        )


def mapped(link: Link) -> Any:
    """Return the region as floats."""
    import torch

    device = torch_side.start()
    tensor = torch_side.tensor_at(vmm.map_fd(link.receive().fds[0], SIZE_BYTES), SIZE_BYTES, device)
    floats = tensor.view(torch.float32)
    floats.clone().copy_(floats)
    link.send(ready=True)
    return floats
