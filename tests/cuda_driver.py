"""The CUDA driver that tests of GPU memory run on: the machine's own, or a strict stand-in for it."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "gpu_checking" / "stand_in" / "driver.c"


def build(folder):
    """Build the stand-in as `folder/libcuda.so.1`; skip the test where that cannot be."""
    pytest.importorskip("cuda.bindings.driver")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = folder / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *options, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def load(folder):
    """Have a driver in this process: whoever asks for libcuda from now on gets it."""
    pytest.importorskip("cuda.bindings.driver")
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(str(build(folder)), ctypes.RTLD_GLOBAL)
