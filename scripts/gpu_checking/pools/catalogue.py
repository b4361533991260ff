"""What pools on a GPU are held to, in the order in which it is tried: what can harm others comes last."""

from __future__ import annotations

from typing import Final

from ..fact import Fact
from . import p1_tests, p2_one_copy, p3_shapes, p4_small_encoder, p5_deaths, p6_two_models

FACTS: Final = (
    Fact("P1", 135, p1_tests.check),
    Fact("P2", 140, p2_one_copy.check),
    Fact("P3", 60, p3_shapes.check),
    Fact("P4", 70, p4_small_encoder.check),
    Fact("P6", 54, p6_two_models.check),
    Fact("P5", 70, p5_deaths.check),
)
