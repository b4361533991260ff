"""Tokens of a language model come as they are made, and a reader that has seen enough stops the model.

`generate` of transformers runs in a thread of its own in the worker and hands each token to a queue; the method of
the model takes them out and yields them. When the reader goes away, so does the generator: its ``finally`` has
`generate` stop at the next token and waits for the thread. Nothing of the run is left, and the worker is free.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded

import torch
from onecopy.pool import Pool
from showing import arguments, row_of, show, wait_until
from torch import nn

WORDS, WIDTH, LAYERS, LENGTH = 1000, 256, 4, 1024
PROMPT = torch.arange(8).reshape(1, 8) * 31 % WORDS
TOKENS = 64
SEEN_ENOUGH = 5


class Writer(nn.Module):
    """A small GPT-2 with random weights."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=LENGTH, bos_token_id=0,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        self.made = 0

    def write(self, prompt: torch.Tensor, count: int) -> Iterator[int]:
        """Yield each token when it is made."""
        tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
        enough = threading.Event()
        thread = threading.Thread(target=self._generate, args=(prompt, count, tokens, enough))
        thread.start()
        try:
            while (token := tokens.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            enough.set()
            thread.join()

    def count_made(self) -> int:
        """Return how many tokens the last run made."""
        return self.made

    def forward(self, prompt: torch.Tensor, count: int) -> list[int]:
        """Return all tokens at once."""
        written = self.model.generate(prompt, max_new_tokens=count, do_sample=False)
        return written[0, prompt.shape[1] :].tolist()

    def _generate(self, prompt: torch.Tensor, count: int, tokens: Any, enough: threading.Event) -> None:
        try:
            with torch.inference_mode():  # as in the worker's own thread, which has it for itself alone
                self.made = 0
                self.model.generate(
                    prompt, max_new_tokens=count, do_sample=False, streamer=_Streamer(self, tokens),
                    stopping_criteria=[lambda *_, **__: torch.tensor([enough.is_set()])],
                )  # fmt: skip
            tokens.put(None)
        except BaseException as error:  # noqa: BLE001 - whoever reads the tokens is told
            tokens.put(error)


class _Streamer:
    """What `generate` hands its tokens to; the first are those of the prompt."""

    def __init__(self, writer: Writer, tokens: Any) -> None:
        self._writer = writer
        self._tokens = tokens
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Hand over what was made."""
        if not self._is_prompt:
            self._writer.made += 1
            self._tokens.put(int(value))
        self._is_prompt = False

    def end(self) -> None:
        """Nothing more comes."""


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    with Pool({"writer": Writer}, workers=1) as pool:
        at_once = pool.run("writer", PROMPT, TOKENS)
        write = pool.model("writer", method="write")
        began_at = time.perf_counter()
        came_s: list[float] = []
        streamed: list[int] = []
        for token in write.stream(PROMPT, TOKENS):
            came_s.append(time.perf_counter() - began_at)
            streamed.append(token)

        for index, _ in enumerate(write.stream(PROMPT, LENGTH - PROMPT.shape[1]), 1):
            if index == SEEN_ENOUGH:
                break
        wait_until(lambda: not any(worker.outstanding for worker in pool.status().workers))
        facts = {
            "first_token_after_s": round(came_s[0], 4),
            "last_token_after_s": round(came_s[-1], 4),
            "equal_to_all_at_once": streamed == at_once,
            "tokens_made_for_a_reader_of_5": pool.model("writer", method="count_made")(),
            "tokens_asked_for": LENGTH - PROMPT.shape[1],
        }
        rows = [row_of("the pool, 1 worker", pool.memory())]
    show("tokens as they come", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
