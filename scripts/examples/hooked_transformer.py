"""Researchers look into one transformer at the same time: hooks and caches are theirs, the weights are the pool's.

A `HookedTransformer` of TransformerLens is built and its weights processed once, before they are shared. The pool
answers requests with it, and each further process that attaches to it gets the real object, on the one copy.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded

import numpy as np
import torch
from onecopy.pool import Model, Pool
from showing import Row, arguments, processes, row_of, show

sys.path.append(os.path.join(sys.prefix, "examples"))  # where scripts/setup puts TransformerLens
RESEARCHERS = 2
WORDS = 12_000
TOKENS = torch.arange(24).reshape(2, 12) * 331 % WORDS


def build() -> Any:
    """Return a transformer of 159 MB with random weights, as GPT-2 is made."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=3, d_model=768, n_ctx=64, d_head=64, d_mlp=3072, d_vocab=WORDS, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # version 4 has another class for it
        return HookedTransformer(config).eval()


def process(model: Any) -> None:
    """Fold layer norms and value biases into the weights around them, and centre what writes and unembeds."""
    model.process_weights_()


def look_into(model: Any) -> dict[str, Any]:
    """Return the logits, what one block attends to, and the logits with one head silenced."""

    def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
        assert hook.name == "blocks.1.attn.hook_z"
        z[:, :, 3] = 0
        return z

    torch.set_num_threads(1)
    with torch.inference_mode():
        logits, cache = model.run_with_cache(TOKENS)
        without_head = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_z", silence)])
    seen = {"logits": logits, "pattern": cache["pattern", 2], "without_head": without_head}
    return {name: tensor.numpy() for name, tensor in seen.items()}


def plain() -> tuple[Any, dict[str, Any]]:
    """Look into a model that this process has built for itself."""
    model = build()
    process(model)
    return model, look_into(model)


def attached(endpoint: str) -> tuple[Any, dict[str, Any]]:
    """Look into the pool's model in this process."""
    with Pool.connect(endpoint) as pool:
        model = pool.attach("transformer")
    return model, look_into(model)


def plain_alone() -> tuple[dict[str, Any], int]:
    """Return what a process without a pool sees, and what it takes."""
    with processes(1, plain) as ([seen], total_bytes):
        return seen, total_bytes


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    model = Model(build, prepare=process, warm=True)
    with ThreadPoolExecutor(1) as beside, Pool({"transformer": model}, workers=1, threads=1) as pool:
        comparison = beside.submit(plain_alone)
        # They may come before the model is loaded: whoever attaches waits for it.
        with processes(RESEARCHERS, functools.partial(attached, pool.endpoint)) as (seen, attached_bytes):
            logits = pool.run("transformer", TOKENS)
            memory = pool.memory()
        expected, plain_bytes = comparison.result()

    rows = [
        row_of("the pool, 1 worker", memory),
        Row(f"{RESEARCHERS} attached processes, each", None, attached_bytes // RESEARCHERS),
        Row("a plain process", None, plain_bytes),
    ]
    facts = {
        "attached_processes": memory.weights[0].attached,
        "pool_equal_to_plain": np.array_equal(logits, expected["logits"]),
        "attached_equal_to_plain": [
            all(np.array_equal(one[name], expected[name]) for name in expected) for one in seen
        ],
        "a_silent_head_changes_the_logits": not np.allclose(seen[0]["logits"], seen[0]["without_head"]),
    }
    show("a HookedTransformer, its weights processed", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
