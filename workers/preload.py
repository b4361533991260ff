"""Whether this process, and those that it forks, can run in slots: the allocator must be preloaded, and work."""

from __future__ import annotations

import os

from .arena import Arena, built


def forget_preload() -> None:
    """Take the allocator out of the environment: it is loaded, and programs that a model starts need it not."""
    path = built().path
    preloaded = os.environ.get("LD_PRELOAD", "")
    if path is None or not preloaded.startswith(path):
        return
    theirs = preloaded.removeprefix(path).lstrip(": ")
    if theirs:
        os.environ["LD_PRELOAD"] = theirs
    else:
        del os.environ["LD_PRELOAD"]


def without_slots() -> str:
    """Return why this process cannot run in slots; empty if it can. Tries it with a tensor."""
    arena = Arena.preloaded()
    if arena is not None:
        return arena.probe() or ""
    return built().reason or "the allocator was not preloaded"
