"""Kills in the middle of a kernel, of a worker and of the supervisor."""

from __future__ import annotations

import os
import signal
from typing import Any

from ..check import Check
from ..units import MIB
from .p2_one_copy import shape_of
from .setting import SLACK_BYTES, available_bytes, pool_of, seconds_until, settled_bytes, sizes

MOST_S = 3.0
SPIN_S = 1.5


def check(check: Check) -> None:
    """A worker that is killed in the middle of a kernel harms nobody; a killed supervisor leaves no memory."""
    import torch
    from onecopy.pool import Model

    from .pool_models import Decoder

    size = sizes()
    shape = shape_of(size) | {"layers": 2}
    given = torch.randn(1, size.tokens, size.width)
    before_bytes = settled_bytes()
    with pool_of({"decoder": Model(Decoder, kwargs=shape)}, workers=2, slots=2) as pool:
        expected = pool.run("decoder", given)
        pids(pool)
        full_bytes = settled_bytes()
        spinning = pool.model("decoder", method="spin").submit(SPIN_S)
        busy = seconds_until(lambda: any(one.state == "busy" for one in pool.status().workers), 5.0)
        assert busy is not None, "no worker began"
        victim = next(one.pid for one in pool.status().workers if one.state == "busy")
        os.kill(victim, signal.SIGKILL)
        check.claim("the others answer as before", torch.equal(pool.run("decoder", given), expected))
        check.claim("its request is run again", spinning.result() != victim)
        pids(pool)
        back_s = seconds_until(lambda: available_bytes() >= full_bytes - SLACK_BYTES, MOST_S)
        text = f"its memory is back within {MOST_S:g} s of its successor's first run"
        check.claim(text, back_s is not None, f"{back_s} s")
        check.claim("answers are as before", torch.equal(pool.run("decoder", given), expected))
        os.kill(pool.status().pid, signal.SIGKILL)
        gone_s = seconds_until(lambda: available_bytes() >= before_bytes - SLACK_BYTES, 10.0)
        left_bytes = before_bytes - available_bytes()
        check.claim("a killed supervisor leaves nothing", gone_s is not None, f"{left_bytes // MIB} MiB are left")
        if gone_s is not None:
            check.figure("all memory was back after, s", gone_s)


def pids(pool: Any) -> None:
    """Have every worker run the model once."""
    seen: set[int] = set()
    seconds_until(lambda: len(seen) == 2 or seen.update(together(pool)) is not None, 20.0)


def together(pool: Any) -> set[int]:
    """Return who has answered requests that come at the same time."""
    model = pool.model("decoder", method="pid")
    return {future.result() for future in [model.submit() for _ in range(8)]}
