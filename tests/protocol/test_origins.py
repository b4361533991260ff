"""Which bytes of which file lie at an address: asked of the kernel, for real mappings."""

import mmap
import os
from contextlib import contextmanager

import numpy as np
import pytest
from onecopy.protocol.origins import FileRange, file_ranges

PAGE_BYTES = mmap.PAGESIZE
SIZE_BYTES = 8 * PAGE_BYTES


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(SIZE_BYTES))
    return str(file)


@contextmanager
def mapped(path, flags=mmap.MAP_PRIVATE, offset_bytes=0):
    """A file's mapping, and the address that it begins at."""
    fd = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset_bytes)
    os.close(fd)
    array = np.frombuffer(mapping, np.uint8)
    try:
        yield mapping, array.ctypes.data
    finally:
        del array
        mapping.close()


def origin(address, size_bytes):
    [found] = file_ranges([(address, size_bytes)])
    return found


def test_what_was_only_read_is_the_file(path):
    with mapped(path) as (mapping, start):
        assert any(mapping[:])
        assert origin(start, SIZE_BYTES) == FileRange(path, 0, SIZE_BYTES)
        assert origin(start + 100, 5000) == FileRange(path, 100, 5000)
        assert origin(start + SIZE_BYTES - 1, 1) == FileRange(path, SIZE_BYTES - 1, 1)


def test_offsets_are_those_in_the_file_and_not_in_the_mapping(path):
    with mapped(path, offset_bytes=2 * PAGE_BYTES) as (mapping, start):
        found = origin(start + 10, 20)
        assert found == FileRange(path, 2 * PAGE_BYTES + 10, 20)
        with open(path, "rb") as file:
            file.seek(found.offset_bytes)
            assert file.read(found.size_bytes) == mapping[10:30]


def test_one_page_that_was_written_is_enough_to_be_memory(path):
    with mapped(path) as (mapping, start):
        mapping[3 * PAGE_BYTES] ^= 1
        assert origin(start, SIZE_BYTES) is None
        assert origin(start + 3 * PAGE_BYTES, 1) is None


def test_the_same_file_mapped_twice_is_judged_mapping_by_mapping(path):
    with mapped(path) as (written, start), mapped(path) as (_, other):
        written[0] ^= 1
        assert file_ranges([(start, 10), (other, 10)]) == [None, FileRange(path, 0, 10)]


def test_a_shared_mapping_is_the_file_whatever_is_written(path):
    with mapped(path, mmap.MAP_SHARED) as (mapping, start):
        mapping[0] ^= 1
        assert origin(start, SIZE_BYTES) == FileRange(path, 0, SIZE_BYTES)


def test_memory_without_a_file_has_no_origin():
    heap = np.ones(100_000)
    with mmap.mmap(-1, PAGE_BYTES) as anonymous:
        array = np.frombuffer(anonymous, np.uint8)
        assert file_ranges([(heap.ctypes.data, heap.nbytes), (array.ctypes.data, PAGE_BYTES)]) == [None, None]
        del array


def test_a_memfd_has_no_name_to_be_opened_by(path):
    fd = os.memfd_create("weights")
    os.truncate(fd, SIZE_BYTES)
    with mapped(f"/proc/self/fd/{fd}") as (_, start), mapped(path) as (_, named):
        assert file_ranges([(start, 10), (named, 10)]) == [None, FileRange(path, 0, 10)]
    os.close(fd)


def test_a_file_that_was_removed_or_replaced_is_memory(path, tmp_path):
    with mapped(path) as (_, start):
        assert origin(start, 10) is not None
        other = tmp_path / "newer"
        other.write_bytes(bytes(SIZE_BYTES))
        os.replace(other, path)
        assert origin(start, 10) is None
        os.remove(path)
        assert origin(start, 10) is None
        with open(f"{path} (deleted)", "wb") as file:  # as the kernel calls the one that was removed
            file.write(bytes(SIZE_BYTES))
        assert origin(start, 10) is None


def test_a_piece_that_goes_on_behind_its_mapping_is_memory(path):
    with mapped(path, offset_bytes=4 * PAGE_BYTES) as (mapping, start):
        assert origin(start, len(mapping)) == FileRange(path, 4 * PAGE_BYTES, len(mapping))
        assert origin(start, len(mapping) + 1) is None
        assert origin(start - 1, 2) is None


@pytest.mark.parametrize(
    "name", ["two  words ", "new\nline", "ünïcode", "kept (deleted)", b"not utf-8 \xff", "a:"]
)
def test_files_may_have_any_name(tmp_path, name):
    path = os.path.join(tmp_path, os.fsdecode(name))
    with open(path, "wb") as file:
        file.write(bytes(SIZE_BYTES))
    with mapped(path) as (_, start):
        assert origin(start, 10) == FileRange(path, 0, 10)


def test_answers_come_in_the_order_of_the_questions(path):
    heap = np.ones(100)
    with mapped(path) as (_, start):
        asked = [(start + 64 * index, 64) for index in (5, 0, 3)]
        asked.insert(1, (heap.ctypes.data, heap.nbytes))
        found = file_ranges(asked)
    assert [one and one.offset_bytes for one in found] == [320, None, 0, 192]
    assert file_ranges([]) == []
