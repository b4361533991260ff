"""Measuring processes in the background: what is measured anew, what is remembered, when the core is told."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from leftovers import wait_until
from onecopy.pool import Pool
from onecopy.pool.supervisor import meter, sampler
from onecopy.pool.supervisor.background import Background
from onecopy.pool.supervisor.carrier import Carriers
from onecopy.pool.supervisor.reactor import Reactor
from onecopy.pool.supervisor.sampler import Sampler, read_memory

MIB = 1 << 20
#: Takes as many megabytes as it is told to, one line after the other.
EATER = """\
import sys
kept = []
for line in sys.stdin:
    kept.append(b"x" * (int(line) << 20))
    print(len(kept), flush=True)
"""


class Eater:
    """A process that takes memory when it is told to."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.process.pid

    def eat(self, megabytes):
        self.process.stdin.write(f"{megabytes}\n")
        self.process.stdout.readline()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def eater():
    eater = Eater()
    eater.eat(0)  # it has started
    yield eater
    eater.close()


@pytest.fixture
def measured(monkeypatch):
    """The processes whose page tables were walked."""
    pids = []
    monkeypatch.setattr(sampler, "read_memory", lambda pid: pids.append(pid) or read_memory(pid))
    return pids


# --- the sampler ---------------------------------------------------------------------------------------------


def test_a_process_that_has_done_nothing_since_is_not_measured_again(eater, measured):
    one = Sampler()
    first = one.measure([eater.pid], is_exact=False)
    assert first[eater.pid].private > MIB
    assert one.measure([eater.pid], is_exact=False) == first
    assert measured == [eater.pid]
    one.measure([eater.pid], is_exact=True)
    assert measured == [eater.pid] * 2


def test_a_process_that_has_taken_memory_is_measured_again(eater, measured):
    one = Sampler()
    before = one.measure([eater.pid], is_exact=False)[eater.pid]
    eater.eat(20)
    after = one.measure([eater.pid], is_exact=False)[eater.pid]
    assert 20 * MIB <= after.private - before.private < 22 * MIB
    assert measured == [eater.pid] * 2


def test_processes_that_are_gone_are_left_out_and_forgotten(eater):
    one = Sampler()
    assert one.measure([eater.pid, os.getpid()], is_exact=False).keys() == {eater.pid, os.getpid()}
    eater.close()
    assert one.measure([eater.pid, os.getpid()], is_exact=False).keys() == {os.getpid()}
    assert one._known.keys() == {os.getpid()}


def test_what_is_told_is_a_part_of_what_the_process_has():
    memory = read_memory(os.getpid())
    assert 0 < memory.private <= memory.pss
    assert read_memory(1 << 30) is None


# --- the background ------------------------------------------------------------------------------------------


def test_work_is_done_by_one_thread_and_told_in_the_reactors():
    reactor = Reactor()
    background = Background("test-background", reactor)
    threads, results = [], []

    def told(result):
        results.append((result, threading.current_thread()))
        if len(results) == 5:
            reactor.stop()

    def work(number):
        threads.append(threading.current_thread())
        return number

    for number in range(5):
        background.do(lambda number=number: work(number), told)
    reactor.run(lambda: float("inf"), lambda: None)
    assert results == [(number, threading.current_thread()) for number in range(5)]
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert threads[0].name == "test-background"
    background.close()
    assert not threads[0].is_alive()
    reactor.close()


def test_a_background_that_was_never_used_has_no_thread():
    reactor = Reactor()
    threads = threading.active_count()
    background = Background("test-background", reactor)
    assert threading.active_count() == threads
    background.close()
    reactor.close()


# --- the meter -----------------------------------------------------------------------------------------------


@pytest.fixture
def trimmed(monkeypatch):
    """An element for each time that the heap was tidied."""
    times = []
    monkeypatch.setattr(meter, "trim", lambda: times.append(len(times)))
    return times


@pytest.fixture
def idle_meter():
    """A meter of a pool without processes, and its devices."""
    reactor = Reactor()
    processes, exporter = SimpleNamespace(zygotes=[], children={}), SimpleNamespace(pid=0)
    devices = SimpleNamespace(cores=[], unanswered=0)
    memories = SimpleNamespace(devices=[], carriers=Carriers({}, 1))
    one = meter.Meter(devices, processes, exporter, None, memories, reactor, lambda _: None)
    yield one, devices
    one.close()
    reactor.close()


def test_when_nothing_goes_on_any_more_the_heap_is_tidied_once(trimmed, idle_meter):
    one, devices = idle_meter
    for unanswered, times in ((1, 0), (0, 0), (0, 1), (0, 1)):
        devices.unanswered = unanswered
        one._measured(meter._Figures([], {}))
        assert len(trimmed) == times
    for _ in range(3):  # between requests that come one after the other
        one.touch()
        one._measured(meter._Figures([], {}))
    assert len(trimmed) == 1
    one._measured(meter._Figures([], {}))
    assert len(trimmed) == 2


def test_where_something_always_goes_on_the_heap_is_tidied_now_and_then(trimmed, idle_meter, monkeypatch):
    one, _ = idle_meter
    monkeypatch.setattr(meter, "_TIDY_S", 0.0)
    for times in (1, 2):
        one.touch()
        one._measured(meter._Figures([], {}))
        assert len(trimmed) == times


class Hoarder:
    """Keeps as much memory as it is told to."""

    def __init__(self):
        self.kept = []

    def keep(self, megabytes):
        self.kept.append(b"x" * (megabytes << 20))
        return os.getpid()

    def pid(self):
        return os.getpid()


def test_the_core_is_told_what_workers_take_without_being_asked():
    with Pool({"hoarder": Hoarder}, workers=1, max_private="300MiB") as pool:
        hoarder = pool.model("hoarder", method="keep")
        first = hoarder(1)
        assert hoarder(400) == first
        pid = pool.model("hoarder", method="pid")
        assert wait_until(lambda: pid() != first)
        assert any("its private memory has" in note for note in pool.status().notes)


def test_what_is_told_of_a_device_is_what_was_measured():
    with Pool({"hoarder": Hoarder}, workers=2, devices={"cpu": {"budget": "8GiB", "reserve": "100MiB"}}) as pool:
        pool.model("hoarder", method="keep")(50)
        memory = pool.memory()
        (device,) = memory.devices
        assert (device.name, device.budget_bytes, device.reserve_bytes) == ("cpu", 8 << 30, 100 * MIB)
        assert device.limit_bytes == min(8 << 30, device.total_bytes - 100 * MIB)
        workers = sum(one.private_bytes for one in memory.processes if one.role == "worker")
        assert device.accounts["workers"] == workers > 50 * MIB
        others = sum(one.private_bytes for one in memory.processes if one.role != "worker")
        assert device.accounts["others"] == others > 0
        assert device.used_bytes == sum(device.accounts.values())
        assert 0 < device.free_bytes <= device.limit_bytes - device.used_bytes
        assert (device.evicted_bytes, device.disk_bytes) == (0, 0)
        assert f"cpu: {device.used_bytes / 1e6:.1f} MB of " in str(memory)
