"""Two threads, the interpreter's lock and the allocator's."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from typing import Any

from .. import slots, torch_side, vmm
from ..check import Check
from ..children import Child, ChildFailed, Link
from ..units import GIB, MIB

SLOT_BYTES = 4 * GIB
#: Each pair of them is a segment of 2 MiB, which the pool has to ask for.
BLOCKS = 3 * 1024
#: A run without a deadlock takes well below a second.
STUCK_S = 6.0
RELEASES = "release_lock_on_cudamalloc:True"


def check(check: Check) -> None:
    """Functions called back in Python deadlock with a thread that frees tensors; compiled ones cannot."""
    environment = {"PYTORCH_ALLOC_CONF": RELEASES, "PYTORCH_CUDA_ALLOC_CONF": RELEASES}
    with ExitStack() as stack:
        plain = stack.enter_context(Child(contend, False))
        releasing = stack.enter_context(Child(contend, False, environment=environment))
        compiled = stack.enter_context(Child(contend, True))
        text = "called back in Python, two threads get stuck"
        with check.part(text):
            plain.receive()
            stuck, seen = is_stuck(plain)
            check.claim(text, stuck, seen)
        text = "... but not where the allocator lets its lock go before it asks"
        with check.part(text):
            releasing.receive()
            stuck, seen = is_stuck(releasing)
            check.claim(text, not stuck, seen)
        text = "compiled, they do not"
        with check.part(text):
            compiled.receive()
            stuck, seen = is_stuck(compiled)
            check.claim(text, not stuck, seen)


def is_stuck(child: Child) -> tuple[bool, str]:
    """Let a child run; return whether it never ended, and what it did."""
    try:
        answer = child.ask(STUCK_S, go=True)
    except ChildFailed as error:
        if error.kind != "TimeoutError":
            raise
        return True, f"nothing within {STUCK_S:g} s"
    return False, f"{answer['blocks']} blocks beside {answer['deletions']} deletions in {answer['ms']:.0f} ms"


def contend(link: Link, is_compiled: bool) -> None:
    """Allocate from a pool that is not primed, while a second thread makes and frees tensors outside it."""
    import torch

    device = torch_side.start()
    _, address = vmm.make_here(SLOT_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        slot: Any = (slots.CompiledSlot(address, SLOT_BYTES, folder) if is_compiled
                     else slots.PythonSlot(address, SLOT_BYTES))  # fmt: skip
    pool = slots.pool_in(slot)
    link.send(ready=True)
    link.receive()
    sys.setswitchinterval(1e-5)
    ends, deletions = threading.Event(), 0

    def make_and_free() -> None:
        nonlocal deletions
        while not ends.is_set():
            tensor = torch.empty(1000, device=device)
            del tensor  # with the interpreter's lock held, it waits for the allocator's
            deletions += 1

    other = threading.Thread(target=make_and_free, daemon=True)
    other.start()
    started_at = time.perf_counter()
    with slots.inside(pool):
        kept = [torch.empty(MIB, dtype=torch.uint8, device=device) for _ in range(BLOCKS)]
    elapsed_ms = (time.perf_counter() - started_at) * 1e3
    ends.set()
    other.join()
    link.send(blocks=len(kept), deletions=deletions, ms=elapsed_ms)
