"""Commands that ask a pool how it does, and change nothing."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from .command import (
    AsJson,
    Endpoint,
    Keys,
    connect,
    connect_control,
    print_line,
    reports_errors,
)


@reports_errors
def status(as_json: AsJson = False, endpoint: Endpoint = None, _keys: Keys = None) -> None:
    """Show how the pool does as a whole."""
    with connect(endpoint) as pool:
        told = pool.status()
    if as_json:
        print_line(json.dumps(told.to_dict()))
        return
    from . import tables

    tables.show_status(told)


@reports_errors
def models(as_json: AsJson = False, endpoint: Endpoint = None, _keys: Keys = None) -> None:
    """Show what models there are, and how they do."""
    with connect(endpoint) as pool:
        told = pool.models()
    if as_json:
        print_line(json.dumps([model.to_dict() for model in told]))
        return
    from . import tables

    tables.show_models(told)


@reports_errors
def memory(as_json: AsJson = False, endpoint: Endpoint = None, _keys: Keys = None) -> None:
    """Show what memory the pool takes, and what it would take without sharing."""
    with connect(endpoint) as pool:
        told = pool.memory()
    if as_json:
        print_line(json.dumps(told.to_dict()))
        return
    from . import tables

    tables.show_memory(told)


@reports_errors
def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds from one picture to the next.")] = 1.0,
    endpoint: Endpoint = None,
    _keys: Keys = None,
) -> None:
    """Show how the pool does, again and again, until q or Ctrl-C is pressed."""
    from .top import show, show_once

    with connect(endpoint) as pool:
        if once:
            show_once(pool)
        else:
            show(pool, interval)


@reports_errors
def record(endpoint: Endpoint = None) -> None:
    """Write what the pool's supervisor did lately to a file, for whoever looks for a fault; print its path.

    Sizes of what requests carry are in it, and names of models; what they carry is not. scripts/replay runs it
    again.
    """
    from ..protocol.messages import Done, WriteRecord

    with connect_control(endpoint) as control:
        written = control.ask(WriteRecord())
        assert isinstance(written, Done)
    print_line(written.note)


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

    with connect_control(endpoint) as control:
        try:
            for fields in control.lines(follow=follow):
                line = Line(*fields)
                print_line(line.to_json() if as_json else str(line))
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not follow:
                raise
