"""A model that torch compiled ahead of time (AOTInductor), with constants that can be shared.

What torch's compiler makes is a library. It holds the code and, as a rule, all weights as well, and whoever loads
it copies them into memory of its own. Here a library travels without them, and takes them from the one copy::

    library ── segments ──► memfd ──► dlopen ──► runner ◄── update_constant_buffer ── constants
               (holes where its constants were)                                      (in regions)

Torch's own loader unpacks a package into a folder under ``/tmp``, which stays when the process is killed; a memfd
never does. Two things of such a library cannot be undone in a process: it is never unloaded, and torch keeps the
constants that it was given for ever. So a worker that forgets such a model is replaced by a new one.
"""

from __future__ import annotations

import importlib
import itertools
import mmap
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from ..protocol.errors import LoadFailed
from . import heap

if TYPE_CHECKING:
    import torch

PAGE_BYTES: Final = mmap.PAGESIZE

#: A library that was loaded once by some name would be found again by that name, whatever is there now.
_loads: Final = itertools.count(1)


class Segment(NamedTuple):
    """Bytes of a library."""

    offset_bytes: int
    content: torch.Tensor


class Library(NamedTuple):
    """A library without the pages of its constants.

    Attributes:
        size_bytes: of the whole file.
        segments: what is in it, in order; between them are holes.
        operators: what torch is to be told of operators that the code calls back for; empty if of none.
        modules: what registers those of them that are written in Python.
    """

    size_bytes: int
    segments: list[Segment]
    operators: bytes
    modules: list[str]


class CompiledModel:
    """A compiled program that can be called.

    Args:
        library: its code.
        constants: its weights, by the names they had in the model; those of torch's own, too.

    Raises:
        LoadFailed: the library cannot be loaded.
    """

    # Without a `__dict__`: what holds its weights for itself is looked for there, and the runner does not.
    __slots__ = ("_constants", "_in_spec", "_library", "_out_spec", "_runner")

    def __init__(self, library: Library, constants: Mapping[str, torch.Tensor]) -> None:
        from torch.utils import _pytree

        self._library = library
        self._constants = dict(constants)
        self._runner = _run_with(library, self._constants)
        self._in_spec, self._out_spec = map(_pytree.treespec_loads, self._runner.get_call_spec())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        What is no tensor is as it was when the program was compiled. Torch checks how many tensors there are.
        """
        import torch
        from torch.export._tree_utils import reorder_kwargs
        from torch.utils import _pytree

        leaves = _pytree.tree_leaves((args, reorder_kwargs(kwargs, self._in_spec)))
        outputs = self._runner.run([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        return _pytree.tree_unflatten(outputs, self._out_spec)

    def __getstate__(self) -> tuple[Library, dict[str, torch.Tensor]]:
        return self._library, self._constants

    def __setstate__(self, state: tuple[Library, dict[str, torch.Tensor]]) -> None:
        self.__init__(*state)


def open_library(fd: int, operators: bytes = b"") -> Any:
    """Load the library that a file descriptor leads to, which may be closed then; return its runner.

    Raises:
        LoadFailed: torch cannot load it.
    """
    from torch._C._aoti import AOTIModelContainerRunnerCpu

    with _named(fd, operators) as path:
        try:
            return AOTIModelContainerRunnerCpu(path, 1)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise LoadFailed(
                f"torch cannot load the compiled library: {reason}. Compile it with the torch and on the kind of "
                "machine that run it; where it calls operators of yours, load it in a factory that registers them"
            ) from error


def _run_with(library: Library, constants: Mapping[str, torch.Tensor]) -> Any:
    """Load a library, and let it compute with constants that lie elsewhere."""
    for name in library.modules:
        importlib.import_module(name)
    fd = os.memfd_create("compiled", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, library.size_bytes)
        for offset_bytes, content in library.segments:
            _write(fd, offset_bytes, memoryview(cast("Any", content.numpy())))
        runner = open_library(fd, library.operators)
        by_name = {
            name: constants[of_model]
            for name, of_model in runner.get_constant_names_to_original_fqns().items()
            if of_model in constants
        }
        # Beside the constants that it has made from its holes: so these can be freed.
        runner.update_constant_buffer(by_name, use_inactive=True, validate_full_updates=True, user_managed=True)
        runner.swap_constant_buffer()
        runner.free_inactive_constant_buffer()
        _empty_holes(fd, library)
    finally:
        os.close(fd)
    heap.trim()
    return runner


def _write(fd: int, offset_bytes: int, content: memoryview) -> None:
    while content:
        written_bytes = os.pwrite(fd, content, offset_bytes)
        offset_bytes, content = offset_bytes + written_bytes, content[written_bytes:]


def _empty_holes(fd: int, library: Library) -> None:
    """Give back the pages of the holes: they came when they were read."""
    with mmap.mmap(fd, library.size_bytes) as shared:
        end = 0
        for offset_bytes, content in library.segments:
            if end < offset_bytes:
                shared.madvise(mmap.MADV_REMOVE, end, offset_bytes - end)
            end = offset_bytes + len(content)


@contextmanager
def _named(fd: int, operators: bytes) -> Generator[str]:
    """Give a library a name that none had before, and what torch looks for beside it."""
    if not operators:
        yield f"/proc/self/fd{'/' * next(_loads)}{fd}"
        return
    with tempfile.TemporaryDirectory(prefix="onecopy-") as folder:
        path = os.path.join(folder, "library.so")
        os.symlink(f"/proc/self/fd/{fd}", path)
        with open(os.path.join(folder, "library.json"), "wb") as file:
            file.write(operators)
        yield path
