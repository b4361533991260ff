"""The command line: ``onecopy serve | status | models | memory | run | batch | load | unload | evict | logs ...``.

Exit codes: 0 done, 1 failed, 2 wrong usage. An error is one line on standard error; what a model raised keeps
its remote traceback. Everything but the command line's grammar is imported by the command that needs it, so that
``onecopy status`` is there at once.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any, cast

import typer

from .command import (
    ArgJson,
    AsJson,
    Dtype,
    Endpoint,
    KwargJson,
    MaxBatch,
    MaxQueue,
    MaxWait,
    Method,
    Priority,
    Residency,
    Retries,
    Share,
    Sharing,
    Source,
    Task,
    Timeout,
    Trusted,
    Weights,
    connect,
    connect_control,
    full_endpoint,
    json_arguments,
    json_input,
    print_line,
    process_at,
    reports_errors,
)

app = typer.Typer(
    name="onecopy",
    help="A pool of worker processes for PyTorch models with one copy of the weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Be the console script."""
    from .lines import do_without_torch

    do_without_torch()
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print_line(f"onecopy {importlib.metadata.version('onecopy')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A pool of worker processes for PyTorch models with one copy of the weights."""


# --- a supervisor's life -------------------------------------------------------------------------------------


@app.command()
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
) -> None:
    """Serve the models of a pool.toml until told to stop; SIGTERM or Ctrl-C drains."""
    command = [sys.executable, "-P", "-m", "onecopy.pool.supervisor", f"--config={config}"]
    command += [f"--listen={endpoint}" for endpoint in listen or ()]
    if name is not None:
        command.append(f"--name={name}")
    if directory is not None:
        command.append(f"--directory={os.path.abspath(directory)}")
    os.execv(sys.executable, command)  # noqa: S606 - what the command line has imported shall not stay in memory


@app.command()
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


@app.command()
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


@app.command()
@reports_errors
def doctor(as_json: AsJson = False) -> None:
    """Show whether everything that onecopy uses is here; exit code 1 if something that it needs is missing."""
    from .doctor import examine, report

    report(examine(), as_json=as_json)


@app.command()
@reports_errors
def logs(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is printed from now on.")
    ] = False,
    as_json: AsJson = False,
    endpoint: Endpoint = None,
) -> None:
    """Show what the pool's processes printed lately."""
    from .supervisor.logs import Line

    names = ("pid", "role", "model", "request", "text", "count")
    with connect_control(endpoint) as control:
        try:
            for line in control.lines(follow=follow):
                print_line(json.dumps(dict(zip(names, line, strict=True))) if as_json else str(Line(*line)))
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not follow:
                raise


# --- what it tells -------------------------------------------------------------------------------------------


@app.command()
@reports_errors
def status(as_json: AsJson = False, endpoint: Endpoint = None) -> None:
    """Show how the pool does as a whole."""
    with connect(endpoint) as pool:
        told = pool.status()
    if as_json:
        print_line(json.dumps(told.to_dict()))
        return
    from . import tables

    tables.show_status(told)


@app.command()
@reports_errors
def models(as_json: AsJson = False, endpoint: Endpoint = None) -> None:
    """Show what models there are, and how they do."""
    with connect(endpoint) as pool:
        told = pool.models()
    if as_json:
        print_line(json.dumps([model.to_dict() for model in told]))
        return
    from . import tables

    tables.show_models(told)


@app.command()
@reports_errors
def memory(as_json: AsJson = False, endpoint: Endpoint = None) -> None:
    """Show what memory the pool takes, and what it would take without sharing."""
    with connect(endpoint) as pool:
        told = pool.memory()
    if as_json:
        print_line(json.dumps(told.to_dict()))
        return
    from . import tables

    tables.show_memory(told)


# --- running -------------------------------------------------------------------------------------------------


@app.command()
@reports_errors
def run(
    model: Annotated[str, typer.Argument(help="Which model.")],
    given: Annotated[
        str | None,
        typer.Option("--input", metavar="JSON|FILE|-", help="One request as in a line of `batch`; - reads it."),
    ] = None,
    arg: ArgJson = None,
    kwarg: KwargJson = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="For a method that yields: print each item as it comes, a line each.")
    ] = False,
    method: Method = "",
    priority: Priority = 0,
    timeout: Timeout = None,
    retries: Retries = 1,
    endpoint: Endpoint = None,
) -> None:
    """Run a model once and print its result as JSON.

    Arguments are JSON: --arg 3 --arg '"text"' --kwarg scale=0.5, or --input '{"args": [3, "text"]}'. Arrays are
    {"npy": "file.npy"}, tensors {"tensor": [1.0, 2.0]}, bytes {"base64": "..."}; results come as lists.
    """
    from ..protocol.errors import InvalidRequest
    from . import lines

    if given is not None and (arg or kwarg):
        raise typer.BadParameter("give either --input, or --arg and --kwarg")
    folder, document = os.getcwd(), json_arguments(arg, kwarg)
    if given is not None:
        folder, document = json_input(given)
    try:
        args, kwargs, _ = lines.arguments(document, folder)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None
    with connect(endpoint) as pool:
        handle = pool.model(model, method=method or None, priority=priority, timeout_s=timeout, retries=retries)
        if not stream:
            print_line(lines.to_json(handle._submit(tuple(args), kwargs).result()))
            return
        for item in handle._stream(tuple(args), kwargs):
            print_line(lines.to_json(item))
            sys.stdout.flush()


@app.command()
@reports_errors
def batch(
    model: Annotated[str, typer.Argument(help="Which model.")],
    input_: Annotated[str, typer.Option("--input", "-i", help="JSON lines; - for standard input.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where results go; - for standard output.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the job was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew if there is output.")] = False,
    method: Method = "",
    priority: Priority = -10,
    timeout: Timeout = None,
    retries: Retries = 1,
    progress: Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")] = True,
    endpoint: Endpoint = None,
) -> None:
    """Run a model on each line of a file; results come in order, one line each.

    A line is a value, which is the one argument, or {"id": ..., "args": [...], "kwargs": {...}}. Its result is
    {"id": ..., "result": ...} or {"id": ..., "error": {...}}; the exit code is 1 if there is any error.
    A job stands back behind other requests, unless it is given another priority.
    """
    from .batch import BatchOptions, run_batch

    options = BatchOptions(
        model, method, input_, output, resume=resume, overwrite=overwrite, timeout_s=timeout, retries=retries,
        priority=priority, progress=progress,
    )  # fmt: skip
    tally = run_batch(full_endpoint(endpoint), options)
    print(f"onecopy: {tally.lines} lines, {tally.failed} failed", file=sys.stderr)  # noqa: T201
    raise typer.Exit(1 if tally.failed else 0)


# --- models --------------------------------------------------------------------------------------------------


@app.command()
@reports_errors
def load(
    name: Annotated[str, typer.Argument(help="What the model is to be called.")],
    source: Source,
    arg: ArgJson = None,
    kwarg: KwargJson = None,
    weights: Weights = None,
    dtype: Dtype = None,
    task: Task = None,
    trusted: Trusted = False,
    residency: Residency = "memory",
    sharing: Sharing = "shared",
    workspace: Annotated[
        str, typer.Option(help="Whose slots its runs use: device, private, or a name.")
    ] = "device",
    on_overflow: Annotated[str, typer.Option(help="What if a slot is too small: spill, or error.")] = "spill",
    max_batch: MaxBatch = 1,
    max_wait_ms: MaxWait = 0,
    share: Share = 1,
    max_queue: MaxQueue = 0,
    method: Annotated[str, typer.Option(help="What a request calls that names no method.")] = "__call__",
    warm: Annotated[bool, typer.Option("--warm", help="Load and thaw it once, now.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Keep its weights in memory.")] = False,
    grad: Annotated[bool, typer.Option("--grad", help="Run with autograd.")] = False,
    endpoint: Endpoint = None,
) -> None:
    """Load a model, or a new version of one, while the pool serves; returns when workers can run it.

    Relative paths begin here. With a path, --kwarg goes to the library that loads it.
    """
    from .checks import check_name
    from .model import Model
    from .sources import app_paths, load_by_name

    given = json_arguments(arg, kwarg)
    model = Model(
        source, args=given["args"], kwargs=given["kwargs"], weights=weights, dtype=dtype, task=task,
        trusted=trusted, residency=cast(Any, residency), sharing=cast(Any, sharing), method=method, warm=warm,
        pin=pin, grad=grad, workspace=workspace, on_overflow=cast(Any, on_overflow),
        max_batch=max_batch, max_wait_ms=max_wait_ms, share=share, max_queue=max_queue,
    )  # fmt: skip
    paths = [os.getcwd(), *app_paths()]
    order = load_by_name(check_name("model", name), model, paths, eager=True)
    with connect_control(endpoint) as control:
        control.ask(order)


@app.command()
@reports_errors
def unload(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Forget a model once it has answered what it has; returns when its memory is freed."""
    from ..protocol.messages import UnloadModel

    with connect_control(endpoint) as control:
        control.ask(UnloadModel(name))


@app.command()
@reports_errors
def pin(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Keep a model's weights in memory, even if they lie idle and others need the room."""
    from ..protocol.messages import PinModel

    with connect_control(endpoint) as control:
        control.ask(PinModel(name, is_pinned=True))


@app.command()
@reports_errors
def unpin(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Let a model's weights leave memory again when others need the room."""
    from ..protocol.messages import PinModel

    with connect_control(endpoint) as control:
        control.ask(PinModel(name, is_pinned=False))


@app.command()
@reports_errors
def evict(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Move a model's weights from memory to the disk until they are needed; returns when that is done."""
    from ..protocol.messages import EvictModel

    with connect_control(endpoint) as control:
        control.ask(EvictModel(name))


if __name__ == "__main__":
    main()
