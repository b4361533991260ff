"""Commands that change what models there are, and where their weights lie."""

from __future__ import annotations

import os
from typing import Annotated, Any, cast

import typer

from .command import (
    ArgJson,
    Dtype,
    Endpoint,
    KwargJson,
    MaxBatch,
    MaxQueue,
    MaxWait,
    Residency,
    Share,
    Sharing,
    Source,
    Task,
    Trusted,
    Weights,
    connect_control,
    json_arguments,
    reports_errors,
)


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
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="On a GPU, replay calls of equal shapes.")
    ] = False,
    prepare: Annotated[
        str | None, typer.Option(help="package.module:name, called once with the model before it is shared.")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="An argument, or keyword arguments, to run it with once, now."),
    ] = None,
    collate: Annotated[str, typer.Option(help="Its method that joins the calls of a batch.")] = "",
    split: Annotated[str, typer.Option(help="Its method that divides their result.")] = "",
    adaptive: Annotated[
        bool, typer.Option("--adaptive/--fixed", help="Batches as large as pays, or as large as there are calls.")
    ] = True,
    device: Annotated[
        list[str] | None, typer.Option(help="A device of the pool that it may be on; default: any.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="On how many of them it shall be.")] = 1,
    divide: Annotated[
        bool, typer.Option("--divide/--whole", help="Divide it among devices if it fits on none, or refuse it.")
    ] = True,
    min_workers: Annotated[int, typer.Option(help="How many workers are there for it at least.")] = 0,
    max_workers: Annotated[int, typer.Option(help="How many may run it at once; 0: all.")] = 0,
    endpoint: Endpoint = None,
) -> None:
    """Load a model, or a new version of one, while the pool serves; returns when workers can run it.

    Relative paths begin here. With a path, --kwarg goes to the library that loads it.
    """
    from .checks import check_name
    from .lines import read_json, value_of
    from .model import Model
    from .sources import app_paths, load_by_name

    given = json_arguments(arg, kwarg)
    model = Model(
        source, args=given["args"], kwargs=given["kwargs"], weights=weights, dtype=dtype, task=task,
        trusted=trusted, residency=cast(Any, residency), sharing=cast(Any, sharing), method=method, warm=warm,
        pin=pin, grad=grad, cuda_graph=cuda_graph, workspace=workspace, on_overflow=cast(Any, on_overflow),
        max_batch=max_batch, max_wait_ms=max_wait_ms, collate=collate, split=split, adaptive=adaptive,
        share=share, max_queue=max_queue, min_workers=min_workers, max_workers=max_workers, prepare=prepare,
        device=device or "auto", replicas=replicas, divide=divide,
        example=None if example is None else value_of(read_json(example), os.getcwd()),
    )  # fmt: skip
    paths = [os.getcwd(), *app_paths()]
    order = load_by_name(check_name("model", name), model, paths, eager=True)
    with connect_control(endpoint) as control:
        control.ask(order)


@reports_errors
def unload(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Forget a model once it has answered what it has; returns when its memory is freed."""
    from ..protocol.messages import UnloadModel

    with connect_control(endpoint) as control:
        control.ask(UnloadModel(name))


@reports_errors
def pin(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Keep a model's weights in memory, even if they lie idle and others need the room."""
    from ..protocol.messages import PinModel

    with connect_control(endpoint) as control:
        control.ask(PinModel(name, is_pinned=True))


@reports_errors
def unpin(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Let a model's weights leave memory again when others need the room."""
    from ..protocol.messages import PinModel

    with connect_control(endpoint) as control:
        control.ask(PinModel(name, is_pinned=False))


@reports_errors
def evict(name: Annotated[str, typer.Argument(help="Which model.")], endpoint: Endpoint = None) -> None:
    """Move a model's weights from memory to the disk until they are needed; returns when that is done."""
    from ..protocol.messages import EvictModel

    with connect_control(endpoint) as control:
        control.ask(EvictModel(name))


@reports_errors
def move(
    name: Annotated[str, typer.Argument(help="Which model.")],
    device: Annotated[str, typer.Argument(help="Where it shall be, such as cpu:1 or cuda:0.")],
    endpoint: Endpoint = None,
) -> None:
    """Have a model run on another device; no request waits for it. Returns when it has left the first one."""
    from ..protocol.messages import MoveModel
    from .devices import check_device

    with connect_control(endpoint) as control:
        control.ask(MoveModel(name, check_device(device)))
