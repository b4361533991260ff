"""CUDA's driver and NVML that tests of GPU memory run on: the machine's own, or strict stand-ins for them."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "gpu_checking" / "stand_in"


def build(folder):
    """Build the driver's stand-in as `folder/libcuda.so.1`; skip the test where that cannot be."""
    pytest.importorskip("cuda.bindings.driver")
    return _compile("driver.c", folder / "libcuda.so.1", "-pthread", "-ldl")


def build_nvml(folder):
    """Build NVML's stand-in as `folder/libnvidia-ml.so.1`; skip the test where that cannot be."""
    pytest.importorskip("pynvml")
    return _compile("nvml.c", folder / "libnvidia-ml.so.1")


def load(folder):
    """Have a driver in this process: whoever asks for libcuda from now on gets it."""
    _load(folder, build, "libcuda.so.1")


def load_nvml(folder):
    """Have NVML in this process, in the same way."""
    _load(folder, build_nvml, "libnvidia-ml.so.1")


@contextlib.contextmanager
def for_processes(folder):
    """Have a driver and NVML in processes that are started meanwhile."""
    found = os.environ.get("LD_LIBRARY_PATH")
    if not _is_there("libcuda.so.1"):
        build(folder)
        build_nvml(folder)
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{found}" if found else str(folder)
    try:
        yield
    finally:
        os.environ.pop("LD_LIBRARY_PATH", None)
        if found is not None:
            os.environ["LD_LIBRARY_PATH"] = found


def _is_there(name):
    program = f"import ctypes; ctypes.CDLL({name!r})"
    return not subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode


def _compile(source, library, *options):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    usual = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", f"-Wl,-soname,{library.name}"]
    subprocess.run([compiler, *usual, "-o", str(library), str(SOURCES / source), *options], check=True)
    return library


def _load(folder, build_stand_in, name):
    try:
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(str(build_stand_in(folder)), ctypes.RTLD_GLOBAL)
