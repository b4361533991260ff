"""Finding out what models take, with a small pool that never holds their weights.

::

    one worker serves `workers.dry_run`          ──► a `Found` for each model
    all import what the models do, and then serve
    `workers.stand_in`, which has no weights     ──► `Base`: what the pool's processes take

So user code runs where it always does, in loaders and workers, and what is measured is measured as ever.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...protocol.errors import LoadFailed, PoolError
from ..client import Pool
from ..control import ControlSocket
from ..model import Model
from ..sources import example_of, load_by_factory, load_by_name, plain_options
from .found import Base, Found, Part

if TYPE_CHECKING:
    from ...protocol.frozen import Frozen

#: A pool of more workers is measured with so many: what each further one takes is known then.
_MOST_WORKERS: Final = 4
#: Calls for each of them, so that every one has run.
_CALLS: Final = 4
#: How long their replacement is waited for, and how often it is looked at.
_REPLACE_S: Final = 10.0
_LOOK_S: Final = 0.02
_DRY_RUN: Final = "dry-run"
_STAND_IN: Final = "stand-in"
_ROLES: Final = ("supervisor", "zygote", "worker")


def rehearse(
    models: Mapping[str, Model], paths: Sequence[str], *, workers: int, slots: int, threads: int
) -> tuple[list[Found], Base]:
    """Return what each model takes, as far as that can be found out, and what a pool does without their weights.

    Args:
        models: by name.
        paths: where modules may lie.
        workers: how many the pool will have.
        slots: how many of them may run at once.
        threads: threads that torch uses in one run.
    """
    # Tensors that have shapes only are followed as they are taken apart, which inference mode does not let happen.
    dry_run = Model("onecopy.workers.dry_run:DryRun", workspace="private", grad=True)
    measured = min(workers, _MOST_WORKERS)
    with Pool(
        {_DRY_RUN: dry_run}, workers=measured, slots=min(slots, measured), threads=threads, name="plan"
    ) as pool:
        found = [_find(pool, name, model, list(paths)) for name, model in models.items()]
        modules = dict.fromkeys(module for one in found for module in one.modules)
        return found, _measure(pool, list(modules), list(paths), measured)


def _measure(pool: Pool, modules: list[str], paths: list[str], workers: int) -> Base:
    """Return what the processes of a pool take that have imported these modules."""
    stand_in = Model("onecopy.workers.stand_in:StandIn", kwargs={"modules": modules})
    before = {one.pid for one in pool.status().workers}
    with ControlSocket(pool.endpoint.removeprefix("ipc://")) as control:
        control.ask(load_by_name(_STAND_IN, stand_in, paths, eager=True))
    # Who lacks the modules, or did more than import them, is replaced.
    end = time.monotonic() + _REPLACE_S
    while before & {one.pid for one in pool.status().workers} and time.monotonic() < end:
        time.sleep(_LOOK_S)
    handle = pool.model(_STAND_IN)
    private_bytes = [one.result() for one in [handle.submit() for _ in range(_CALLS * workers)]]
    processes = pool.memory().processes
    worker_bytes = sum(private_bytes) // len(private_bytes)
    by_role = {role: sum(one.private_bytes for one in processes if one.role == role) for role in _ROLES}
    return Base(
        by_role["supervisor"],
        by_role["zygote"] + by_role["worker"] - workers * worker_bytes,
        worker_bytes,
        sum(one.pss_bytes - one.private_bytes for one in processes),
    )


def _find(pool: Pool, name: str, model: Model, paths: list[str]) -> Found:
    try:
        example = example_of(name, model)
        if model.kind == "object":
            found = _find_object(pool, name, model, example, paths)
        else:
            found = _find_built(pool, name, model, example, paths)
        return found._replace(inputs_bytes=sum(map(len, example[1:])))
    except PoolError as error:
        return Found(name, error=error.message)


def _find_built(pool: Pool, name: str, model: Model, example: list[Any], paths: list[str]) -> Found:
    """Return what a model takes that a loader builds."""
    if model.kind == "factory":
        load = load_by_factory(name, model, eager=False)
    else:
        load = load_by_name(name, model, paths)
    order = [name, load.source, load.options, load.manifest, load.pickled, load.paths]
    told = _ask(pool, "found", order, example)
    parts = [
        Part(size_bytes, _key(name, index, size_bytes, key, is_file=is_file), is_file)
        for index, (size_bytes, key, is_file) in enumerate(told.pop("regions"))
    ]
    return Found(name, tuple(parts), options=load.options, **told)


def _find_object(pool: Pool, name: str, model: Model, example: list[Any], paths: list[str]) -> Found:
    """Return what an object of this process takes; it stays as it is, and where it is."""
    from ...protocol.contents import OpenFiles
    from ...protocol.frozen import FreezeError, freeze

    try:
        frozen = freeze(model.source)
    except FreezeError as error:
        raise LoadFailed(f"{name}: {error}") from error
    with OpenFiles() as files:
        fillings = frozen.fillings(files)
        digests = [
            one.digest() if model.sharing == "shared" else b"" for one in fillings if not isinstance(one, str)
        ]
    sizes_bytes = frozen.manifest.region_sizes_bytes
    parts = [
        Part(size_bytes, _key(name, index, size_bytes, digest, is_file=False), is_file=False)
        for index, (size_bytes, digest) in enumerate(zip(sizes_bytes, digests, strict=True))
    ]
    options, manifest = plain_options(model), frozen.manifest.to_wire()
    order = [name, options, manifest, frozen.skeleton, list(frozen.modules), paths]
    told = _ask(pool, "found_frozen", order, example, [])
    if told["how"] == "none" and (example or told["private_bytes"] is None):
        with _copied(frozen) as copies:
            told = _ask(pool, "found_frozen", order, example, copies)
    notes = ["prepare was not run: it could change the object of this process"] if model.prepare else []
    return Found(
        name, tuple(parts), manifest, options, skeleton_bytes=len(frozen.skeleton), modules=frozen.modules,
        notes=notes, **told,
    )  # fmt: skip


def _ask(pool: Pool, method: str, *args: Any) -> dict[str, Any]:
    """Call the dry run, always in the one worker that has imported what that needs."""
    return pool.model(_DRY_RUN, method=method, session="plan").submit(*args).result()


@contextlib.contextmanager
def _copied(frozen: Frozen) -> Generator[list[str]]:
    """Yield where regions can be opened that hold a copy of an object's memory."""
    from ...protocol.contents import OpenFiles

    with OpenFiles() as files, contextlib.ExitStack() as closing:
        paths: list[str] = []
        for filling in frozen.fillings(files):
            assert not isinstance(filling, str)  # an object of the app stays in no file
            fd = os.memfd_create("onecopy-rehearsed", os.MFD_CLOEXEC)
            closing.callback(os.close, fd)
            os.ftruncate(fd, filling.size_bytes)
            filling.write(fd)
            paths.append(f"/proc/{os.getpid()}/fd/{fd}")
        yield paths


def _key(name: str, index: int, size_bytes: int, key: bytes, *, is_file: bool) -> tuple[Any, ...]:
    """Return what tells a region's content; one that is not to be shared has one of its own."""
    if is_file:
        return "file", key
    return (size_bytes, key) if key else ("private", name, index)
