"""Weights that become of another dtype on their way to a GPU, which casts them in no time.

::

    file or memory ──► pinned buffer ──► GPU: of the dtype they have ──cast──► region: of the dtype they shall have

In the module a tensor of the new dtype takes the place of the old one before anything is cast: a *stand-in*, whose
memory is never there. Whoever touches it ends the process, rather than compute with what is not a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from typing import cast as typed

from .contents import Content, OpenFiles, contents_of
from .mapping import reserved, storage_in
from .pieces import Piece

if TYPE_CHECKING:
    import torch


class Casts:
    """The tensors that are still to be cast, by the addresses of those that stand in for them."""

    def __init__(self) -> None:
        self._sources: dict[int, tuple[torch.Tensor, torch.dtype]] = {}

    def __bool__(self) -> bool:
        return bool(self._sources)

    def stand_in(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of this dtype, and of the same shape and strides, whose memory must not be touched.

        Args:
            tensor: contiguous, with memory.
            dtype: what it is to become.
        """
        import torch

        size_bytes = tensor.numel() * dtype.itemsize
        storage = storage_in(reserved(size_bytes), 0, size_bytes)
        self._sources[storage.data_ptr()] = tensor.detach(), dtype  # a parameter will have other data
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, tensor.shape, tensor.stride())

    def contents_of(self, pieces: Sequence[Piece], files: OpenFiles) -> list[Content]:
        """Return the contents of pieces, some of which are stand-ins, in their order.

        Args:
            pieces: the memory.
            files: opens the files that it, or what stand-ins stand for, is mapped from.
        """
        cast = {
            index: self._sources[one.address] for index, one in enumerate(pieces) if one.address in self._sources
        }
        contents = contents_of(pieces, files, [_piece_of(source) for source, _ in cast.values()])
        own, sources = contents[: len(pieces)], contents[len(pieces) :]
        for (index, (tensor, dtype)), source in zip(cast.items(), sources, strict=True):
            own[index] = CastContent(pieces[index], source, files, tensor.dtype, dtype)
        return own


class CastContent(Content):
    """The bytes of a stand-in: those of another content, cast.

    Args:
        piece: of the stand-in.
        source: what is cast.
        files: as in `Content`.
        given, wanted: from which dtype to which.
    """

    def __init__(
        self, piece: Piece, source: Content, files: OpenFiles, given: torch.dtype, wanted: torch.dtype
    ) -> None:
        super().__init__(piece, None, files, is_alone=False)
        self.source = source
        self._given = given
        self._wanted = wanted

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes, cast by the processor; each chunk is valid until the next is asked for."""
        import torch

        for chunk in self.source.chunks():
            yield memoryview(typed("Any", self.cast(torch.frombuffer(chunk, dtype=torch.uint8)).numpy()))

    def cast(self, part: torch.Tensor) -> torch.Tensor:
        """Return bytes of the source, cast, where they are: a whole number of its items."""
        import torch

        return part.view(self._given).to(self._wanted).view(torch.uint8)

    def place_of(self, source_bytes: int) -> int:
        """Return where something goes that lies so far from the beginning of the source."""
        return source_bytes // self._given.itemsize * self._wanted.itemsize

    def release(self) -> None:
        """Let the system forget what of the source it had not cached before; see `Content.release`."""
        self.source.release()


def _piece_of(tensor: torch.Tensor) -> Piece:
    piece = Piece(tensor.data_ptr(), tensor.nbytes)
    storage = tensor.untyped_storage()
    piece.storages[storage._cdata] = storage
    return piece
