"""The manifest: its layout, and that nothing impossible is ever believed."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onecopy.protocol import manifest as module
from onecopy.protocol.manifest import InFile, Manifest, StorageEntry


def test_small_storages_are_aligned_to_64_bytes_and_pages_start_on_pages():
    laid_out = Manifest.laid_out([(5000, "parameter"), (4, "mutable"), (100, "mutable"), (4096, "parameter")])
    assert laid_out.region_sizes_bytes == (3 * 4096,)
    assert laid_out.storages == (
        StorageEntry(0, 0, 5000, "parameter"),
        StorageEntry(0, 5056, 4, "mutable"),
        StorageEntry(0, 5120, 100, "mutable"),
        StorageEntry(0, 8192, 4096, "parameter"),
    )
    assert laid_out.storage_bytes == 5000 + 4 + 100 + 4096


def test_large_storages_are_regions_of_their_own_and_the_pack_comes_last():
    large = module.BLOB_BYTES
    laid_out = Manifest.laid_out([(100, "mutable"), (large + 1, "parameter"), (large - 1, "parameter")])
    assert laid_out.region_sizes_bytes == (large + 4096, 4096 + large)
    assert laid_out.storages == (
        StorageEntry(1, 0, 100, "mutable"),
        StorageEntry(0, 0, large + 1, "parameter"),
        StorageEntry(1, 4096, large - 1, "parameter"),
    )


def test_only_the_largest_are_regions_of_their_own_if_there_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "MAX_BLOBS", 2)
    sizes_bytes = [module.BLOB_BYTES + 4096 * extra for extra in (0, 3, 1, 2)]
    laid_out = Manifest.laid_out([(size_bytes, "parameter") for size_bytes in sizes_bytes])
    assert [entry.region for entry in laid_out.storages] == [2, 0, 2, 1]


def test_what_stays_in_a_file_lies_where_it_lay():
    files = {0: InFile("b", 64, 500), 2: InFile("a", 128, 300), 3: InFile("b", 128, 500)}
    laid_out = Manifest.laid_out([(10, "parameter"), (20, "mutable"), (30, "parameter"), (40, "parameter")], files)
    assert laid_out.region_sizes_bytes == (500, 300, 4096)
    assert [(entry.region, entry.offset_bytes) for entry in laid_out.storages] == [
        (0, 64), (2, 0), (1, 128), (0, 128),
    ]  # fmt: skip


def test_no_storages_make_no_region():
    assert Manifest.laid_out([]) == Manifest((), ())


@given(st.lists(st.tuples(st.integers(1, 20_000), st.sampled_from(["parameter", "mutable"]))))
def test_packed_storages_never_overlap_and_survive_the_wire(storages):
    laid_out = Manifest.laid_out(storages)
    assert [(entry.size_bytes, entry.role) for entry in laid_out.storages] == storages
    for before, after in zip(laid_out.storages, laid_out.storages[1:], strict=False):
        assert before.offset_bytes + before.size_bytes <= after.offset_bytes
    for entry in laid_out.storages:
        assert entry.offset_bytes % (4096 if entry.size_bytes >= 4096 else 64) == 0
    assert Manifest.from_wire(laid_out.to_wire()) == laid_out


def test_a_manifest_may_have_many_regions_and_storages_that_share_bytes():
    wire = [[4096, 8192], [[1, 64, 100, "mutable"], [0, 0, 4096, "parameter"], [1, 64, 100, "parameter"]], [1]]
    assert Manifest.from_wire(wire).to_wire() == wire


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (None, "a manifest must be a list"),
        ([[]], "a manifest must have 3 items, not 1"),
        (["regions", [], []], "the regions must be a list, not str"),
        ([[4096.0], [], []], "a region's size must be an integer, not float"),
        ([[True], [], []], "a region's size must be an integer, not bool"),
        ([[0], [], []], "region 0 has an impossible size"),
        ([[1 << 49], [], []], "region 0 has an impossible size"),
        ([[4096], [[0, 0, 64]], []], "storage 0 must have 4 items"),
        ([[4096], [[0, "0", 64, "mutable"]], []], "the offset of storage 0 must be an integer"),
        ([[4096], [[1, 0, 64, "mutable"]], []], "storage 0 lies in region 1, which does not exist"),
        ([[4096], [[-1, 0, 64, "mutable"]], []], "region -1"),
        ([[4096], [[0, -64, 64, "mutable"]], []], "negative offset or size"),
        ([[4096], [[0, 0, -1, "mutable"]], []], "negative offset or size"),
        ([[4096], [[0, 64, 4033, "mutable"]], []], "ends at 4097, behind the end of region 0 at 4096"),
        ([[4096], [[0, 0, 64, "gradient"]], []], "unknown role 'gradient'"),
        ([[4096], [[0, 0, 64, ["mutable"]]], []], "unknown role"),
        ([[], [[0, 0, 0, "mutable"]], []], "does not exist"),
        ([[4096], [], [1]], r"regions \[1\] are on a device, and some of them do not exist"),
        ([[4096], [], ["0"]], "the index of a region must be an integer"),
    ],
)
def test_what_is_wrong_on_the_wire_is_named(wire, complaint):
    with pytest.raises(ValueError, match=complaint):
        Manifest.from_wire(wire)


def test_implausible_counts_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_STORAGES", 1)
    monkeypatch.setattr(module, "MAX_REGIONS", 2)
    with pytest.raises(ValueError, match="the model has 2 storages, at most 1 can be shared"):
        Manifest.laid_out([(1, "mutable"), (1, "mutable")])
    with pytest.raises(ValueError, match="3 regions; at most 2"):
        Manifest((1, 1, 1), ())


@pytest.mark.parametrize(
    "name",
    ["protocol.frozen", "protocol.mapping", "protocol.manifest", "pool.memory.memfd", "pool.memory.fake"],
)
def test_importing_imports_neither_torch_nor_numpy(name):
    check = f"import sys, onecopy.{name}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
