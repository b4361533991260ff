"""Weights that anybody can recompute: what lies in a weight is a function of its place and of a seed.

So an answer that is made of weights tells whether they were whole, and of which version, without a second copy.
NumPy only: the checker needs no torch, and no code of the pool.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np

#: How many 64-bit integers a model's weight has: 8 MB.
SIZE: Final = 1 << 20
#: A large prime, so that neighbours differ (Knuth's multiplicative hashing, 2 ** 32 divided by the golden ratio).
_STEP: Final = 2_654_435_761
_SEED_STEP: Final = 97
_MODULUS: Final = 1_000_003
#: What an array is multiplied with before weights are added to it.
FACTOR: Final = 3


def weights(seed: int, start: int = 0, count: int = SIZE) -> Any:
    """Return so many weights of a version, from a place on."""
    places = np.arange(start + 1, start + count + 1, dtype=np.int64)
    return (places * _STEP + seed * _SEED_STEP) % _MODULUS


def array_of(tag: str, count: int) -> Any:
    """Return the array that a request of this tag carries."""
    number = int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(number).integers(0, 1 << 40, count)


def digest(array: Any) -> str:
    """Return what tells an array from any other."""
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).hexdigest()


def figure(seed: int, start: int, count: int) -> int:
    """Return what a small request gets: the sum of so many weights."""
    return int(weights(seed, start, count).sum())


def transformed(seed: int, array: Any) -> Any:
    """Return what an array becomes."""
    return array * FACTOR + weights(seed, 0, len(array))
