"""Where the storages of a frozen object lie: which region, at what offset, how large, what for.

The manifest says everything about the memory of a weight set and nothing about the object; the skeleton is
the other half. It is plain numbers, so the supervisor can reserve, account and hand out regions without
importing torch, and it travels as nested lists. In the memory of a GPU blobs begin at 32 MiB, packs are aligned to
512 bytes, and sizes are whole grains of the driver; what of a set is not for the GPU lies beside it, as below.

::

    pack   ┌──────────────┬────┬─┬─┬──────────────────┬──┐   all storages below 1 MiB, in whole pages;
           │ storage 0    │ 2  │3│5│ (to the page) 6  │7 │   64-byte alignment, 4096 for a page or more
           └──────────────┴────┴─┴─┴──────────────────┴──┘
    blob   ┌────────────────────────────────────────┐        each larger storage alone, so that it can be
           │ storage 1                              │        shared with whoever has the same content
           └────────────────────────────────────────┘
    file   ┌────────┬─────────────┬─────────────────┐        a weights file itself, mapped as it is
           │ header │ storage 4   │ ...             │
           └────────┴─────────────┴─────────────────┘

An empty storage owns no memory: it has no entry, and an object without memory has no region.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast, get_args

from .limits import MAX_STORAGES

Role = Literal["parameter", "mutable"]
"""`parameter`: reached through an ``nn.Parameter``, which inference only reads; `mutable`: anything else."""

ALIGNMENT_BYTES = 64
"""Kernels give other bits on other alignments; torch's own CPU allocator aligns to this."""

PAGE_BYTES = 4096
"""A storage of a page or more starts on one, so that a write to its neighbour never copies its pages."""

_ROLES = get_args(Role)
#: In place of the numbers of packs, until all other regions have theirs.
_PACK: Final = -1
_DEVICE_PACK: Final = -2

BLOB_BYTES = 1 << 20
"""Storages from this size on are regions of their own; for smaller ones that would cost more than it saves."""

DEVICE_BLOB_BYTES = 32 << 20
"""On a GPU, whose memory comes in grains of 2 MiB."""

DEVICE_ALIGNMENT_BYTES = 512
"""What torch's own CUDA allocator aligns to."""

MAX_BLOBS = 2000
"""... but no more of them than this: each is a descriptor in the supervisor and a mapping in each worker."""

MAX_REGIONS = 1 << 16
MAX_REGION_BYTES = 1 << 48  # what a process can address


@dataclass(frozen=True, slots=True)
class StorageEntry:
    """One storage: the bytes behind one or more tensors or arrays.

    Attributes:
        region: index of its region in `Manifest.region_sizes_bytes`.
        offset_bytes: where in the region it begins; a multiple of 64 but in a file, which is as it is.
        size_bytes: its size without padding.
        role: what it is for.
    """

    region: int
    offset_bytes: int
    size_bytes: int
    role: Role


class InFile(NamedTuple):
    """A storage that stays where it is, in a file that is mapped whole."""

    path: str
    offset_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All memory of one frozen object. Every manifest that exists is consistent in itself.

    Two entries may overlap: storages with equal content may share their bytes.

    Attributes:
        region_sizes_bytes: what each region must measure, by index.
        storages: by the index that the skeleton refers to them with.
        on_device: which regions, by index, are memory of a GPU; the others are the processor's.

    Raises:
        ValueError: a size, offset, count or role is impossible; the message says which.
    """

    region_sizes_bytes: tuple[int, ...]
    storages: tuple[StorageEntry, ...]
    on_device: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if len(self.region_sizes_bytes) > MAX_REGIONS:
            raise ValueError(f"{len(self.region_sizes_bytes)} regions; at most {MAX_REGIONS} are plausible")
        if len(self.storages) > MAX_STORAGES:
            count = len(self.storages)
            raise ValueError(f"the model has {count:,} storages, at most {MAX_STORAGES:,} can be shared")
        for index, size_bytes in enumerate(self.region_sizes_bytes):
            if not 0 < size_bytes <= MAX_REGION_BYTES:
                raise ValueError(f"region {index} has an impossible size of {size_bytes} bytes")
        if not self.on_device <= set(range(len(self.region_sizes_bytes))):
            raise ValueError(f"regions {sorted(self.on_device)} are on a device, and some of them do not exist")
        for index, entry in enumerate(self.storages):
            self._check(index, entry)

    def _check(self, index: int, entry: StorageEntry) -> None:
        if not 0 <= entry.region < len(self.region_sizes_bytes):
            raise ValueError(f"storage {index} lies in region {entry.region}, which does not exist")
        if entry.offset_bytes < 0 or entry.size_bytes < 0:
            raise ValueError(
                f"storage {index} has a negative offset or size ({entry.offset_bytes}, {entry.size_bytes})"
            )
        if entry.offset_bytes + entry.size_bytes > self.region_sizes_bytes[entry.region]:
            raise ValueError(
                f"storage {index} ends at {entry.offset_bytes + entry.size_bytes}, behind the end of region "
                f"{entry.region} at {self.region_sizes_bytes[entry.region]}"
            )
        if entry.role not in _ROLES:
            raise ValueError(f"storage {index} has the unknown role {entry.role!r}")

    @classmethod
    def laid_out(
        cls,
        storages: Iterable[tuple[int, Role]],
        files: Mapping[int, InFile] | None = None,
        on_device: Collection[int] = (),
        grain_bytes: int = PAGE_BYTES,
    ) -> Manifest:
        """Lay storages out: large ones in regions of their own, the rest together in one.

        Args:
            storages: size in bytes (above 0) and role of each.
            files: where those storages lie, by index, that stay in the file that they are in.
            on_device: which storages, by index, go to a GPU.
            grain_bytes: what sizes of its regions are multiples of.

        Returns:
            A manifest whose regions are blobs and files, in the order of their first storages, then the pack, and
            the pack on the GPU.
        """
        listed = list(storages)
        in_files = files or {}
        layout = _Layout((size for index, (size, _) in enumerate(listed) if index not in in_files), grain_bytes)
        for index, (size_bytes, role) in enumerate(listed):
            if index in on_device:
                layout.place_on_device(size_bytes, role)
            elif index in in_files:
                layout.leave(in_files[index], size_bytes, role)
            else:
                layout.place(size_bytes, role)
        return cls(*layout.finish())

    @property
    def storage_bytes(self) -> int:
        """Sum of all storages' sizes, without padding."""
        return sum(entry.size_bytes for entry in self.storages)

    def to_wire(self) -> list[object]:
        """Return it as nested lists of integers and strings; `from_wire` reads them."""
        return [
            list(self.region_sizes_bytes),
            [[entry.region, entry.offset_bytes, entry.size_bytes, entry.role] for entry in self.storages],
            sorted(self.on_device),
        ]

    @classmethod
    def from_wire(cls, wire: object) -> Manifest:
        """Read what `to_wire` wrote, believing nothing of it.

        Raises:
            ValueError: it is not a manifest; the message says what is wrong where.
        """
        regions, storages, on_device = _list_of(wire, 3, "a manifest")
        sizes_bytes = [_integer(size, "a region's size") for size in _list_of(regions, None, "the regions")]
        entries: list[StorageEntry] = []
        for index, item in enumerate(_list_of(storages, None, "the storages")):
            region, offset_bytes, size_bytes, role = _list_of(item, 4, f"storage {index}")
            entries.append(
                StorageEntry(
                    _integer(region, f"the region of storage {index}"),
                    _integer(offset_bytes, f"the offset of storage {index}"),
                    _integer(size_bytes, f"the size of storage {index}"),
                    cast("Role", role),  # checked with everything else when the manifest is made
                )
            )
        places = _list_of(on_device, None, "the regions on a device")
        indices = frozenset(_integer(index, "the index of a region") for index in places)
        return cls(tuple(sizes_bytes), tuple(entries), indices)


class _Layout:
    """Regions and entries of a manifest in the making."""

    def __init__(self, sizes_bytes: Iterable[int], grain_bytes: int) -> None:
        large = sorted((size for size in sizes_bytes if size >= BLOB_BYTES), reverse=True)
        self._floor_bytes = BLOB_BYTES if len(large) <= MAX_BLOBS else large[MAX_BLOBS - 1]
        self._grain_bytes = grain_bytes
        self._sizes_bytes: list[int] = []
        self._on_device: set[int] = set()
        self._entries: list[StorageEntry] = []
        self._files: dict[str, int] = {}
        self._packs_bytes = {_PACK: 0, _DEVICE_PACK: 0}

    def place(self, size_bytes: int, role: Role) -> None:
        """Give a storage a place in a region of its own or in the pack."""
        if size_bytes >= self._floor_bytes:
            self._place_alone(size_bytes, role, PAGE_BYTES)
        else:
            # Small ones fill what the last page of the larger one before them leaves.
            alignment_bytes = PAGE_BYTES if size_bytes >= PAGE_BYTES else ALIGNMENT_BYTES
            self._pack(_PACK, size_bytes, role, alignment_bytes)

    def place_on_device(self, size_bytes: int, role: Role) -> None:
        """Do so in the memory of a GPU."""
        if size_bytes >= max(self._floor_bytes, DEVICE_BLOB_BYTES):
            self._on_device.add(len(self._sizes_bytes))
            self._place_alone(size_bytes, role, self._grain_bytes)
        else:
            self._pack(_DEVICE_PACK, size_bytes, role, DEVICE_ALIGNMENT_BYTES)

    def leave(self, place: InFile, size_bytes: int, role: Role) -> None:
        """Leave a storage in its file."""
        region = self._files.setdefault(place.path, len(self._sizes_bytes))
        if region == len(self._sizes_bytes):
            self._sizes_bytes.append(place.file_bytes)
        self._entries.append(StorageEntry(region, place.offset_bytes, size_bytes, role))

    def finish(self) -> tuple[tuple[int, ...], tuple[StorageEntry, ...], frozenset[int]]:
        """Return the regions' sizes, in whole pages because that is what they cost, entries, and `on_device`."""
        packs: dict[int, int] = {}
        for pack, pack_bytes in self._packs_bytes.items():
            if pack_bytes:
                packs[pack] = len(self._sizes_bytes)
                grain_bytes = self._grain_bytes if pack == _DEVICE_PACK else PAGE_BYTES
                self._sizes_bytes.append(_round_up(pack_bytes, grain_bytes))
        if _DEVICE_PACK in packs:
            self._on_device.add(packs[_DEVICE_PACK])
        entries = tuple(
            dataclasses.replace(entry, region=packs[entry.region]) if entry.region in packs else entry
            for entry in self._entries
        )
        return tuple(self._sizes_bytes), entries, frozenset(self._on_device)

    def _place_alone(self, size_bytes: int, role: Role, grain_bytes: int) -> None:
        self._entries.append(StorageEntry(len(self._sizes_bytes), 0, size_bytes, role))
        self._sizes_bytes.append(_round_up(size_bytes, grain_bytes))

    def _pack(self, pack: int, size_bytes: int, role: Role, alignment_bytes: int) -> None:
        offset_bytes = _round_up(self._packs_bytes[pack], alignment_bytes)
        self._entries.append(StorageEntry(pack, offset_bytes, size_bytes, role))
        self._packs_bytes[pack] = offset_bytes + size_bytes


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _list_of(value: object, length: int | None, what: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a list, not {type(value).__name__}")  # noqa: TRY004 (wire data)
    items = list(cast("Iterable[object]", value))
    if length is not None and len(items) != length:
        raise ValueError(f"{what} must have {length} items, not {len(items)}")
    return items


def _integer(value: object, what: str) -> int:
    if type(value) is not int:  # a bool is an int to isinstance
        raise ValueError(f"{what} must be an integer, not {type(value).__name__}")
    return value
