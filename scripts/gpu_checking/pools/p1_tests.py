"""The project's own tests of GPU memory and of pools on a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ..check import Check, Untried

TESTS = (
    "tests/memory/test_cuda_regions.py", "tests/protocol/test_gpu_memory.py", "tests/protocol/test_cuda_files.py",
    "tests/pool/test_carrier.py", "tests/pool/test_gpu.py",
)  # fmt: skip
LIMIT_S = 140.0


def check(check: Check) -> None:
    """The tests of GPU memory and of pools on a GPU pass on this one."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *TESTS]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Untried(f"they took longer than {LIMIT_S:g} s") from error
    if "No module named" in done.stderr:
        raise Untried(done.stderr.strip().rpartition("\n")[2])
    last = done.stdout.strip().rpartition("\n")[2]
    failed = re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE)
    check.claim("all that were tried have passed", not done.returncode, "; ".join([last, *failed]))
    for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last):
        check.figure(what, int(count))
