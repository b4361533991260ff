"""Finds where in an object the part lies that could not be frozen: ``model.encoder.lock``.

A pickler fails deep inside and says only what kind of thing it stumbled over. Users need to know which
attribute of which object of theirs that was. The search is breadth-first, so the path found is a shortest
one, and it is best effort: objects that exist only while something is pickled have no path.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, cast

MAX_VISITED = 1_000_000
"""A vocabulary has some 100,000 entries; what is behind more than this is not worth waiting for."""

_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), types.ModuleType, types.CodeType)


def path_to(part: object, root: object, name: str) -> str | None:
    """Find a shortest attribute path from an object to a part of it.

    Args:
        part: what to look for, by identity.
        root: where to begin.
        name: what the path calls `root`.

    Returns:
        Such as ``model.layers[3].lock``; None where `part` was not found.
    """
    seen = {id(root)}
    queue: deque[tuple[str, object]] = deque([(name, root)])
    while queue and len(seen) < MAX_VISITED:
        path, parent = queue.popleft()
        if parent is part:
            return path
        for step, child in _children(parent):
            if id(child) not in seen and not isinstance(child, _LEAVES):
                seen.add(id(child))
                queue.append((path + step, child))
    return None


def _children(parent: object) -> Iterator[tuple[str, object]]:
    """Yield what an object refers to, each with the step that leads there in Python's own notation."""
    if isinstance(parent, dict):
        yield from ((f"[{key!r}]", value) for key, value in _copy(parent).items())
    elif isinstance(parent, list | tuple | deque):
        yield from ((f"[{index}]", value) for index, value in enumerate(tuple(cast("list[object]", parent))))
    elif isinstance(parent, set | frozenset):
        yield from (("{...}", value) for value in tuple(cast("set[object]", parent)))
    elif isinstance(parent, types.FunctionType):
        yield from _captured(parent)
    elif isinstance(parent, types.MethodType):
        yield from ((".__self__", parent.__self__), (".__func__", parent.__func__))
    if type(parent).__module__ == "functools" and hasattr(parent, "func"):
        partial: Any = parent
        yield from ((".func", partial.func), (".args", partial.args), (".keywords", partial.keywords))
    if isinstance(parent, type):
        # A class of the user's own notebook travels with its attributes; nobody means those of a library.
        if parent.__module__ == "__main__":
            yield from _attributes(vars(parent))
    else:
        yield from _attributes(getattr(parent, "__dict__", {}))
        yield from _slots(parent)


def _attributes(attributes: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield attributes; those that a torch module files away by kind are named as its user names them."""
    for key, value in _copy(attributes).items():
        if key in ("_modules", "_parameters", "_buffers") and isinstance(value, dict):
            filed = cast("dict[str, object]", value)
            yield from ((f"[{k}]" if k.isdigit() else f".{k}", v) for k, v in _copy(filed).items())
        yield f".{key}", value


def _slots(parent: object) -> Iterator[tuple[str, object]]:
    classes = type(parent).__mro__
    for key in chain.from_iterable(_names(vars(cls).get("__slots__", ())) for cls in classes):
        value = getattr(parent, key, None)
        if value is not None:
            yield f".{key}", value


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _captured(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield what a function takes along when it is pickled by value: closure, globals it names, defaults."""
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".<closure {key}>", cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
    if function.__module__ == "__main__":
        namespace = function.__globals__
        yield from ((f".<global {k}>", namespace[k]) for k in function.__code__.co_names if k in namespace)
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__


def _copy(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """Another thread may add to a live dict while it is walked."""
    return dict(mapping)
