"""A model of the pool in this process: the module itself, on the regions that the workers use."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Generator
from typing import Any

from ..protocol.errors import LoadFailed
from ..protocol.gpu import begin
from ..protocol.manifest import Manifest
from ..protocol.regions import closing, map_regions, settle_on
from .control import ControlSocket


def attach(name: str, control: ControlSocket) -> Any:
    """Thaw a model here.

    Args:
        name: the model.
        control: to the supervisor; the lease. It is closed when the model's memory is not used any more.

    Raises:
        ModelNotFound: no model has this name.
        LoadFailed: it cannot be loaded, or not be thawed in this process.
    """
    from ..protocol.frozen import thaw

    try:
        attached, fds = control.attach(name)
        with closing(fds):
            gpu = begin(attached.gpu)
            manifest = Manifest.from_wire(attached.manifest)
            mappings = map_regions(fds, manifest, gpu)
        with _also_in(attached.paths):
            model = thaw(attached.skeleton, manifest, mappings)
        if gpu is not None:
            settle_on(gpu, model)
    except (ImportError, AttributeError) as error:
        control.close()
        raise LoadFailed(f"{name} cannot be thawed in this process: {type(error).__name__}: {error}") from error
    except BaseException:
        control.close()
        raise
    _close_with(mappings, control)
    return model


def _close_with(mappings: list[Any], control: ControlSocket) -> None:
    """Close the lease when the last mapping is gone; a model without memory has none, and needs no lease."""
    left = len(mappings)

    def unmapped() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            control.close()

    for mapping in mappings:
        weakref.finalize(mapping, unmapped).atexit = False
    if not mappings:
        control.close()


@contextlib.contextmanager
def _also_in(paths: list[str]) -> Generator[None]:
    """Let modules be found where the app that loaded the model finds them, for as long as it takes."""
    added = [path for path in paths if path not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for path in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(path)
