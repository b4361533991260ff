"""The process that copies weights from a GPU to files and back: what it copies, and what becomes of it."""

import os
import signal
import threading

import cuda_driver
import psutil
import pytest
from leftovers import wait_until
from onecopy.pool.memory.spill import NotWanted
from onecopy.pool.supervisor import carrier as carrier_module
from onecopy.pool.supervisor.carrier import Carrier, Carriers
from onecopy.protocol import cuda

SIZE = 6 << 20
CONTENT = os.urandom(SIZE)


def always():
    return True


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    cuda_driver.load(folder)
    with cuda_driver.for_processes(folder):
        yield


@pytest.fixture
def carrier():
    one = Carrier(0, dict)
    yield one
    one.close()


@pytest.fixture
def region():
    fd = cuda.create(SIZE, 0)
    yield fd
    os.close(fd)


@pytest.fixture
def files(tmp_path):
    """A file with content, and an empty one."""
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("full", "empty")]
    os.pwrite(fds[0], CONTENT, 0)
    yield fds
    for fd in fds:
        os.close(fd)


def is_there_and_back(carrier, region, files):
    carrier.bring_back(region, files[0], SIZE, always)
    carrier.write_out(region, files[1], SIZE, always)
    return os.pread(files[1], SIZE + 1, 0) == CONTENT


def test_content_goes_there_and_back_by_one_process_that_has_no_torch(carrier, region, files):
    assert carrier.pid == 0
    assert is_there_and_back(carrier, region, files)
    process = psutil.Process(carrier.pid)
    assert "onecopy.workers.carrier" in process.cmdline()
    assert not [one.path for one in process.memory_maps() if "libtorch" in one.path]
    assert is_there_and_back(carrier, region, files)
    assert carrier.pid == process.pid


def test_one_that_was_killed_is_started_again(carrier, region, files):
    carrier.bring_back(region, files[0], SIZE, always)
    first = psutil.Process(carrier.pid)
    first.kill()
    assert wait_until(lambda: first.status() == psutil.STATUS_ZOMBIE)
    assert is_there_and_back(carrier, region, files)
    assert carrier.pid != first.pid
    assert not first.is_running()


def test_what_one_was_at_when_it_was_killed_is_done_by_another(carrier, region, files):
    carrier.bring_back(region, files[0], SIZE, always)
    first = psutil.Process(carrier.pid)
    first.suspend()
    looks = threading.Semaphore(0)
    work = threading.Thread(
        target=carrier.write_out, args=(region, files[1], SIZE, lambda: looks.release() or True)
    )
    work.start()
    assert looks.acquire(timeout=20)  # it waits for an answer
    first.send_signal(signal.SIGKILL)
    work.join()
    assert os.pread(files[1], SIZE, 0) == CONTENT
    assert carrier.pid != first.pid


def test_one_that_dies_again_and_again_is_an_error(region, files):
    carrier = Carrier(0, lambda: {"PYTHONHOME": "/nowhere"})
    with pytest.raises(OSError, match=r"copies from and to the GPU 0 died twice \(exit code 1\)"):
        carrier.write_out(region, files[1], SIZE, always)
    assert carrier.pid == 0


def test_what_is_not_wanted_any_more_is_not_waited_for(carrier, region, files):
    carrier.bring_back(region, files[0], SIZE, always)
    process = psutil.Process(carrier.pid)
    process.suspend()
    answers = iter([True, True, False])
    with pytest.raises(NotWanted):
        carrier.write_out(region, files[1], SIZE, lambda: next(answers))
    assert not process.is_running()
    assert is_there_and_back(carrier, region, files)


def test_one_with_nothing_to_do_ends_after_a_while(carrier, region, files, monkeypatch):
    carrier.rest()
    carrier.bring_back(region, files[0], SIZE, always)
    process = psutil.Process(carrier.pid)
    carrier.rest()
    assert process.is_running()
    monkeypatch.setattr(carrier_module, "LINGER_S", 0.0)
    carrier.rest()
    assert (carrier.pid, process.is_running()) == (0, False)


def test_a_gpu_that_cannot_be_used_is_named_and_nothing_dies(region, files):
    carrier = Carrier(7, dict)
    for _ in range(2):
        with pytest.raises(OSError, match="from or to the GPU 7: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
            carrier.write_out(region, files[1], SIZE, always)
    assert carrier.pid
    carrier.close()


def test_it_ends_with_whoever_has_started_it(carrier, region, files):
    carrier.bring_back(region, files[0], SIZE, always)
    process = psutil.Process(carrier.pid)
    carrier._channel.close()
    assert wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)


def test_regions_tell_whose_they_are():
    gpu = Carrier(0, dict)
    carriers = Carriers({1: gpu}, 3)
    assert [carriers.of(region) for region in (3, 4, 5, 7)] == [None, gpu, None, gpu]
    assert carriers.pids == []
    carriers.close()
