"""The library beside what else a process has loaded, or has not."""

from __future__ import annotations

import subprocess
import sys


def test_without_torch_or_without_the_library_it_says_so(library):
    program = """
import os, sys
from onecopy.workers.arena import Arena
assert "torch" not in sys.modules and "numpy" not in sys.modules
arena = Arena.preloaded()
if arena is None:
    sys.exit("not here")
try:
    arena.attach(os.memfd_create("slot"), 1 << 20)
except RuntimeError as error:
    sys.exit(str(error))
"""
    for variables, said in (({}, "not here"), ({"LD_PRELOAD": library}, "import torch first")):
        done = subprocess.run(
            [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False
        )
        assert said in done.stderr


COUNTING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

int counted;

int posix_memalign(void **place, size_t alignment, size_t size)
{
    counted++;
    return ((int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign"))(place, alignment, size);
}
"""


def test_an_allocator_that_the_user_preloads_stays_in_use(library, compile_c, tmp_path):
    (tmp_path / "counting.c").write_text(COUNTING)
    theirs = tmp_path / "counting.so"
    compile_c("-shared", "-fPIC", tmp_path / "counting.c", "-o", theirs, "-ldl")
    program = """
import ctypes, torch
from onecopy.workers.arena import Arena
counted = ctypes.c_int.in_dll(ctypes.CDLL(None), "counted")
before = counted.value
kept = torch.ones(1000)
between = counted.value
print(between - before, Arena.preloaded().probe(), sep=";")
"""
    reasons = []
    for preload in (f"{library}:{theirs}", f"{theirs}:{library}"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"LD_PRELOAD": preload},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        count, reason = done.stdout.strip().split(";")
        assert int(count) >= 1
        reasons.append(reason)
    assert reasons[0] == "None"
    assert "another preloaded allocator stands before it" in reasons[1]
