"""What a worker does with mapped memory: tensors on it, patterns in it, times of what runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Odd, so that products with positions are distinct: the multiplier of Knuth's hashing, made positive.
_STRIDE = 0x1E3779B97F4A7C15


def gpu() -> torch.device:
    """Return the device that everything runs on."""
    import torch

    return torch.device("cuda", 0)


def start() -> torch.device:
    """Start CUDA in this process as a worker does: torch's primary context is current afterwards."""
    import torch

    device = gpu()
    torch.cuda.set_device(device)
    torch.cuda.init()
    torch.empty(1, device=device)
    torch.cuda.synchronize()
    return device


def tensor_at(address: int, size_bytes: int, device: torch.device) -> torch.Tensor:
    """Return the bytes at an address as a tensor, without a copy and without owning them."""
    import torch

    # Private, and the only way that takes any dtype; the storage has no deleter and cannot be resized.
    storage = torch._C._construct_storage_from_data_pointer(address, device, size_bytes)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (size_bytes,), (1,))


def write_pattern(tensor: torch.Tensor, seed: int) -> None:
    """Fill bytes with values that depend on seed and position."""
    import torch

    tensor.view(torch.int64).copy_(_pattern(tensor, seed))
    torch.cuda.synchronize()


def shows_pattern(tensor: torch.Tensor, seed: int) -> bool:
    """Return whether every byte is as `write_pattern` left it."""
    import torch

    return torch.equal(tensor.view(torch.int64), _pattern(tensor, seed))


def _pattern(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    import torch

    return torch.arange(tensor.numel() // 8, device=tensor.device).add_(seed).mul_(_STRIDE)


def median_ms(run: Callable[[], object], repeats: int = 10, warm_ups: int = 3) -> float:
    """Return the median time of something on the GPU, by its own clock."""
    import torch

    for _ in range(warm_ups):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def latencies_ms(run: Callable[[], object], seconds: float) -> list[float]:
    """Return how long something takes by the clock of a caller who waits for each, again and again for a time."""
    import torch

    times = []
    until = time.perf_counter() + seconds
    while (started_at := time.perf_counter()) < until:
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started_at) * 1e3)
    return times


def sleep_on_gpu(seconds: float) -> None:
    """Launch a kernel that does nothing for about that long."""
    import torch

    # In kHz; where a driver does not tell it, the highest clock of a Hopper GPU: never shorter than asked for.
    clock_khz = getattr(torch.cuda.get_device_properties(0), "clock_rate", 0) or 1_980_000
    torch.cuda._sleep(int(seconds * clock_khz * 1e3))
