"""A client in a process of its own: asks until its standard input ends, and tells on its standard output.

``python -m soaking.client ENDPOINT NAME SEED THREADS``
"""

from __future__ import annotations

import sys
import threading
from random import Random

from onecopy.pool import Pool
from onecopy.pool.lines import do_without_torch

from .journal import Lines
from .load import Load, count_answers


def main(endpoint: str, name: str, seed: str, threads: str) -> None:
    """Be a client."""
    do_without_torch()
    journal, is_over = Lines(1), threading.Event()
    with Pool.connect(endpoint) as pool:
        count_answers(pool, journal)
        loads = [Load(pool, journal, Random(f"{seed} {one}"), f"{name}.{one}") for one in range(int(threads))]
        working = [threading.Thread(target=load.run, args=(is_over,)) for load in loads]
        for thread in working:
            thread.start()
        sys.stdin.buffer.read()
        is_over.set()
        for thread in working:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
