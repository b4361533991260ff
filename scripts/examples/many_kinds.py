"""Two language models, a vision and a speech model in one pool whose memory is not enough for all of them.

Where each load looks only at itself, the second or third ends in a process that is killed. Here one ledger knows
what everything takes: what fits stays, what lies idle goes to the disk when another needs the room and comes back
with its next request. Meanwhile a language model streams its tokens. Random weights, as nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from onecopy.pool import Model, Pool
from showing import arguments, row_of, show
from torch import nn

#: How much of all weights there is room for, and how much is left to others.
PART: Final = 0.6
RESERVE: Final = "256MiB"
ROUNDS: Final = 3
TOKENS: Final = 8


class Writer(nn.Module):
    """A language model."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(layers)
        config = GPT2Config(
            vocab_size=5000, n_embd=width, n_layer=layers, n_head=8, bos_token_id=0, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        """Return the prompt ``[1, P]`` with `TOKENS` tokens after it."""
        tokens = prompt
        for token in self.write(prompt):
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        return tokens

    def write(self, prompt: torch.Tensor) -> Iterator[int]:
        """Yield tokens as they are made."""
        past: Any = None
        words = prompt
        for count in range(TOKENS):
            mask = torch.ones(1, prompt.shape[1] + count, dtype=torch.int64)
            out = self.model(input_ids=words, attention_mask=mask, past_key_values=past, use_cache=True)
            past, words = out.past_key_values, out.logits[:, -1:].argmax(-1)
            yield int(words)


class Looker(nn.Module):
    """A vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(2)
        config = ViTConfig(hidden_size=384, num_hidden_layers=8, num_attention_heads=6, intermediate_size=1536)
        self.model = ViTForImageClassification(config).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of images ``[B, 3, 224, 224]``."""
        return self.model(pixel_values=images).logits


class Listener(nn.Module):
    """A speech model."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

        torch.manual_seed(3)
        config = Wav2Vec2Config(
            hidden_size=384, num_hidden_layers=8, num_attention_heads=6, intermediate_size=1536, vocab_size=32
        )
        self.model = Wav2Vec2ForCTC(config).eval()

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Return the letters' scores of sounds ``[B, samples]`` at 16 kHz."""
        return self.model(input_values=sound).logits


FACTORIES: Final[dict[str, tuple[Any, tuple[int, ...]]]] = {
    "draft": (Writer, (2, 256)),
    "author": (Writer, (12, 640)),
    "vision": (Looker, ()),
    "speech": (Listener, ()),
}


def inputs() -> dict[str, torch.Tensor]:
    """Return what each model is asked."""
    torch.manual_seed(7)
    return {
        "draft": torch.arange(6).reshape(1, 6),
        "author": torch.arange(6).reshape(1, 6) * 17,
        "vision": torch.rand(1, 3, 224, 224),
        "speech": torch.randn(1, 16_000),
    }


def plain(name: str, x: torch.Tensor) -> torch.Tensor:
    """Return what a model answers in this process."""
    factory, args = FACTORIES[name]
    with torch.inference_mode():
        return factory(*args)(x)


def main() -> None:
    """Run them all in a pool with room for all, then in one without."""
    options = arguments(__doc__)
    asked = inputs()
    torch.set_num_threads(1)
    expected = {name: plain(name, x) for name, x in asked.items()}
    models = {name: Model(factory, args=args) for name, (factory, args) in FACTORIES.items()}
    with Pool(models, workers=2, threads=1) as pool:
        for name, x in asked.items():
            pool.run(name, x)
        roomy = pool.memory()
    budget = int(roomy.total_bytes - (1 - PART) * roomy.weights_bytes)
    device = {"budget": budget, "reserve": RESERVE}
    with Pool(models, workers=2, threads=1, devices={"cpu": device}) as pool:
        equal: list[bool] = []
        for _ in range(ROUNDS):
            equal += [torch.equal(pool.run(name, x), expected[name]) for name, x in asked.items()]
        others = {name: pool.submit(name, x) for name, x in asked.items()}
        streamed = list(pool.model("author", method="write").stream(asked["author"]))
        equal += [torch.equal(future.result(), expected[name]) for name, future in others.items()]
        tight = pool.memory()
    facts = {
        "budget_bytes": budget,
        "answers": len(equal),
        "equal_to_plain_torch": sum(equal),
        "streamed": streamed == expected["author"][0, 6:].tolist(),
        "evictions": sum(one.evictions for one in tight.weights),
        "on_the_disk_bytes": tight.devices[0].evicted_bytes,
    }
    rows = [row_of("room for all", roomy), row_of("room for some", tight)]
    show("four models, two workers", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
