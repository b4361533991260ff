"""Tries what pools are held to as the command does, but small, and for as long as this machine needs."""

import sys
import time
from dataclasses import replace
from pathlib import Path

from gpu_checking.__main__ import check
from gpu_checking.pools.catalogue import FACTS
from gpu_checking.processes import adopt_orphans
from gpu_checking.results import Report

if __name__ == "__main__":
    path, *names = sys.argv[1:]
    adopt_orphans()
    facts = [replace(fact, limit_s=120) for fact in FACTS if fact.name in names]
    sys.exit(check(facts, "gpu_checking.pools.catalogue", Report(Path(path)), time.monotonic() + 120))
