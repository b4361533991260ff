"""Reading weights from a file straight into mapped device memory."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..units import GIB

TENSORS, TENSOR_BYTES = 16, GIB // 16
TOTAL_BYTES = TENSORS * TENSOR_BYTES
BUFFERS, BUFFER_BYTES = 12, TENSOR_BYTES // 2
READERS = (2, 4, 8)
CACHED, LIBRARY = "from the page cache, {} threads", "safetensors"
#: What O_DIRECT asks of addresses, offsets and lengths.
BLOCK_BYTES = 4096


def check(check: Check) -> None:
    """Reading into pinned buffers and copying from them fills mapped memory at nearly the speed of the link."""
    with tempfile.TemporaryDirectory() as folder, Child(load, str(Path(folder, "weights.safetensors"))) as worker:
        written = worker.receive(40.0)
        check.figure("write of the file, GB/s", written["gb_s"])
        floor = worker.receive()["gb_s"]
        check.figure("host to device, pinned, GB/s", floor)
        speeds: dict[str, float] = {}
        with check.part("every way of loading ends"):
            while "end" not in (values := worker.receive().values):
                text = f"{values['text']}: all bytes arrive"
                if "untried" in values:
                    check.untried(text, values["untried"])
                    continue
                check.claim(text, values["holds"])
                check.figure(f"{values['text']}, GB/s", values["gb_s"])
                speeds[values["text"]] = values["gb_s"]
        best = max(speeds.get(CACHED.format(readers), 0.0) for readers in READERS)
        check.claim(
            "from the page cache at 0.8 of the link", best >= 0.8 * floor, f"{best:.1f} of {floor:.1f} GB/s"
        )
        if LIBRARY in speeds:
            said = f"{best:.1f} against {speeds[LIBRARY]:.1f} GB/s"
            check.claim("... and not slower than safetensors", best >= speeds[LIBRARY], said)


def load(link: Link, path: str) -> None:
    """Write a file, then load it in each of the ways; the best of two runs counts."""
    import torch

    device = torch_side.start()
    started_at = time.perf_counter()
    data_offset = write_file(path)
    link.send(gb_s=TOTAL_BYTES / (time.perf_counter() - started_at) / 1e9)
    buffers = [torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(BUFFERS)]
    on_device = torch.empty(BUFFER_BYTES, dtype=torch.uint8, device=device)
    copy_ms = torch_side.median_ms(lambda: on_device.copy_(buffers[0], non_blocking=True))
    link.send(gb_s=BUFFER_BYTES / copy_ms / 1e6)
    _, address = vmm.make_here(TOTAL_BYTES)
    target = torch_side.tensor_at(address, TOTAL_BYTES, device)
    ways: dict[str, Callable[[], None]] = {
        CACHED.format(readers): partial(read_into, target, path, data_offset, buffers, readers)
        for readers in READERS
    }
    ways[f"past the page cache, {READERS[-1]} threads"] = partial(
        read_into, target, path, data_offset, buffers, READERS[-1], os.O_DIRECT
    )
    ways[LIBRARY] = partial(load_by_safetensors, target, path)
    ways["GdsFile into mapped memory"] = partial(load_by_gds, address, device, path, data_offset)
    for text, way in ways.items():
        target.fill_(0)
        torch.cuda.synchronize()
        try:
            seconds = min(timed_s(way) for _ in range(2))
        except (OSError, RuntimeError, ImportError) as error:
            link.send(text=text, untried=f"{type(error).__name__}: {error}"[:300])
            continue
        right = all(bool((one == number + 1).all()) for number, one in enumerate(target.view(TENSORS, -1)))
        link.send(text=text, holds=right, gb_s=TOTAL_BYTES / seconds / 1e9)
    link.send(end=True)


def timed_s(way: Callable[[], None]) -> float:
    """Return how long a way takes until the GPU has everything."""
    import torch

    started_at = time.perf_counter()
    way()
    torch.cuda.synchronize()
    return time.perf_counter() - started_at


def write_file(path: str) -> int:
    """Write tensors in the safetensors format, the data at a whole block; return where that begins."""
    import json

    header = {
        f"weight.{number}": {
            "dtype": "U8",
            "shape": [TENSOR_BYTES],
            "data_offsets": [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES],
        }
        for number in range(TENSORS)
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % BLOCK_BYTES)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(bytes([number + 1]) * TENSOR_BYTES for number in range(TENSORS))
    return len(text) + 8


def read_into(target: Any, path: str, data_offset: int, buffers: list[Any], readers: int, flags: int = 0) -> None:
    """Read with several threads into pinned buffers, each of which is copied as soon as it is full."""
    import torch

    file = os.open(path, os.O_RDONLY | flags)
    free: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[Any, int] | BaseException] = queue.SimpleQueue()
    for buffer in buffers:
        free.put((buffer, None))
    starts = iter(range(0, TOTAL_BYTES, BUFFER_BYTES))
    lock = threading.Lock()

    def read() -> None:
        try:
            while True:
                with lock:
                    if (start := next(starts, None)) is None:
                        return
                buffer, copied = free.get()
                if copied is not None:
                    copied.synchronize()  # the last copy out of it has ended
                view = memoryview(buffer.numpy())
                done = 0
                while done < BUFFER_BYTES:
                    count = os.preadv(file, [view[done:]], data_offset + start + done)
                    if not count:
                        raise EOFError("the file ends too early")
                    done += count
                full.put((buffer, start))
        except BaseException as error:  # noqa: BLE001 - told by the thread that copies
            full.put(error)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for _ in range(0, TOTAL_BYTES, BUFFER_BYTES):
        got = full.get(timeout=30.0)
        if isinstance(got, BaseException):
            raise got
        buffer, start = got
        target[start : start + BUFFER_BYTES].copy_(buffer, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        free.put((buffer, copied))
    for thread in threads:
        thread.join()
    os.close(file)


def load_by_safetensors(target: Any, path: str) -> None:
    """Load with the library, which makes memory of its own; what is compared is copied from that once."""
    from safetensors.torch import load_file

    tensors = load_file(path, device=str(target.device))
    if int(target[0]) == 0:  # the first run; the second is the one that counts
        for number in range(TENSORS):
            target.view(TENSORS, -1)[number].copy_(tensors[f"weight.{number}"])


def load_by_gds(address: int, device: Any, path: str, data_offset: int) -> None:
    """Load with cuFile straight into the mapping."""
    import torch
    from torch.cuda.gds import GdsFile

    file = GdsFile(path, os.O_RDONLY)
    for number in range(TENSORS):
        part = torch_side.tensor_at(address + number * TENSOR_BYTES, TENSOR_BYTES, device)
        file.load_storage(part.untyped_storage(), data_offset + number * TENSOR_BYTES)
    torch.cuda.synchronize()
