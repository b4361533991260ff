"""Commands of a pool's life: serve, plan, stop; and what this machine can do."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from .command import (
    AsJson,
    Endpoint,
    connect_control,
    print_line,
    process_at,
    reports_errors,
)


@reports_errors
def serve(
    config: Annotated[str, typer.Argument(metavar="POOL.TOML", help="What to serve.")],
    listen: Annotated[
        list[str] | None, typer.Option(metavar="ENDPOINT", help="Also listen here, such as tcp://127.0.0.1:5555.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the pool is called; default: as the file says.")] = None,
    directory: Annotated[
        str | None, typer.Option(help="Folder for the sockets; default: one of that name in your runtime folder.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve metrics and health there, over HTTP.")
    ] = None,
    metrics_public: Annotated[
        bool, typer.Option("--metrics-public", help="Even if that is not loopback: anyone may read them.")
    ] = False,
    log_format: Annotated[
        str | None, typer.Option(help="text; or json: an object a line on standard error.")
    ] = None,
    mps: Annotated[
        str | None, typer.Option(metavar="off|auto|on", help="Compute on a GPU at the same time, by NVIDIA's MPS.")
    ] = None,
    planned: Annotated[
        bool, typer.Option("--planned", help="Plan first: load models where, and in the order, that is best.")
    ] = False,
) -> None:
    """Serve the models of a pool.toml until told to stop; SIGTERM or Ctrl-C drains."""
    command = [sys.executable, "-P", "-m", "onecopy.pool.supervisor", f"--config={config}"]
    command += [f"--listen={endpoint}" for endpoint in listen or ()]
    folder = None if directory is None else os.path.abspath(directory)
    options = {"name": name, "directory": folder, "metrics": metrics, "log-format": log_format, "mps": mps}
    command += [f"--{option}={value}" for option, value in options.items() if value is not None]
    command += ["--metrics-public"] * metrics_public
    if planned:
        command += [f"--place={name}={device}" for name, device in _places(config)]
    os.execv(sys.executable, command)  # noqa: S606 - what the command line has imported shall not stay in memory


def _places(config: str) -> list[tuple[str, str]]:
    """Plan, say what comes of it, and return the device of each model, in the order of loads."""
    from .planning.plan import plan_file
    from .toml import read_toml

    made = plan_file(config)
    typer.echo("\n".join(made.sentences()), err=True)
    placed = made.placed(read_toml(config)[1])
    return [(name, model.devices[0]) for name, model in placed.items() if len(model.devices) == 1]


@reports_errors
def plan(
    config: Annotated[str, typer.Argument(metavar="POOL.TOML", help="What would be served.")],
    as_json: AsJson = False,
) -> None:
    """Tell what the models of a pool.toml will take, before any is loaded; exit code 1 if that does not fit.

    Examples of models are run on tensors that have shapes only. If the pool is served already, what its models
    take stands beside what was predicted.
    """
    from .planning.plan import plan_file

    planned = plan_file(config)
    if as_json:
        print_line(json.dumps(planned.to_dict()))
    else:
        from .planning.show import show_plan

        show_plan(planned)
    raise typer.Exit(0 if planned.fits else 1)


@reports_errors
def stop(
    now: Annotated[bool, typer.Option("--now", help="Give up what is not answered yet.")] = False,
    endpoint: Endpoint = None,
) -> None:
    """End the supervisor, once everything it has accepted is answered; returns when it is gone."""
    from ..protocol.messages import StopPool

    with connect_control(endpoint) as control, process_at(control) as gone:
        control.tell(StopPool(not now))
        gone.poll()


@reports_errors
def doctor(as_json: AsJson = False) -> None:
    """Show whether everything that onecopy uses is here; exit code 1 if something that it needs is missing."""
    from .doctor import examine, report

    report(examine(), as_json=as_json)
