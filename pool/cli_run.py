"""Commands that run models: once, or on each line of a file."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .command import (
    ArgJson,
    Endpoint,
    Keys,
    KwargJson,
    Method,
    Priority,
    Retries,
    Timeout,
    connect,
    full_endpoint,
    json_arguments,
    json_input,
    print_line,
    reports_errors,
)


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
    _keys: Keys = None,
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
            print_line(lines.to_json(handle(*args, **kwargs)))
            return
        for item in handle._stream(tuple(args), kwargs):
            print_line(lines.to_json(item))
            sys.stdout.flush()


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
    _keys: Keys = None,
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
