"""How long runs take: a mean that grows with the batch, times a factor that is drawn for each."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .scenario import ModelKind


def run_time(kind: ModelKind, random: Random) -> Callable[[int], float]:
    """Return what draws the seconds of a run of so many calls."""
    factor = _factor(kind, random)
    base_s, item_s = kind.base_ms / 1000, kind.item_ms / 1000
    return lambda calls: (base_s + item_s * calls) * factor()


def _factor(kind: ModelKind, random: Random) -> Callable[[], float]:
    """Return what draws from a distribution of mean 1."""
    if kind.service == "fixed":
        return lambda: 1.0
    if kind.service == "exponential":
        return lambda: random.expovariate(1.0)
    mu = -(kind.sigma**2) / 2  # the mean of exp(N(mu, sigma)) is exp(mu + sigma^2 / 2)
    return lambda: random.lognormvariate(mu, kind.sigma)
