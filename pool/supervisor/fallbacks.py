"""What a pool does in a second-best way now, and why: nothing of that may be silent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..core.core import Core
from ..core.devices import Devices
from ..core.mailboxes import Mailboxes
from ..core.weights import WeightSet

#: Parts of a model that are named before the others are only counted.
_NAMED_PARTS: Final = 3


def fallbacks_of(devices: Devices) -> list[str]:
    """Return a sentence for each, on all devices; equal ones once."""
    texts = [text for core in devices.cores for text in _on(core)]
    return list(dict.fromkeys([*texts, *_of_mailboxes(devices.host.mailboxes)]))


def _on(core: Core) -> Iterator[str]:
    sets = core.library.holdings.sets
    for module, why in core.fleet.zygote.refused.items():
        yield f"{module}: {why}"
    for number, why in core.library.warming.refused.items():
        yield f"{sets[number].load.name}: {why}"
    if core.workspace.without:
        yield f"slots: runs take private memory: {core.workspace.without}"
    for ring in core.workspace.rings.values():
        if ring.refusal:
            yield f"workspace {ring.name}: runs take private memory where slots do not suffice: {ring.refusal}"
    for version in sets.values():
        for text in _of_model(core, version):
            yield f"{version.load.name}: {text}"


def _of_model(core: Core, version: WeightSet) -> Iterator[str]:
    yield from version.notes
    if version.number in core.workspace.stateful:
        yield "it runs outside of slots, because it keeps tensors between its runs"
    if version.load.options.get("cuda_graph") and not core.is_gpu:
        yield "its calls are not recorded: CUDA graphs are for models on a GPU"
    if version.stays_because:
        yield f"it is not evicted: {version.stays_because}"
    if version.rebuilt_because:
        yield f"it is built anew after each eviction: {version.rebuilt_because}"
    if version.opaque:
        named = ", ".join(list(version.opaque)[:_NAMED_PARTS])
        more = len(version.opaque) - _NAMED_PARTS
        reasons = "; ".join(dict.fromkeys(version.opaque.values()))
        yield f"private to each worker are {named}{f' and {more} more' if more > 0 else ''}: {reasons}"


def _of_mailboxes(mailboxes: Mailboxes) -> Iterator[str]:
    if mailboxes.refused and mailboxes.budget.client_bytes:
        yield f"mailboxes: {mailboxes.refused:,} were refused, and large arrays travelled through sockets instead"
