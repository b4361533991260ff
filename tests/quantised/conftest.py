"""The packages that quantise lie beside the others, where only these tests find them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def quantising_packages() -> Iterator[None]:
    """Let torchao and bitsandbytes be found, here and in the pools that are made meanwhile."""
    folder = os.path.join(sys.prefix, "quantised")
    sys.path.append(folder)
    # Imported while no model is there: what bitsandbytes logs then keeps the frames of its callers.
    import bitsandbytes
    import torchao.quantization

    assert bitsandbytes
    assert torchao
    yield
    sys.path.remove(folder)
