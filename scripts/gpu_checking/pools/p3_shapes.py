"""Requests of which none has the shape of another."""

from __future__ import annotations

from ..check import Check
from ..units import MIB
from .p2_one_copy import shape_of
from .setting import SLACK_BYTES, pool_of, settled_bytes, sizes

MOST_TOKENS = 400


def check(check: Check) -> None:
    """Ten thousand requests of changing shapes leave memory of the GPU as it was."""
    import torch
    from onecopy.pool import Model

    from .pool_models import Decoder

    size = sizes()
    shape = shape_of(size) | {"layers": 2, "width": min(512, size.width), "inner": 1024, "heads": 4}
    with pool_of({"decoder": Model(Decoder, kwargs=shape)}, workers=2) as pool:
        model = pool.model("decoder")
        generator = torch.Generator().manual_seed(0)

        def ask(count: int) -> None:
            lengths = torch.randint(1, MOST_TOKENS, (count,), generator=generator).tolist()
            inputs = [torch.randn(1, length, shape["width"]) for length in lengths]
            for given, answer in zip(inputs, model.map(inputs), strict=True):
                assert answer.shape == (1, shape["width"]), f"{given.shape} gave {answer.shape}"

        ask(size.shapes // 10)
        before_bytes = settled_bytes()
        ask(size.shapes)
        grown_bytes = before_bytes - settled_bytes()
        check.claim("memory has not grown", grown_bytes <= SLACK_BYTES, f"{grown_bytes // MIB} MiB more are taken")
        for ring in pool.status().rings:
            check.figure(f"slots of ring {ring.name}, MiB", ring.size_bytes // MIB)
        for text in pool.status().fallbacks:
            check.figure("fallback", text)
