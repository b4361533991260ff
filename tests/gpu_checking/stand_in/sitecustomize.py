"""Puts the CPU in the GPU's place in every process of a rehearsal, and makes what it works on small."""

import sys
import time
from collections.abc import Callable

from gpu_checking import units, vmm

units.GIB = 16 * units.MIB
vmm.SLACK_BYTES = 2 * units.MIB


def stand_in_for_gpu() -> None:
    """Have workers use tensors of the CPU."""
    import torch
    from gpu_checking import torch_side

    def init():
        vmm.start()
        vmm.use_primary_context()

    torch.cuda.init = init
    torch.cuda.set_device = torch.cuda.synchronize = lambda *_: None
    torch_side.gpu = lambda: torch.device("cpu")
    torch_side.median_ms = milliseconds


def milliseconds(run: Callable[[], object]) -> float:
    """Return how long something takes by the processor's clock."""
    started_at = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started_at)


if "gpu_checking.child" in sys.orig_argv:
    stand_in_for_gpu()
