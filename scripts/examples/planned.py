"""What models will take is told before any is loaded; where they go, in which order, and who has whose turn.

Four models for a machine divided in two. The plan runs their examples on shapes alone: it knows weights exactly,
which models compute rather than wait for memory and so are kept apart, and an order of loads that takes least at
once. Then a pool loads them there, in that order, and the next plan knows besides how long that took. At last two
models that are asked for more than there is time for get parts of it as their shares are.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from onecopy.pool import Model, Pool, plan
from showing import arguments, row_of, show, wait_until
from torch import nn

DEVICES = {name: {"budget": "1GB", "reserve": "100MB", "workers": 1} for name in ("cpu:0", "cpu:1")}
RUNS = 200
MANY, SOME, ONE = torch.ones(2048, 512), torch.ones(64, 512), torch.ones(1, 2048)


def computing() -> nn.Module:
    """Return layers that use each weight for thousands of rows."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(512, 512) for _ in range(6)))


def reading(layers: int) -> nn.Module:
    """Return layers that are read once for a single row."""
    torch.manual_seed(layers)
    return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(layers)))


MODELS = {
    "small": Model(reading, args=(1,), example=ONE),
    "large": Model(reading, args=(5,), example=ONE),
    "computes": Model(computing, example=MANY),
    "computes_too": Model(computing, example=MANY, sharing="private"),
}


def load_as_planned() -> tuple[list[Any], dict[str, Any]]:
    """Plan, load, and plan again; return what the models took, and what was told of that."""
    told = plan(MODELS, devices=DEVICES)
    with Pool(told.placed(MODELS), devices=DEVICES) as pool:
        for name, model in MODELS.items():
            pool.run(name, model.example)
        place = {model.name: model.device for model in pool.models()}
        rows = [row_of("four models, as planned", pool.memory())]
        free_bytes = [device.free_bytes for device in pool.memory().devices]
    again = plan(MODELS, devices=DEVICES)
    return rows, {
        "fits": told.fits,
        "planned_weights_bytes": sum(device.weights_bytes for device in told.devices),
        "place": place,
        "planned_place": {model.name: model.device for model in told.models},
        "compute_bound": [model.name for model in told.models if model.is_compute_bound],
        "pairs_that_compute_on_one_device": told.crowded,
        "order": told.order,
        "peak_bytes": told.peak_bytes,
        "peak_as_given_bytes": told.declared_peak_bytes,
        "reserves_bytes": sum(device.reserve_bytes for device in told.devices),
        "least_free_bytes": min(free_bytes),
        "loads_known_before": sum(model.load_s is not None for model in told.models),
        "loads_known_after": sum(model.load_s is not None for model in again.models),
    }


def share_time() -> dict[str, Any]:
    """Ask two models for more than a worker can do; return what part of its time each had."""
    models = {"favoured": Model(computing, share=3.0), "other": Model(computing)}
    with Pool(models, workers=1) as pool:
        for name in models:
            pool.run(name, SOME)
        before = {one.name: one.worker_s for one in pool.models()}
        futures = [pool.submit(name, SOME) for _ in range(RUNS) for name in models]
        wait_until(lambda: pool.models()[0].answered > RUNS // 2, timeout_s=60)
        had = {one.name: one.worker_s - before[one.name] for one in pool.models()}
        for future in futures:
            future.cancel()
    return {"favoured_had_times_the_others_time": round(had["favoured"] / had["other"], 2)}


def main() -> None:
    """Run the example."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONECOPY_CACHE_DIR"] = folder  # where nothing has been learned yet
        rows, facts = load_as_planned()
        facts |= share_time()
    show("two devices, planned", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
