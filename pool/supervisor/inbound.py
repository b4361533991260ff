"""Messages that need nothing done but to become events for the core, by who sends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ...protocol import messages
from ..core import events

_Table: TypeAlias = dict[type, Callable[[Any, Any], events.Event]]

#: From an app or the command line, over the unix socket; called with who it is.
FROM_CALLER: Final[_Table] = {
    messages.UnloadModel: lambda caller, one: events.ModelRemoved(caller, one.name),
    messages.AttachModel: lambda caller, one: events.ModelWanted(caller, one.name),
    messages.NeedMailbox: lambda caller, one: events.MailboxWanted(caller, one.size_bytes),
    messages.ReturnMailbox: lambda caller, one: events.MailboxReturned(caller, one.mailbox),
    messages.StopPool: lambda _, one: events.StopAsked(one.drain),
}

#: From a loader or worker; called with its number.
FROM_CHILD: Final[_Table] = {
    messages.Thawed: lambda child, one: events.SetThawed(
        child, one.weight_set, one.private_bytes, one.opaque, None
    ),
    messages.Forgot: lambda child, one: events.SetForgotten(child, one.weight_set, one.unmapped),
    messages.Used: lambda child, one: events.SlotUsed(child, one),
    messages.ModelBuilt: lambda child, one: events.ModelBuilt(child, one),
    messages.BuildFailed: lambda child, one: events.BuildFailed(child, one.error),
}

#: From the zygote.
FROM_ZYGOTE: Final[_Table] = {
    messages.ZygoteReady: lambda _, one: events.ZygoteReady(one.without_slots),
    messages.Adopted: lambda _, one: events.ModulesAdopted(one.generation, one.refused, one.threads),
    messages.Thawed: lambda _, one: events.SetAdopted(one.weight_set, one.private_bytes, one.opaque, None),
    messages.ThawFailed: lambda _, one: events.SetAdopted(one.weight_set, 0, {}, one.error),
}
