"""Where the storages of a frozen object lie: which region, at what offset, how large, what for.

The manifest says everything about the memory of a weight set and nothing about the object; the skeleton is
the other half. It is plain numbers, so the supervisor can reserve, account and hand out regions without
importing torch, and it travels as nested lists.

::

    region 0  ┌──────────────┬────┬─┬─┬───────────────────────┬──┐
              │ storage 0    │ 1  │2│3│ (to the page) 4       │5 │   size: whole pages
              └──────────────┴────┴─┴─┴───────────────────────┴──┘
              0              64-byte alignment, 4096 for storages of a page or more

An empty storage owns no memory: it has no entry, and an object without memory has no region.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

Role = Literal["parameter", "mutable"]
"""`parameter`: reached through an ``nn.Parameter``, which inference only reads; `mutable`: anything else."""

ALIGNMENT_BYTES = 64
"""Kernels give other bits on other alignments; torch's own CPU allocator aligns to this."""

PAGE_BYTES = 4096
"""A storage of a page or more starts on one, so that a write to its neighbour never copies its pages."""

_ROLES = get_args(Role)

MAX_REGIONS = 1 << 16
MAX_STORAGES = 1 << 20
MAX_REGION_BYTES = 1 << 48  # what a process can address


@dataclass(frozen=True, slots=True)
class StorageEntry:
    """One storage: the bytes behind one or more tensors or arrays.

    Attributes:
        region: index of its region in `Manifest.region_sizes_bytes`.
        offset_bytes: where in the region it begins, a multiple of 64.
        size_bytes: its size without padding.
        role: what it is for.
    """

    region: int
    offset_bytes: int
    size_bytes: int
    role: Role


@dataclass(frozen=True, slots=True)
class Manifest:
    """All memory of one frozen object. Every manifest that exists is consistent in itself.

    Two entries may overlap: storages with equal content may share their bytes.

    Attributes:
        region_sizes_bytes: what each region must measure, by index.
        storages: by the index that the skeleton refers to them with.

    Raises:
        ValueError: a size, offset, count or role is impossible; the message says which.
    """

    region_sizes_bytes: tuple[int, ...]
    storages: tuple[StorageEntry, ...]

    def __post_init__(self) -> None:
        if len(self.region_sizes_bytes) > MAX_REGIONS:
            raise ValueError(f"{len(self.region_sizes_bytes)} regions; at most {MAX_REGIONS} are plausible")
        if len(self.storages) > MAX_STORAGES:
            raise ValueError(f"{len(self.storages)} storages; at most {MAX_STORAGES} are plausible")
        for index, size_bytes in enumerate(self.region_sizes_bytes):
            if not 0 < size_bytes <= MAX_REGION_BYTES:
                raise ValueError(f"region {index} has an impossible size of {size_bytes} bytes")
        for index, entry in enumerate(self.storages):
            self._check(index, entry)

    def _check(self, index: int, entry: StorageEntry) -> None:
        if not 0 <= entry.region < len(self.region_sizes_bytes):
            raise ValueError(f"storage {index} lies in region {entry.region}, which does not exist")
        if entry.offset_bytes < 0 or entry.size_bytes < 0:
            raise ValueError(
                f"storage {index} has a negative offset or size ({entry.offset_bytes}, {entry.size_bytes})"
            )
        if entry.offset_bytes % ALIGNMENT_BYTES:
            raise ValueError(
                f"storage {index} begins at {entry.offset_bytes}, not at a multiple of {ALIGNMENT_BYTES}"
            )
        if entry.offset_bytes + entry.size_bytes > self.region_sizes_bytes[entry.region]:
            raise ValueError(
                f"storage {index} ends at {entry.offset_bytes + entry.size_bytes}, behind the end of region "
                f"{entry.region} at {self.region_sizes_bytes[entry.region]}"
            )
        if entry.role not in _ROLES:
            raise ValueError(f"storage {index} has the unknown role {entry.role!r}")

    @classmethod
    def packed(cls, storages: Iterable[tuple[int, Role]]) -> Manifest:
        """Lay storages out in one region, in the order given.

        Small ones fill what the last page of the large one before them leaves.

        Args:
            storages: size in bytes (above 0) and role of each.

        Returns:
            A manifest with one region, or with none where there are no storages.
        """
        entries: list[StorageEntry] = []
        end_bytes = 0
        for size_bytes, role in storages:
            alignment_bytes = PAGE_BYTES if size_bytes >= PAGE_BYTES else ALIGNMENT_BYTES
            offset_bytes = _round_up(end_bytes, alignment_bytes)
            entries.append(StorageEntry(0, offset_bytes, size_bytes, role))
            end_bytes = offset_bytes + size_bytes
        # Whole pages, because that is what a region costs.
        sizes_bytes = (_round_up(end_bytes, PAGE_BYTES),) if entries else ()
        return cls(sizes_bytes, tuple(entries))

    @property
    def storage_bytes(self) -> int:
        """Sum of all storages' sizes, without padding."""
        return sum(entry.size_bytes for entry in self.storages)

    def to_wire(self) -> list[object]:
        """Return it as nested lists of integers and strings; `from_wire` reads them."""
        return [
            list(self.region_sizes_bytes),
            [[entry.region, entry.offset_bytes, entry.size_bytes, entry.role] for entry in self.storages],
        ]

    @classmethod
    def from_wire(cls, wire: object) -> Manifest:
        """Read what `to_wire` wrote, believing nothing of it.

        Raises:
            ValueError: it is not a manifest; the message says what is wrong where.
        """
        regions, storages = _list_of(wire, 2, "a manifest")
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
        return cls(tuple(sizes_bytes), tuple(entries))


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
