"""Models with random weights in the shapes of known ones. It imports torch: only workers may import it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, normalised after each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, given: Tensor) -> Tensor:
        """Return as many vectors as are given."""
        query, key, value = (split(one(given), self.heads) for one in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        given = self.first(given + self.out(mixed))
        return self.second(given + self.down(functional.gelu(self.up(given))))


class DecoderLayer(nn.Module):
    """One layer of a language model of 7 B parameters, without its cache: 202 M parameters.

    Shapes as in Llama 2 7B: 32 heads, 4,096 wide, a gated feed-forward network of 11,008.
    """

    def __init__(self, width: int = 4096, inner: int = 11008, heads: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, given: Tensor) -> Tensor:
        """Return as many vectors as are given."""
        normed = self.first(given)
        query, key, value = (split(one(normed), self.heads) for one in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        given = given + self.out(mixed.transpose(1, 2).flatten(2))
        normed = self.second(given)
        return given + self.down(functional.silu(self.gate(normed)) * self.up(normed))


def encoder(device: torch.device) -> nn.Module:
    """Return an encoder in the shape of all-MiniLM-L6-v2: its launches take longer than its kernels."""
    torch.manual_seed(0)
    return nn.Sequential(*(EncoderLayer(384, 12) for _ in range(6))).eval().to(device, torch.bfloat16)


def decoder_layer(device: torch.device) -> nn.Module:
    """Return one layer of 7 B parameters' model, made on the device."""
    with torch.device(device):
        return DecoderLayer().eval().to(torch.bfloat16)


def split(given: Tensor, heads: int) -> Tensor:
    """Return ``[B, T, W]`` as ``[B, heads, T, W / heads]``."""
    return given.unflatten(2, (heads, -1)).transpose(1, 2)
