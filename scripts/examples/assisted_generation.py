"""A large language model and the small one that drafts for it are one model of a pool, and share what they can.

The pool gets two transformers in one object; `generate` takes the small one as its ``assistant_model``. The large
one is also served by itself, and the small one uses its embedding: each weight is in memory once, whoever uses it.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded

import torch
from onecopy.pool import Model, Pool
from showing import arguments, row_of, show
from torch import nn

WORDS, WIDTH, LAYERS, TOKENS = 8192, 512, 8, 24
PROMPT = torch.arange(12).reshape(1, 12) * 331 % WORDS


def llama(layers: int) -> Any:
    """Return a language model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256, bos_token_id=0,
        eos_token_id=None, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Large(nn.Module):
    """The large model by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.large = llama(LAYERS)

    def forward(self, prompt: torch.Tensor) -> list[int]:
        """Return the tokens that follow."""
        return _follow(self.large, prompt)


class Assisted(Large):
    """The large model, and one with a quarter of its layers that drafts for it."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = llama(LAYERS // 4)
        self.draft.model.embed_tokens.weight = self.large.model.embed_tokens.weight
        self.draft.lm_head.weight = self.large.lm_head.weight

    def forward(self, prompt: torch.Tensor) -> list[int]:
        """Return the tokens that follow, which are those that the large model alone would write."""
        return _follow(self.large, prompt, assistant_model=self.draft)


def _follow(model: Any, prompt: torch.Tensor, **options: Any) -> list[int]:
    from transformers import logging

    logging.set_verbosity_error()  # it warns of arguments that it passes to itself
    written = model.generate(prompt, max_new_tokens=TOKENS, do_sample=False, **options)
    return written[0, prompt.shape[1] :].tolist()


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    models = {"large": Model(Large), "assisted": Model(Assisted)}
    with Pool(models, workers=2) as pool:
        alone = pool.run("large", PROMPT)
        rows = [row_of("'large' used", pool.memory())]
        assisted = pool.run("assisted", PROMPT)
        memory = pool.memory()
        rows.append(row_of("'assisted' used", memory))
    weights = {one.model: one for one in memory.weights}
    facts = {
        "large_bytes": weights["large"].size_bytes,
        "assisted_bytes": weights["assisted"].size_bytes,
        "of_which_its_own_bytes": weights["assisted"].own_bytes,
        "draft_without_embedding_bytes": sum(one.nbytes for one in llama(LAYERS // 4).model.layers.parameters()),
        "assisted_shares_with": sorted(weights["assisted"].shared_with),
        "assisted_writes_the_same": assisted == alone,
    }
    show("a model and its draft, 2 workers", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
