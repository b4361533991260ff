"""What a model would take, found out without loading it: run by a worker of a pool that serves nobody.

::

    found("m", order, example)
        1. a loader builds it in a fork ──► sizes and contents of its regions, what the loader itself takes
        2. a fork thaws it on blank memory ──► what a worker would have of its own
           and runs the example on shapes ──► activations, floating-point operations
        3. only if that fails: once more with its weights, and the run is made

Each step is a fork of its own, so that no two models, and no two attempts, are in memory at once. Only modules
stay, as they do in a zygote: forks find them imported.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..protocol.errors import PoolError
from ..protocol.manifest import Manifest
from ..protocol.messages import BuildModel, Thaw, Thawed
from ..protocol.values import decode
from .arena import Arena
from .fake_run import Recorder, fake_mode, lay_out, run_fake
from .held import HeldModel, threads
from .paths import extend_path
from .rehearsed_load import RehearsedLoad, rehearse_load
from .replay import blank_slot, in_slot, need_of
from .throwaway import Fork

#: What a call is given: the body and the buffers of ``[args, kwargs]``; empty: there is no example.
Example = Sequence[bytes]


class Frozen(NamedTuple):
    """A model as a worker gets it; fields as in `Thaw`."""

    name: str
    options: Mapping[str, Any]
    manifest: list[Any]
    skeleton: bytes
    modules: Sequence[str]
    paths: Sequence[str]
    recipe: list[Any]


class DryRun:
    """The model that such a worker has; what its methods return is plain."""

    def found(self, order: Sequence[Any], example: Example) -> dict[str, Any]:
        """Return what a model takes that a loader builds.

        Args:
            order: the fields of `BuildModel`.
            example: what it is run with.

        Raises:
            PoolError: it cannot be built.
        """
        build = BuildModel(*order)
        load = rehearse_load(build)
        frozen = _frozen(build, load)
        found = _measured(frozen, example, lambda: rehearse_load(build, keep=True).fds())
        regions = [load.regions[number] for number in load.built.regions]
        return found | {
            "regions": [[one.size_bytes, one.key, one.is_file] for one in regions],
            "manifest": load.built.manifest,
            "skeleton_bytes": len(load.built.skeleton),
            "modules": load.built.modules,
            "notes": load.built.notes,
            "loading_bytes": load.grown_bytes,
        }

    def found_frozen(self, parts: Sequence[Any], example: Example, regions: Sequence[str]) -> dict[str, Any]:
        """Return what a model takes besides its regions that an app has frozen.

        Args:
            parts: name, options, manifest, skeleton, modules and paths.
            example: what it is run with.
            regions: where its regions can be opened; empty: nowhere, so that it cannot be run for real.
        """
        frozen = Frozen(*parts, recipe=[])
        opened = (lambda: [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in regions]) if regions else None
        return _measured(frozen, example, opened)


def _frozen(build: BuildModel, load: RehearsedLoad) -> Frozen:
    built = load.built
    recipe = [build.source, build.manifest, build.pickled] if built.rebuild else []
    return Frozen(build.name, build.options, built.manifest, built.skeleton, built.modules, build.paths, recipe)


def _measured(frozen: Frozen, example: Example, weights: Callable[[], list[int]] | None) -> dict[str, Any]:
    """Return what a worker would take; ``weights`` returns the descriptors of filled regions."""
    _adopt(frozen)
    found: dict[str, Any] = {"private_bytes": None, "need_bytes": None, "how": "none", "reason": ""}
    try:
        found |= Fork(lambda: _on_shapes(frozen, example), frozen.name).outcome().value
    except PoolError as error:
        found["reason"] = error.message
    if found["how"] == "none" and weights is not None and (example or found["private_bytes"] is None):
        found |= _for_real(frozen, example, weights)
    return found


def _adopt(frozen: Frozen) -> None:
    """Import the modules of a model here, if a fork that tries it has one thread then; else this must not fork."""
    fake_mode()  # with the first one torch imports what they need, which takes seconds
    extend_path(list(frozen.paths))
    with contextlib.suppress(PoolError):
        if Fork(lambda: _import(frozen.modules), frozen.name).outcome().value == 1:
            _import(frozen.modules)


def _import(names: Sequence[str]) -> int:
    """Import modules, but for those that cannot be; return how many threads there are then."""
    for name in names:
        with contextlib.suppress(Exception):  # the thaw will tell
            importlib.import_module(name)
    return threads()


def _for_real(frozen: Frozen, example: Example, weights: Callable[[], list[int]]) -> dict[str, Any]:
    fds: list[int] = []
    try:
        fds = weights()
        return Fork(lambda: _on_weights(frozen, example, fds), frozen.name).outcome().value
    except PoolError as error:
        return {"reason": error.message}
    finally:
        for fd in fds:
            os.close(fd)


def _on_shapes(frozen: Frozen, example: Example) -> dict[str, Any]:
    manifest = Manifest.from_wire(frozen.manifest)
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # what cannot run on shapes is tried in another way
    held, found = _thawed(frozen, [_blank(size_bytes) for size_bytes in manifest.region_sizes_bytes])
    if not example:
        return found
    args, kwargs = decode(example[0], example[1:])
    function = held.method(frozen.options.get("method", "__call__"))
    try:
        run = run_fake(function, args, kwargs, inputs_bytes=list(map(len, example[1:])), grad=held.grad)
    except Exception as error:  # noqa: BLE001 - the model's own, or torch's: both are found out by a real run
        reason = str(error).strip().split("\n", 1)[0]
        return found | {"reason": f"{type(error).__name__}: {reason}" if reason else type(error).__name__}
    need = need_of(run.events)
    return found | {
        "how": "shapes",
        "need_bytes": need.footprint_bytes,
        "flops": run.flops,
        "touched_bytes": run.touched_bytes,
    }


def _on_weights(frozen: Frozen, example: Example, fds: list[int]) -> dict[str, Any]:
    held, found = _thawed(frozen, list(map(os.dup, fds)))
    function = held.method(frozen.options.get("method", "__call__"))

    def run() -> None:
        # As a worker does: what is large is copied in, results are laid out.
        copies = [torch.frombuffer(bytearray(one), dtype=torch.uint8).clone().numpy().data for one in example[1:]]
        args, kwargs = decode(example[0], copies)
        with torch.enable_grad() if held.grad else torch.inference_mode():
            result = function(*args, **kwargs)
            lay_out(result)

    arena = Arena.preloaded()
    if not example or arena is None:
        return found
    slot = blank_slot(arena)
    usages = [in_slot(slot, run)[1] for _ in range(2)]  # the first may build what stays
    with Recorder() as recorder:
        run()
    return found | {
        "how": "run",
        "need_bytes": max(one.footprint_bytes for one in usages),
        "flops": recorder.flops,
        "touched_bytes": recorder.touched_bytes,
    }


def _thawed(frozen: Frozen, fds: list[int]) -> tuple[HeldModel, dict[str, Any]]:
    """Thaw a model as a worker would that was forked by a zygote with its modules; the descriptors are closed.

    Raises:
        LoadFailed: it cannot be thawed.
    """
    _import(frozen.modules)
    order = Thaw(
        0, frozen.name, dict(frozen.options), frozen.manifest, frozen.skeleton, list(frozen.paths), frozen.recipe,
        eager=True,
    )  # fmt: skip
    told: list[Thawed] = []
    held = HeldModel(order, fds, told.append)
    held.model()
    return held, {"private_bytes": told[0].private_bytes, "opaque": dict(told[0].opaque)}


def _blank(size_bytes: int) -> int:
    """Return a region in which nobody has written; only what is read of it becomes memory."""
    fd = os.memfd_create("onecopy-rehearsed", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    return fd
