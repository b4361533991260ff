"""What figures depend on, and whether anything can be checked at all: looked up by a child, which uses the GPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from . import torch_side
from .check import Untried
from .children import Child, ChildFailed, Link
from .mps import CONTROL
from .nvml import Gpu
from .units import MIB

PACKAGES = ("torch", "cuda-bindings", "nvidia-ml-py", "numpy", "safetensors", "triton")
#: The first import of torch on a machine that has just started reads gigabytes from its disk.
LIMIT_S = 70


def look() -> tuple[dict[str, Any], list[str]]:
    """Return the conditions, and what is missing in words: nothing can be checked then."""
    with Child(tell) as child:
        try:
            found = child.receive(LIMIT_S)
        except ChildFailed as error:
            return {}, [str(error)]
        return found["conditions"], found["missing"]


def tell(link: Link) -> None:
    """Send both."""
    conditions: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "memory, MiB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "user": os.getuid(),
        "compilers": [name for name in ("cc", "gcc", "nvcc") if shutil.which(name)],
        CONTROL: bool(shutil.which(CONTROL)),
    }
    for name in PACKAGES:
        try:
            conditions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            conditions[name] = "not installed"
    missing = [said for look in (of_torch, of_binding, of_nvml) for said in look(conditions)]
    link.send(conditions=conditions, missing=missing)


def of_torch(conditions: dict[str, Any]) -> list[str]:
    """Add what torch says of the GPU; return what is missing."""
    try:
        started_at = time.perf_counter()
        import torch

        conditions["import of torch, s"] = round(time.perf_counter() - started_at, 2)
    except ImportError as error:
        return [f"torch cannot be imported ({error})"]
    conditions["CUDA of torch"] = torch.version.cuda
    if torch.version.cuda is None:
        return [f"torch {torch.__version__} is built without CUDA"]
    if not torch.cuda.is_available():
        return [
            "torch finds no NVIDIA GPU" + ("" if Path("/dev/nvidiactl").exists() else ", nor is there a driver")
        ]
    try:
        # Loads the libraries too: what comes after it is timed on a machine that has read them once.
        started_at = time.perf_counter()
        square = torch.ones(256, 256, device=torch_side.start())
        is_right = bool((square @ square == 256).all())
        conditions["first use of the GPU, s"] = round(time.perf_counter() - started_at, 2)
    except RuntimeError as error:
        return [f"the GPU cannot be used ({error})"]
    if not is_right:
        return ["the GPU computes wrongly"]
    properties = torch.cuda.get_device_properties(0)
    conditions["gpu"] = properties.name
    conditions["compute capability"] = f"{properties.major}.{properties.minor}"
    conditions["multiprocessors"] = properties.multi_processor_count
    conditions["gpus"] = torch.cuda.device_count()
    conditions["uuid by torch"] = f"GPU-{properties.uuid}"
    return []


def of_binding(conditions: dict[str, Any]) -> list[str]:
    """Add what the driver says; return what is missing."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        return [f"cuda.bindings.driver cannot be imported ({error}): give a folder with its wheel by --wheels"]
    try:
        conditions["CUDA of the driver"] = driver.cuDriverGetVersion()[1]
    except Exception as error:  # noqa: BLE001 - which one it is differs between versions of the binding
        return [] if conditions.get("gpu") is None else [f"the driver cannot be loaded ({error})"]
    return []


def of_nvml(conditions: dict[str, Any]) -> list[str]:
    """Add what NVML says. Without it some facts cannot be tried, and say so."""
    try:
        told = Gpu().describe()
    except Untried as error:
        conditions["NVML"] = str(error)
        return []
    conditions |= told
    conditions["NVML's first GPU is CUDA's"] = conditions.pop("uuid by torch", "") == told.get("gpu uuid")
    return []
