"""A model of 7 B parameters: how fast it is loaded, how often it is there, what its runs take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..check import Check
from ..children import Child, Link
from ..units import GIB, MIB
from .setting import Sizes, available_bytes, pool_of, settled_bytes, sizes

#: What a further worker may take besides its CUDA context.
MORE_BYTES = 100 * MIB
MOST_ATTACH_MS = 40.0
MOST_SLOWER = 1.03
MOST_RETURN = 1.3
LEAST_OF_BANDWIDTH = 0.8


def check(check: Check) -> None:
    """A model of 7 B parameters is on the GPU once for eight workers, who compute what plain torch does."""
    size = sizes()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with Child(plain) as child:
            told = child.ask(timeout_s=100.0, folder=folder, shape=shape_of(size), tokens=size.tokens)
        for name, value in told["figures"].items():
            check.figure(name, value)
        before_bytes = settled_bytes()
        pool = stack.enter_context(pool_of({"first": first}, workers=size.workers, slots=size.workers))
        load(check, pool, size, Path(folder), told["floor_gb_s"])
        answers(check, pool, Path(folder), told["forward_ms"])
        returns(check, pool, Path(folder), told["floor_gb_s"])
        check.figure("weights and one worker, MiB", (before_bytes - available_bytes()) // MIB)
        workers(check, pool, size, told["context_bytes"])
        check.told("a process attaches to it at once", stack.enter_context(Child(attach, pool.endpoint)))


def shape_of(size: Sizes) -> dict[str, int]:
    """Return what makes the decoder."""
    return {name: asdict(size)[name] for name in ("layers", "width", "inner", "heads")}


def first() -> Any:
    """Return the model that the pool has from the beginning."""
    import torch

    return torch.nn.Identity()


def load(check: Check, pool: Any, size: Sizes, folder: Path, floor_gb_s: float) -> None:
    """Load it out of the page cache."""
    from onecopy.pool import Model

    from .pool_models import Decoder

    path = folder / "weights.safetensors"
    file_bytes = path.stat().st_size
    for sharing in ("private", "shared"):  # hashed only where it may be found by others
        started_at = time.perf_counter()
        name = f"decoder-{sharing}"
        pool.load(name, Model(Decoder, kwargs=shape_of(size), weights=str(path), sharing=sharing))
        seconds = time.perf_counter() - started_at
        check.figure(f"loaded, {sharing}, s", seconds)
        check.figure(f"loaded, {sharing}, GB/s with the loader's start", file_bytes / seconds / 1e9)
        if sharing == "private":
            part = file_bytes / seconds / 1e9 / floor_gb_s
            check.claim(
                f"it is loaded at {LEAST_OF_BANDWIDTH:g} of what pinned memory is copied at",
                part >= LEAST_OF_BANDWIDTH, f"{part:.2f} of {floor_gb_s:.1f} GB/s",
            )  # fmt: skip
            pool.unload(name)


def answers(check: Check, pool: Any, folder: Path, plain_ms: float) -> None:
    """Compare with what plain torch has computed."""
    import torch

    given, expected = torch.load(folder / "computed.pt")
    answer = pool.run("decoder-shared", given)
    is_equal = torch.equal(answer, expected)
    check.claim("its answer is plain torch's, bit for bit", is_equal, (answer - expected).abs().max())
    pool_ms = pool.model("decoder-shared", method="forward_ms")(given, 10)
    check.figure("a run in a slot, ms", pool_ms)
    check.claim(
        f"a run in a slot takes at most {MOST_SLOWER:g} times as long",
        pool_ms <= MOST_SLOWER * plain_ms, f"{pool_ms / plain_ms:.3f} times",
    )  # fmt: skip


def returns(check: Check, pool: Any, folder: Path, floor_gb_s: float) -> None:
    """Let it leave for a file, and come back out of the system's cache."""
    import torch

    started_at = time.perf_counter()
    pool.evict("decoder-shared")
    check.figure("written out, s", time.perf_counter() - started_at)
    given, expected = torch.load(folder / "computed.pt")
    is_equal = torch.equal(pool.run("decoder-shared", given), expected)
    check.claim("its answer is the same when it has come back", is_equal)
    version = next(one for one in pool.memory().weights if one.model == "decoder-shared")
    copy_s = version.size_bytes / floor_gb_s / 1e9
    check.figure("came back, s", version.return_s)
    check.claim(
        f"its return takes at most {MOST_RETURN:g} times as long as copying out of pinned memory",
        version.return_s <= MOST_RETURN * copy_s, f"{version.return_s / copy_s:.2f} times",
    )  # fmt: skip


def workers(check: Check, pool: Any, size: Sizes, context_bytes: int) -> None:
    """Have all workers thaw it, and see what that takes."""
    one_bytes = settled_bytes()
    pids: set[int] = set()
    until = time.monotonic() + 30
    model = pool.model("decoder-shared", method="pid")
    while len(pids) < size.workers and time.monotonic() < until:
        pids |= {future.result() for future in [model.submit() for _ in range(4 * size.workers)]}
    each_bytes = (one_bytes - settled_bytes()) // max(1, size.workers - 1)
    check.figure("workers that have it", len(pids))
    check.figure("a further worker, MiB", each_bytes // MIB)
    check.figure("a CUDA context with a product, MiB", context_bytes // MIB)
    check.claim(
        f"a further worker takes a context, and {MORE_BYTES // MIB} MiB at most",
        each_bytes <= context_bytes + MORE_BYTES, f"{each_bytes // MIB} MiB",
    )  # fmt: skip


def plain(link: Link) -> None:
    """Make the weights, and compute and time what a process without a pool does."""
    import torch
    from safetensors.torch import save_file

    from .pool_models import Decoder, device, median_ms

    order: Mapping[str, Any] = link.receive().values
    free_bytes = settled_bytes()
    where = device()
    torch.ones(256, 256, device=where) @ torch.ones(256, 256, device=where)
    context_bytes = free_bytes - settled_bytes()
    with torch.device(where):
        torch.manual_seed(0)
        decoder = Decoder(**order["shape"]).to(torch.bfloat16).eval().requires_grad_(False)
    given = torch.randn(1, order["tokens"], order["shape"]["width"], dtype=torch.bfloat16)
    with torch.inference_mode():
        moved = given.to(where)
        computed = decoder(moved).cpu()
        forward_ms = median_ms(lambda: decoder(moved), 10)
    torch.save((given, computed), f"{order['folder']}/computed.pt")
    started_at = time.perf_counter()
    weights = {name: tensor.cpu() for name, tensor in decoder.state_dict().items()}
    save_file(weights, f"{order['folder']}/weights.safetensors")
    written_s = time.perf_counter() - started_at
    floor_gb_s = copied_gb_s(where)
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    link.send(
        forward_ms=forward_ms, context_bytes=context_bytes, floor_gb_s=floor_gb_s,
        figures={
            "parameters, in thousands of millions": parameters / 1e9,
            "plain torch, a run, ms": forward_ms,
            "pinned host to device, GB/s": floor_gb_s,
            "written, s": written_s,
        },
    )  # fmt: skip


def copied_gb_s(where: Any) -> float:
    """Return how fast pinned memory is copied."""
    import torch

    from .pool_models import median_ms

    host = torch.empty(GIB if where.type == "cuda" else MIB, dtype=torch.uint8, pin_memory=where.type == "cuda")
    target = torch.empty_like(host, device=where)
    return host.nbytes / median_ms(lambda: target.copy_(host, non_blocking=True), 5) / 1e6


def attach(link: Link, endpoint: str) -> None:
    """Attach as a notebook does that uses the GPU already."""
    import torch
    from onecopy.pool import Pool

    from .pool_models import device

    torch.ones(1, device=device())
    with Pool.connect(endpoint) as pool:
        started_at = time.perf_counter()
        module = pool.attach("decoder-shared")
        ms = (time.perf_counter() - started_at) * 1e3
        link.send(holds=ms <= MOST_ATTACH_MS, seen=f"{ms:.1f} ms", figures={"attached, ms": ms})
        del module
