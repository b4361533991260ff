"""Five instances of one model, thirty loops over two shapes: the memory that they use stays inside a band.

The band is computed from one instance: what its pool uses, and what its worker has to itself once for each
further worker, half of that more or less. A second copy of the weights would not fit in; nor would workers that
grow from loop to loop. And if fewer than three had run, that would be too little. What counts is weights and
anonymous memory: the share in pages of files gets smaller when another program of the machine imports the same
libraries.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from onecopy.pool import Model, Pool
from onecopy.pool.memory_views import Memory
from showing import Row, arguments, processes, row_of, show, unshared_bytes
from torch import nn

INSTANCES = 5
LOOPS = 30
#: After so many loops memory is looked at again.
LOOK_EVERY = 5
#: Rows and length of the two inputs, which come in turns.
SHAPES = ((1, 6), (2, 8))
WORDS, WIDTH, LAYERS = 32_768, 512, 4
#: Of what further workers have to themselves.
BAND = 0.5


class Encoder(nn.Module):
    """A transformer of 118 MB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layers = [nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, batch_first=True) for _ in range(LAYERS)]
        self.layers = nn.Sequential(*layers)
        self.eval()

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return a vector for each text."""
        return self.layers(self.embedding(words)).mean(1)


class Measured(NamedTuple):
    """What a pool took each time it was looked at, and what it answered in the last loop.

    And how often each worker ran, and what one of them has to itself in the end.
    """

    memory: list[Memory]
    results: list[torch.Tensor]
    runs: list[int]
    worker_bytes: int


def inputs() -> list[torch.Tensor]:
    """Return one input of each shape."""
    return [torch.arange(rows * length).reshape(rows, length) * 97 % WORDS for rows, length in SHAPES]


def in_pool(instances: int) -> Measured:
    """Run the loops in a pool: in each, every instance gets every input."""
    model = Model(Encoder, warm=True)
    with Pool({"encoder": model}, workers=instances, slots=instances, threads=1) as pool:
        memory: list[Memory] = []
        results: list[torch.Tensor] = []
        while [worker.models for worker in pool.status().workers] != [["encoder"]] * instances:
            time.sleep(0.01)  # for the workers that are forked with the model in them
        for loop in range(1, LOOPS + 1):
            futures = [pool.submit("encoder", words) for words in inputs() for _ in range(instances)]
            results = [future.result() for future in futures]
            if loop % LOOK_EVERY == 0:
                memory.append(pool.memory())
        workers = pool.status().workers
        return Measured(memory, results, [worker.runs for worker in workers], unshared_bytes(workers[0].pid))


def plain() -> tuple[Encoder, list[Any]]:
    """Run the loops in this process on a model of its own; return the model, and the results of the last loop."""
    torch.set_num_threads(1)
    model = Encoder()
    results: list[torch.Tensor] = []
    with torch.inference_mode():
        for _ in range(LOOPS):
            results = [model(words) for words in inputs()]
    return model, [one.numpy() for one in results]


def used_bytes(memory: Memory) -> int:
    """Return what a pool uses, files left out."""
    return memory.weights_bytes + sum(process.private_bytes for process in memory.processes)


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    one, five = in_pool(1), in_pool(INSTANCES)
    with processes(INSTANCES, plain) as ((wanted, *_), plain_bytes):
        pass  # they are there to be measured

    one_bytes = used_bytes(one.memory[-1])
    more_bytes = (INSTANCES - 1) * one.worker_bytes
    used = [used_bytes(memory) for memory in five.memory]
    answers = [five.results[place::INSTANCES] for place in range(INSTANCES)]
    facts = {
        "one_uses_bytes": one_bytes,
        "of_which_its_worker_to_itself_bytes": one.worker_bytes,
        "band_from_bytes": round(one_bytes + (1 - BAND) * more_bytes),
        "band_to_bytes": round(one_bytes + (1 + BAND) * more_bytes),
        "five_use_at_least_bytes": min(used),
        "five_use_at_most_bytes": max(used),
        "runs_by_worker": five.runs,
        "equal_to_plain": all(np.array_equal(*pair) for got in answers for pair in zip(got, wanted, strict=True)),
    }
    rows = [
        row_of("1 worker", one.memory[-1]),
        row_of(f"{INSTANCES} workers", five.memory[-1]),
        Row(f"{INSTANCES} plain processes", None, plain_bytes),
    ]
    show(f"{INSTANCES} instances, {LOOPS} loops, {len(SHAPES)} shapes", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
