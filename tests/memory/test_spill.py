"""Content on a disk: files without a name, how it gets there and back, and what a disk refuses."""

import errno
import mmap
import os
import stat

import pytest
from onecopy.pool.memory import spill
from onecopy.pool.memory.spill import (
    NotWanted,
    SpillFolder,
    SpillRefused,
    read_ahead,
    reopened_to_read,
    write_out,
)

CONTENT = os.urandom(100_000)


def always():
    return True


@pytest.fixture
def opened():
    fds = []
    yield lambda fd: fds.append(fd) or fd
    for fd in fds:
        os.close(fd)


@pytest.fixture
def folder(tmp_path):
    return SpillFolder(str(tmp_path / "cache" / "onecopy"))


@pytest.fixture
def source(opened):
    fd = opened(os.memfd_create("source"))
    os.write(fd, CONTENT)
    return fd


def content_of(fd):
    return os.pread(fd, 2 * len(CONTENT), 0)


def test_a_file_has_no_name_and_is_its_owners_alone(folder, opened):
    fd = opened(folder.create())
    assert os.listdir(folder.path) == []
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
    assert not os.get_inheritable(fd)
    assert folder.fallback == ""
    assert repr(folder) == f"<SpillFolder {folder.path}>"


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR])
def test_where_files_cannot_be_made_without_a_name_one_loses_it_at_once(folder, opened, monkeypatch, code):
    real = os.open

    def without_nameless(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", without_nameless)
    fd = opened(folder.create())
    assert os.listdir(folder.path) == []
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert "without a name" in folder.fallback


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        SpillFolder(str(tmp_path / "file" / "cache")).create()


def test_content_goes_out(folder, source, opened):
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    assert content_of(file) == CONTENT


def test_a_file_that_was_written_is_opened_again_to_be_read_alone(folder, source, opened):
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    again = opened(reopened_to_read(file))
    assert content_of(again) == CONTENT
    assert not os.get_inheritable(again)
    assert stat.S_IMODE(os.fstat(again).st_mode) == 0o400
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(again, b"x", 0)


def test_a_file_that_cannot_be_mapped_is_none_to_come_back_from(folder, source, opened, monkeypatch):
    class NoMap:
        ACCESS_COPY = mmap.ACCESS_COPY

        @staticmethod
        def mmap(*_args, **_more):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    file = opened(folder.create())
    monkeypatch.setattr(spill, "mmap", NoMap)
    with pytest.raises(OSError, match="No such device"):
        reopened_to_read(file)


def drop_from_cache(fd):
    """Have the kernel keep no page of a file; false where it keeps some all the same, as of files in memory."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return not spill._is_cached(fd, 0, len(CONTENT))


def test_content_that_is_not_in_the_cache_is_read_before_it_is_needed(folder, source, opened, monkeypatch):
    monkeypatch.setattr(spill, "CHUNK_BYTES", 4 * mmap.PAGESIZE)
    monkeypatch.setattr(spill, "_READ_BYTES", 1000)
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    if not drop_from_cache(file):
        pytest.skip("here the kernel keeps what it shall drop")
    read_ahead(file, len(CONTENT), always)
    assert spill._is_cached(file, 0, len(CONTENT))


def test_content_that_is_in_the_cache_is_not_read_again(folder, source, opened, monkeypatch):
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    monkeypatch.setattr(spill, "_read", None)
    read_ahead(file, len(CONTENT), always)


def test_what_the_kernel_copies_in_parts_is_whole_in_the_end(folder, source, opened, monkeypatch):
    real = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda out, source, at, count: real(out, source, at, min(count, 777)))
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    assert content_of(file) == CONTENT


def test_a_copy_that_is_not_wanted_any_more_ends_at_the_next_chunk(folder, source, opened, monkeypatch):
    monkeypatch.setattr(spill, "CHUNK_BYTES", 1000)
    wanted = iter([True, True, False])
    file = opened(folder.create())
    with pytest.raises(NotWanted):
        write_out(source, file, len(CONTENT), lambda: next(wanted))
    assert os.fstat(file).st_size == 2000


def test_content_that_has_become_short_is_an_error(folder, source, opened):
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    os.ftruncate(file, 5000)
    with pytest.raises(OSError, match=r"ends after 5,000 of 100,000 bytes"):
        read_ahead(file, len(CONTENT), always)


def test_content_that_becomes_short_while_it_is_looked_at_is_an_error(folder, source, opened, monkeypatch):
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    monkeypatch.setattr(spill, "CHUNK_BYTES", 4 * mmap.PAGESIZE)
    looks = iter([lambda: None, lambda: os.ftruncate(file, 5000)])
    with pytest.raises(OSError, match=r"ends after .* bytes"):
        read_ahead(file, len(CONTENT), lambda: [next(looks, lambda: None)()])


def test_content_that_is_shorter_than_it_should_be_is_not_written_out_for_more(folder, source, opened):
    file = opened(folder.create())
    with pytest.raises(OSError, match=r"ends after 100,000 of 100,001 bytes"):
        write_out(source, file, len(CONTENT) + 1, always)


def test_reading_ahead_ends_when_it_is_not_wanted_any_more(folder, source, opened, monkeypatch):
    monkeypatch.setattr(spill, "CHUNK_BYTES", 4 * mmap.PAGESIZE)
    wanted = iter([True, False])
    file = opened(folder.create())
    write_out(source, file, len(CONTENT), always)
    with pytest.raises(NotWanted):
        read_ahead(file, len(CONTENT), lambda: next(wanted))


def test_a_folder_in_memory_is_refused_whether_it_is_there_or_not(tmp_path):
    with pytest.raises(SpillRefused, match="is on tmpfs, which is memory itself; let ONECOPY_CACHE_DIR name"):
        SpillFolder("/dev/shm/onecopy-not-there/cache").check(1)
    assert not os.path.exists("/dev/shm/onecopy-not-there")


def test_looking_at_a_folder_does_not_make_it(folder):
    assert folder.check(1000) > 0
    assert not os.path.exists(folder.path)


@pytest.mark.parametrize(("blocks", "kept"), [(1000, 50 * 4096), (1 << 30, 1 << 30)])
def test_some_of_a_disk_stays_free(folder, monkeypatch, blocks, kept):
    class Disk:
        f_frsize = 4096
        f_blocks = blocks
        f_bavail = blocks // 2

    monkeypatch.setattr(os, "statvfs", lambda _: Disk)
    left = blocks // 2 * 4096 - kept
    assert folder.check(left) == 0
    with pytest.raises(SpillRefused, match=f"room for {left:,} bytes besides the {kept:,} that stay free"):
        folder.check(left + 1)
