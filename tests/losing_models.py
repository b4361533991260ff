"""A model for the tests of workers that lose their GPU; importable by workers."""

from __future__ import annotations

import torch


class Loses:
    """Loses the GPU as soon as it is thawed."""

    def __setstate__(self, state):
        error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        error.error_code = 700
        raise error

    def __getstate__(self):
        return {"weight": torch.ones(3)}

    def __call__(self, x):
        return x
