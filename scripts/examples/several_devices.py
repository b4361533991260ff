"""Two models on each of two devices, and one on both: each device has its own copies and its own work memory.

The machine is divided into two logical devices, as one with two cards is by itself; with ``--kind cuda`` the
two are cards. The parts of an image generator are a group that shares work memory on the first: as large as the
larger of them needs, not as both do. An input that needs more spills once, and then that memory has grown. Two
encoders share that of the second, and one more is on both. Each device has workers, cores and a budget of its own;
what does not fit into the budget of the first goes to the second.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from onecopy.pool import Model, Pool
from onecopy.pool.memory_views import Memory
from onecopy.pool.views import Status
from showing import arguments, row_of, show
from torch import nn

BUDGETS = ("500MB", "900MB")
#: How many images and texts, and their sizes.
LATENTS = (1, 4, 32, 32)
WORDS = (2, 64)
VOCABULARY = 8_192
#: What the parts of the generator have in common.
GROUP = "generator"


class UNet(nn.Module):
    """Down, across and up again, with what was before beside it: makes an image out of noise, step by step."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.into = nn.Conv2d(LATENTS[1], width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.across = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, LATENTS[1], 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (batch, 4, height, width) with less noise."""
        before = torch.relu(self.into(latents))
        after = torch.relu(self.up(torch.relu(self.across(torch.relu(self.down(before))))))
        return self.out(torch.cat([before, after], 1))


class Decoder(nn.Module):
    """What makes an image out of latents: eight times as high and wide."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(2)
        steps: list[nn.Module] = [nn.Conv2d(LATENTS[1], width, 3, padding=1)]
        for _ in range(3):
            steps += [nn.Upsample(scale_factor=2.0), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.steps = nn.Sequential(*steps, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images (batch, 3, 8 height, 8 width)."""
        return self.steps(latents)


class Encoder(nn.Module):
    """A transformer encoder of so many layers."""

    def __init__(self, layers: int, width: int = 256) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.Sequential(
            *[nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True) for _ in range(layers)]
        )
        self.eval()

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return a vector for each text."""
        return self.layers(self.embedding(words)).mean(1)


def inputs() -> dict[str, torch.Tensor]:
    """Return an input for each model."""
    latents = torch.linspace(-1, 1, LATENTS[2] * LATENTS[3] * LATENTS[1]).reshape(LATENTS)
    words = torch.arange(WORDS[0] * WORDS[1]).reshape(WORDS) * 97 % VOCABULARY
    return {"unet": latents, "decoder": latents, "small": words, "large": words, "both": words}


def models(kind: str) -> dict[str, Model]:
    """Return the models, with where they may be; what their runs need is found out with their inputs."""
    given = inputs()
    first, second = f"{kind}:0", f"{kind}:1"
    return {
        "unet": Model(UNet, device=first, workspace=GROUP, example=(given["unet"],)),
        "decoder": Model(Decoder, device=first, workspace=GROUP, example=(given["decoder"],)),
        "small": Model(Encoder, args=(2,), device=second, example=(given["small"],)),
        "large": Model(Encoder, args=(12,), device=second, example=(given["large"],)),
        "both": Model(Encoder, args=(1,), replicas=2),
    }


def plain() -> dict[str, torch.Tensor]:
    """Return what each model answers without a pool."""
    given = inputs()
    with torch.inference_mode():
        return {name: (model.source(*model.args))(given[name]) for name, model in models("cpu").items()}


def too_large(pool: Pool) -> str:
    """Load what does not fit beside the others on the first device; return where it is."""
    pool.load("larger", Model(Encoder, args=(90,)))
    return next(model.device for model in pool.models() if model.name == "larger")


def ring_facts(status: Status) -> dict[str, Any]:
    """Return, by device, what each slot has, and what its models would have together if each had its own."""
    facts: dict[str, Any] = {}
    for ring in status.rings:
        group = f"{ring.device.replace(':', '')}_{ring.name}"
        facts[f"{group}_models"] = sorted(ring.needs_bytes)
        facts[f"{group}_largest_need_bytes"] = max(ring.needs_bytes.values())
        facts[f"{group}_sum_of_needs_bytes"] = sum(ring.needs_bytes.values())
    return facts


def spills_of_more(pool: Pool) -> list[int]:
    """Have the generator work on four times as much, twice; return how many of the runs did not fit."""
    more = torch.cat([torch.cat([inputs()["unet"]] * 2, 2)] * 2, 3)
    spills = [_spills(pool)]
    for _ in range(2):
        pool.run("decoder", more)
        spills.append(_spills(pool))
    return [after - before for before, after in itertools.pairwise(spills)]


def _spills(pool: Pool) -> int:
    return next(ring.spills for ring in pool.status().rings if ring.name == GROUP)


def weights_facts(memory: Memory) -> dict[str, Any]:
    """Return what weights take on each device."""
    return {f"{one.name.replace(':', '')}_weights_bytes": one.accounts["weights"] for one in memory.devices}


def main() -> None:
    """Run the example."""
    options = arguments(__doc__, has_kind=True)
    torch.set_num_threads(1)
    devices = {f"{options.kind}:{index}": {"budget": one, "workers": 2} for index, one in enumerate(BUDGETS)}
    with Pool(models(options.kind), threads=1, devices=devices) as pool:
        answers = {name: pool.run(name, given) for name, given in inputs().items()}
        replicas = [pool.submit("both", inputs()["both"]) for _ in range(20)]
        answers["both"] = next(one for one in [future.result() for future in replicas])
        status, memory = pool.status(), pool.memory()
        spills = spills_of_more(pool)
        larger = too_large(pool)
        expected = plain()
        facts = {
            "equal_to_plain": all(torch.equal(answers[name], expected[name]) for name in expected),
            "differs_from_plain_by": max(float((answers[name] - expected[name]).abs().max()) for name in expected),
            "devices": {name: [one.device for one in status.models if one.name == name] for name in expected},
            "both_answered": {one.device: one.answered for one in status.models if one.name == "both"},
            **ring_facts(status),
            **weights_facts(memory),
            "spills_of_two_runs_that_need_more": spills,
            "larger_than_the_room_on_the_first_went_to": larger,
        }
        rows = [row_of("before the last", memory), row_of("with it", pool.memory())]
    show("two models on each of two devices, and one on both", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
