"""What onecopy needs for pools on GPUs, each tried in the way in which it is used, but without a CUDA context."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ..protocol import cuda
from .abilities import Missing, attribute_of, in_a_worker
from .memory import nvml
from .memory.gpus import NvmlGpu
from .supervisor import mps
from .views import size


def driver() -> str:
    """Load the driver and its binding, and find a GPU."""
    with _driver_asked():
        first, second = cuda.driver_version()
        return f"CUDA {first}.{second}"


def gpus() -> str:
    """Tell of each GPU that this process can see what it is, and how much of its memory is free."""
    with _driver_asked():
        return "; ".join(_describe(ordinal) for ordinal in range(cuda.count()))


def attribute(name: str) -> str:
    """Ask each GPU whether it has an ability, by its name in cuda.h."""
    with _driver_asked():
        without = [f"cuda:{ordinal}" for ordinal in range(cuda.count()) if not cuda.attribute(ordinal, name)]
    if without:
        raise Missing(f"{', '.join(without)} cannot")
    return "every GPU can"


def exported_memory() -> str:
    """Make memory on each GPU that lives by a descriptor."""
    with _driver_asked():
        for ordinal in range(cuda.count()):
            os.close(cuda.create(cuda.granularity_bytes(ordinal), ordinal))
    return "without a context"


def peers() -> str:
    """Tell which GPUs can use the memory of others."""
    with _driver_asked():
        told = [cuda.describe(ordinal) for ordinal in range(cuda.count())]
    reached = {gpu.ordinal: ", ".join(f"cuda:{other}" for other in gpu.peers) for gpu in told}
    if not any(reached.values()):
        raise Missing("no GPU can" if len(told) > 1 else "there is one GPU")
    return "; ".join(f"cuda:{ordinal} that of {others}" for ordinal, others in reached.items() if others)


def management_library() -> str:
    """Ask NVML for the driver's version and, where there are GPUs, about the first."""
    try:
        said = f"driver {nvml.driver_version()}"
    except nvml.NvmlUnusable as error:
        raise Missing(str(error)) from None
    with suppress(cuda.CudaError):  # there is nothing to complain of without a GPU
        said += f"; {NvmlGpu(0).complaint}".removesuffix("; ")
    return said


def multi_process_service() -> str:
    """Find the program that controls it."""
    try:
        return mps.find()
    except mps.MpsUnusable as error:
        raise Missing(str(error)) from None


def torch_on_gpus() -> str:
    """Look whether torch was built with CUDA, and finds a GPU."""
    built_with = attribute_of("torch:version").cuda
    if built_with is None:
        raise Missing(f"torch {attribute_of('torch:__version__')} was built without CUDA")
    if not attribute_of("torch:cuda.is_available")():
        raise Missing(f"torch, built with CUDA {built_with}, finds no GPU that it can use")
    return f"built with CUDA {built_with}"


def memory_pool() -> str:
    """Find what torch's pools of memory are served by, in a process as workers are."""
    in_a_worker(
        "import ctypes, torch\n"
        "from onecopy.workers.device_segments import ALLOCATE, FREE, path\n"
        "library = ctypes.CDLL(path())\n"
        "library[ALLOCATE], library[FREE], torch.cuda.MemPool, torch.cuda.memory.CUDAPluggableAllocator\n"
    )
    return "torch can be given them"


@contextmanager
def _driver_asked() -> Generator[None]:
    try:
        yield
    except cuda.CudaError as error:
        raise Missing(str(error)) from None


def _describe(ordinal: int) -> str:
    gpu = cuda.describe(ordinal)
    said = f"cuda:{ordinal} is {gpu.name}, {gpu.uuid}, {size(gpu.total_bytes)}"
    with suppress(nvml.NvmlUnusable):
        said += f", {size(nvml.NvmlDevice(gpu.uuid).free_bytes())} free"
    return said
