"""What of a model cannot be shared: weights that lie outside of torch's storages, and what a worker pays.

A freeze shares storages, whatever the tensors over them mean: int8, packed nibbles, scales and zero points.
What keeps its weights to itself instead is made anew by each worker that thaws it:

::

    Int8Tensor ── qdata, scale ────────────► storages    one copy
    Linear ── _packed_params: ScriptObject ► its own     one in each worker, named here

Everything is found by its type, and a type by its name where that of a package would have to be imported. The
search looks at attributes and at plain containers that hold few things; it runs no code of the model.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    import torch

MAX_ITEMS: Final = 256
"""A container of more things is a vocabulary, not a list of layers; its first ones tell."""

MAX_DEPTH: Final = 3
"""How many objects and containers that are no modules may lie in each other; modules go as deep as they do."""

MAX_OUTLYING: Final = 3_000
"""So many things are looked at, nearest first, that are no module's own: weights may be there, but seldom are."""

FOLDED_BYTES: Final = 1024
"""A program that has less than this folded into it has constants there, not weights."""

_ITSELF: Final = "(the model itself)"
_LEAVES: Final = frozenset({str, bytes, bytearray, bool, int, float, complex, type(None), type, type(sys)})

_NOTHING: Final[Mapping[str, Any]] = {}
_OF_TORCH: Final = frozenset({
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
    "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_c", "_concrete_type",
})  # fmt: skip
"""What every module has; but for the first three, looked at first, no weights are there."""

# One place to look at: its path, what is there, and how many things that are no modules lead to it.
_Place = tuple[str, Any, int]


def opaque_parts(model: object) -> dict[str, str]:
    """Find the parts of a model whose weights lie outside of torch's storages.

    Each worker has these for itself. This never raises: what cannot be looked at is passed over.

    Args:
        model: a thawed or built model, of any type.

    Returns:
        Why, by the dotted path of the module or attribute, such as ``encoder.0._packed_params``; empty where
        everything is shared.
    """
    if "torch" not in sys.modules:
        return {}
    found: dict[str, str] = {}
    # What was seen is held: some of it exists only while it is looked at, and its `id` would come again.
    seen: dict[int, object] = {id(model): model}
    outlying = 0
    queue: deque[_Place] = deque([("", model, 0)])
    while queue:
        path, part, depth = queue.popleft()
        # Classes of users may fail in any way when they are looked at.
        with contextlib.suppress(Exception):
            reason = _reason(part)
            if reason is not None:
                found[path or _ITSELF] = reason
            for step, child, child_depth in _children(part, depth):
                if type(child) in _LEAVES or id(child) in seen:
                    continue
                outlying += child_depth > 1
                if child_depth > 1 and outlying > MAX_OUTLYING:
                    break  # what follows is as far away
                seen[id(child)] = child
                queue.append((_joined(path, step), child, child_depth))
    return found


def _reason(part: Any) -> str | None:
    """Say why the memory of one part is not a storage; None where it is, or where it is its children's."""
    import torch

    kinds = type(part).__mro__
    if torch.Tensor in kinds:
        return _reason_of_tensor(part)
    if torch.ScriptObject in kinds:
        return f"{_class_name(part)}, an object in C++ that packs its weights for itself"
    if torch.jit.ScriptModule in kinds or torch.jit.ScriptFunction in kinds:
        return _reason_of_script(part)
    if torch.nn.Module not in kinds and _is_package(kinds):
        return "a compiled package, which loads its weights for itself"
    return None


def _is_package(kinds: tuple[type, ...]) -> bool:
    """Whether this is what torch's ahead-of-time compiler made, or what loads that."""
    return any(kind.__name__.startswith("AOTI") and kind.__module__.startswith("torch.") for kind in kinds)


def _reason_of_tensor(tensor: torch.Tensor) -> str | None:
    import torch

    with torch._C.DisableTorchFunctionSubclass():
        if tensor.layout is not torch._mkldnn:  # type: ignore[attr-defined]
            return None
        size_bytes = tensor.numel() * tensor.element_size()
    return f"a tensor of {size_bytes:,} bytes in the layout of oneDNN, which is not a storage"


def _reason_of_script(script: Any) -> str | None:
    """Say what TorchScript folded into one program; what a module of it has as parameters are storages."""
    folded_bytes, classes = 0, dict[str, None]()
    for node in _constants(script):
        kind = node.kindOf("value") if node.hasAttribute("value") else None
        if kind == "t":
            constant = node.t("value")
            folded_bytes += constant.numel() * constant.element_size()
        elif kind == "ival" and ".torch.classes." in (name := str(node.output().type())):
            classes.setdefault(name.rpartition(".")[2])
    reasons = list(classes)
    if folded_bytes >= FOLDED_BYTES:
        reasons.insert(0, f"{folded_bytes:,} bytes of tensors")
    return f"TorchScript with constants in its program: {', '.join(reasons)}" if reasons else None


def _constants(script: Any) -> Iterator[Any]:
    try:
        graph = script.graph
    except (AttributeError, RuntimeError):  # it has no `forward`
        return
    for kind in ("prim::Constant", "prim::ConstantMKLDNNTensor"):
        yield from graph.findAllNodes(kind)


def _class_name(part: torch.ScriptObject) -> str:
    name: str = cast("Any", part)._type().qualified_name()
    return name.removeprefix("__torch__.torch.classes.")


def _children(part: Any, depth: int) -> Iterator[_Place]:
    """Yield what a part refers to, each with the step that leads there and how deep it lies.

    Methods of the classes themselves are called, not those that a class of a user puts in their place.
    """
    import torch

    kinds = type(part).__mro__
    if torch.nn.Module in kinds:
        yield from _children_of_module(part)
        return
    if depth >= MAX_DEPTH or type(part) in (torch.Tensor, torch.nn.Parameter) or _is_package(kinds):
        return
    if dict in kinds:
        items = islice(dict.items(part), MAX_ITEMS)
        yield from ((str(key), child, depth + 1) for key, child in items if type(key) in (str, int))
    elif list in kinds or tuple in kinds:
        things = list.__iter__(part) if list in kinds else tuple.__iter__(part)
        yield from ((str(index), child, depth + 1) for index, child in enumerate(islice(things, MAX_ITEMS)))
    # Tensors of a class of their own have inner ones; anything else may hold a module.
    with contextlib.suppress(AttributeError):
        attributes = object.__getattribute__(part, "__dict__")
        yield from ((name, child, depth + 1) for name, child in dict.items(attributes))


def _children_of_module(module: torch.nn.Module) -> Iterator[_Place]:
    attributes: dict[str, Any] = object.__getattribute__(module, "__dict__")
    for files in ("_parameters", "_buffers", "_modules"):
        # Those of TorchScript are no dicts, but have their methods.
        yield from ((name, child, 0) for name, child in attributes.get(files, _NOTHING).items())
    yield from ((name, child, 1) for name, child in attributes.items() if name not in _OF_TORCH)
    if "_concrete_type" in attributes:
        yield from _attributes_of_script(module)


def _attributes_of_script(module: Any) -> Iterator[_Place]:
    """Yield the objects in C++ of a scripted module: its attributes are not in its `__dict__`."""
    for name, (kind, _) in module._concrete_type.get_attributes().items():
        if ".torch.classes." in str(kind):
            yield name, module._c.getattr(name), 1


def _joined(path: str, step: str) -> str:
    if step == "_actual_script_module":  # stands for the module that has it
        return path
    return f"{path}.{step}" if path else step
