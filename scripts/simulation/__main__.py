"""The command line: ``scripts/simulate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from . import report
from .chaos import chaos
from .costs import costs
from .load import backlog, load
from .saturation import saturation
from .scenario import SERVICES, Scenario, read, scenario_of

PARTS: Final[dict[str, Callable[[Scenario], dict[str, Any]]]] = {
    "load": load,
    "saturation": saturation,
    "backlog": backlog,
    "costs": lambda _: costs(),
    "chaos": chaos,
}
#: What is simulated if nothing is said.
DEFAULTS: Final = {"devices": 64, "workers": 16, "models": 200, "clients": 20}


def simulate(
    parts: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(PARTS)}; default: all")] = None,
    file: Annotated[
        str, typer.Option(help="a scenario like scripts/simulation/mixed.toml; options go first")
    ] = "",
    devices: Annotated[int | None, typer.Option(help="default 64, all of them one ring")] = None,
    workers: Annotated[int | None, typer.Option(help="on each device; default 16")] = None,
    models: Annotated[int | None, typer.Option(help="default 200, all alike")] = None,
    clients: Annotated[int | None, typer.Option(help="default 20, all alike")] = None,
    load: Annotated[float | None, typer.Option(help="part of the capacity that is asked for; default 0.8")] = None,
    outstanding: Annotated[
        int | None, typer.Option(help="instead: requests that each client keeps unanswered")
    ] = None,
    service: Annotated[str | None, typer.Option(help=f"{', '.join(SERVICES)}; default lognormal")] = None,
    base_ms: Annotated[float | None, typer.Option(help="mean of a run, a + b * calls: a; default 10")] = None,
    item_ms: Annotated[float | None, typer.Option(help="... and b; default 0")] = None,
    sigma: Annotated[float | None, typer.Option(help="of the logarithm, for lognormal; default 1")] = None,
    max_batch: Annotated[int | None, typer.Option(help="calls that may run as one; default 1")] = None,
    max_wait_ms: Annotated[float | None, typer.Option(help="how long a batch may wait; default 0")] = None,
    duration_s: Annotated[float | None, typer.Option(help="simulated time that is measured; default 1")] = None,
    warmup_s: Annotated[float | None, typer.Option(help="... and before that; default 0.5")] = None,
    hours: Annotated[float | None, typer.Option(help="how long chaos lasts; default 1")] = None,
    seed: Annotated[int | None, typer.Option(help="of all random numbers; default 1")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Simulate a pool on a machine that is not at hand.

    load: latency, throughput, use of the workers, batches.

    saturation: who gets what when all ask for too much.

    backlog: a light client beside one that sent 100,000 requests at once.

    costs: real time that an event takes the core, on a small and a large machine; options do not matter.

    chaos: everything is killed, unloaded, evicted and replaced for hours, and books are kept on every request.
    """
    said = {
        "devices": devices, "workers": workers, "models": models, "clients": clients, "load": load,
        "outstanding": outstanding, "service": service, "base_ms": base_ms, "item_ms": item_ms, "sigma": sigma,
        "max_batch": max_batch, "max_wait_ms": max_wait_ms, "duration_s": duration_s, "warmup_s": warmup_s,
        "hours": hours, "seed": seed,
    }  # fmt: skip
    try:
        chosen = [(part, PARTS[part]) for part in parts or PARTS]
        given = {key: value for key, value in said.items() if value is not None}
        scenario = scenario_of((read(file) if file else DEFAULTS) | given)
    except KeyError as error:
        raise typer.BadParameter(f"there is no part {error}; there are {', '.join(PARTS)}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    found: dict[str, Any] = {"machine": report.machine_of(scenario), "scenario": asdict(scenario)}
    if not as_json:
        typer.echo(found["machine"])
    for name, part in chosen:
        found[name] = part(scenario)
        if not as_json:
            report.show(name, found[name])
    if as_json:
        typer.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(simulate)
    app(prog_name="scripts/simulate")
