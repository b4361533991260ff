"""What comes in: messages that need nothing done but to become events for the core, by who sends them."""

from __future__ import annotations

from collections.abc import Callable
from reprlib import repr as shortened
from typing import Any, Final, TypeAlias

from ...protocol import messages
from ...protocol.errors import InvalidRequest
from ...protocol.manifest import Manifest
from ..checks import check_name
from ..core import events
from ..core.weights import PART_OF, ROOM

#: Called with who it is, the message and its buffers.
_Table: TypeAlias = dict[type, Callable[[Any, Any, list[Any]], events.Event]]

_SOURCES: Final = ("frozen", "factory", "import", "path")

#: What options of a model are; those that no one knows here are for whoever builds it.
_OPTIONS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(
        (
            "method", "residency", "sharing", "workspace", "on_overflow", "collate", "split", "weights", "dtype",
            "task", "prepare",
        ),
        (str,),
    ),
    **dict.fromkeys(("grad", "cuda_graph", "warm", "adaptive", "pin", "trusted", "divide"), (bool,)),
    **dict.fromkeys(("max_batch", "max_queue", "min_workers", "max_workers", "replicas", "size_bytes"), (int,)),
    **dict.fromkeys(("share", "max_wait_ms"), (int, float)),
    "devices": (list,),
}  # fmt: skip

#: From a client, over a unix stream or ZeroMQ.
FROM_CLIENT: Final[_Table] = {
    messages.Submit: events.Submitted,
    messages.Cancel: lambda client, one, _: events.Cancelled(client, one.request, one.kill),
    messages.Continue: lambda client, one, _: events.Continued(client, one.request, one.items),
}

#: From an app or the command line, over the unix socket.
FROM_CALLER: Final[_Table] = {
    messages.UnloadModel: lambda caller, one, _: events.ModelRemoved(caller, one.name),
    messages.PinModel: lambda caller, one, _: events.ModelPinned(caller, one.name, one.is_pinned),
    messages.EvictModel: lambda caller, one, _: events.ModelEvicted(caller, one.name),
    messages.MoveModel: lambda caller, one, _: events.ModelMoved(caller, one.name, one.device),
    messages.AttachModel: lambda caller, one, _: events.ModelWanted(caller, one.name),
    messages.NeedMailbox: lambda caller, one, _: events.MailboxWanted(caller, one.size_bytes),
    messages.ReturnMailbox: lambda caller, one, _: events.MailboxReturned(caller, one.mailbox),
    messages.ExpectModel: lambda caller, one, _: events.ModelExpected(
        caller, one.name, one.devices, one.size_bytes
    ),
    messages.StopPool: lambda _, one, __: events.StopAsked(one.drain),
}

#: From a loader or worker, known by its number.
FROM_CHILD: Final[_Table] = {
    messages.Thawed: lambda child, one, _: events.SetThawed(
        child, one.weight_set, one.private_bytes, one.opaque, None
    ),
    messages.ThawFailed: lambda child, one, _: events.SetThawed(child, one.weight_set, 0, {}, one.error),
    messages.Forgot: lambda child, one, _: events.SetForgotten(child, one.weight_set, one.unmapped),
    messages.Used: lambda child, one, _: events.SlotUsed(child, one),
    messages.ExpectModel: lambda child, one, _: events.ModelExpected(child, one.name, one.devices, one.size_bytes),
    messages.ModelBuilt: lambda child, one, _: events.ModelBuilt(child, one),
    messages.BuildFailed: lambda child, one, _: events.BuildFailed(child, one.error),
    messages.Yielded: lambda child, one, buffers: events.ItemYielded(child, one.attempt, one.body, buffers),
    messages.Ran: lambda child, one, buffers: events.AttemptEnded(
        child, one.attempt, one.seconds, one.answers, buffers
    ),
}

#: From the zygote of a device.
FROM_ZYGOTE: Final[_Table] = {
    messages.ZygoteReady: lambda device, one, _: events.ZygoteReady(one.without_slots, device),
    messages.Adopted: lambda device, one, _: events.ModulesAdopted(
        one.generation, one.refused, one.threads, device
    ),
    messages.Thawed: lambda device, one, _: events.SetAdopted(
        one.weight_set, one.private_bytes, one.opaque, None, device
    ),
    messages.ThawFailed: lambda device, one, _: events.SetAdopted(one.weight_set, 0, {}, one.error, device),
}


def check_declared(load: messages.LoadModel) -> None:
    """Look whether a model can be declared.

    Raises:
        PoolError: its name or source is none, or the manifest of a frozen model does not fit its regions.
    """
    check_name("model", load.name)
    if not all(type(part) is bytes for part in load.example):
        raise InvalidRequest(f"{load.name}: its example must be the body and the buffers of a request, all bytes")
    _check_options(load)
    if load.source not in _SOURCES:
        raise InvalidRequest(f"source {load.source!r}; known are {', '.join(_SOURCES)}")
    if load.source != "frozen":
        return
    try:
        sizes_bytes = Manifest.from_wire(load.manifest).region_sizes_bytes
    except ValueError as error:
        raise InvalidRequest(f"{load.name}: {error}") from error
    if len(sizes_bytes) != len(load.regions):
        raise InvalidRequest(f"{load.name}: the manifest has {len(sizes_bytes)} regions, not {len(load.regions)}")


def _check_options(load: messages.LoadModel) -> None:
    for key, value in load.options.items():
        kinds = _OPTIONS.get(key, ())
        if kinds and type(value) not in kinds:
            named = " or ".join(kind.__name__ for kind in kinds)
            found = f"{type(value).__name__}: {shortened(value)}"
            raise InvalidRequest(f"{load.name}: {key} must be {named}, not {found}")
        if key in (ROOM, PART_OF):
            raise InvalidRequest(f"{load.name}: {key} is an option that the pool alone gives")
    if load.options.get("cuda_graph") and load.options.get("grad"):
        raise InvalidRequest(
            f"{load.name}: cuda_graph is for models without grad: calls are recorded without gradients"
        )
    for key, least in (("replicas", 1), ("size_bytes", 0)):
        if load.options.get(key, least) < least:
            raise InvalidRequest(f"{load.name}: {key} must be at least {least}, not {load.options[key]}")
    for device in load.options.get("devices", []):
        if type(device) is not str:
            raise InvalidRequest(f"{load.name}: devices must be names, not {shortened(device)}")
