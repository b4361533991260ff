"""Files and the memory of a GPU: content goes both ways, on the machine's GPU or on a stand-in for its driver.

A stream of the stand-in copies only when it is waited for, so what is not waited for is found out.
"""

import errno
import os

import cuda_driver
import pytest
from onecopy.protocol import cuda
from onecopy.protocol.cuda_files import BUFFER_BYTES, FileCopier

GRAIN = 2 << 20
#: One grain; less than both buffers; several rounds, the last of them not whole.
SIZES = (GRAIN, BUFFER_BYTES + GRAIN, 5 * BUFFER_BYTES + 3 * GRAIN)


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    cuda_driver.load(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def copier():
    copier = FileCopier(0)
    yield copier
    copier.close()


@pytest.fixture
def memory():
    """Make memory of a GPU, mapped to be written."""

    def make(size_bytes):
        fd = cuda.create(size_bytes, 0)
        try:
            return cuda.DeviceMapping(fd, size_bytes, 0, is_writable=True)
        finally:
            os.close(fd)

    return make


@pytest.fixture
def file(tmp_path):
    """Make a file with this content; return its descriptor."""
    made = []

    def make(content=b""):
        made.append(os.open(tmp_path / f"file{len(made)}", os.O_RDWR | os.O_CREAT))
        os.pwrite(made[-1], content, 0)
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_what_goes_to_a_gpu_comes_back_as_it_was(copier, memory, file, size_bytes):
    content = os.urandom(size_bytes)
    there, back = memory(size_bytes), file()
    copier.read(file(content), there, size_bytes)
    for _ in range(2):  # with what the buffers still have from before
        copier.write(there, back, size_bytes)
        assert os.pread(back, size_bytes + 1, 0) == content


def test_a_file_that_is_too_short_is_named_and_the_copier_goes_on(copier, memory, file):
    size_bytes = 3 * BUFFER_BYTES
    there, content = memory(size_bytes), os.urandom(size_bytes)
    with pytest.raises(OSError, match=r"the content ends after 34,000,000 of 50,331,648 bytes") as raised:
        copier.read(file(content[:34_000_000]), there, size_bytes)
    assert raised.value.errno == errno.EIO
    back = file()
    copier.read(file(content), there, size_bytes)
    copier.write(there, back, size_bytes)
    assert os.pread(back, size_bytes, 0) == content


def test_a_file_that_cannot_be_written_is_an_error_and_the_copier_goes_on(copier, memory, file, tmp_path):
    size_bytes = 3 * BUFFER_BYTES
    there, content = memory(size_bytes), os.urandom(size_bytes)
    copier.read(file(content), there, size_bytes)
    (tmp_path / "read only").touch()
    fd = os.open(tmp_path / "read only", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        copier.write(there, fd, size_bytes)
    os.close(fd)
    back = file()
    copier.write(there, back, size_bytes)
    assert os.pread(back, size_bytes, 0) == content


def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(cuda.CudaError, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        FileCopier(7)
