"""How the supervisor ends an attempt: with real processes, but in an order that the test decides."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from leftovers import wait_until
from onecopy.pool.core.instructions import Interrupt, TellLate, ToClient
from onecopy.pool.supervisor import interrupts
from onecopy.protocol import messages
from onecopy.protocol.marks import INTERRUPT_SIGNAL, LINE_BYTES, Marks

BEGUN, OTHER = 70, 80


class OneWorker:
    """Stands for the pool's processes: one that ignores the signal that interrupts, but for counting it."""

    def __init__(self, process, marks):
        self.child = SimpleNamespace(
            number=1, pid=process.pid, pidfd=os.pidfd_open(process.pid), marks=marks, is_dead=False
        )
        self.children = {1: self.child}
        self.sent = []

    def send(self, number, message, buffers, fds):
        self.sent.append(message)

    def signal(self, number, signum):
        os.kill(self.child.pid, signum)


@pytest.fixture
def processes():
    program = (
        "import signal, time\n"
        f"signal.signal({INTERRUPT_SIGNAL}, lambda *_: print('interrupted', flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    marks = Marks(mmap.mmap(-1, LINE_BYTES), 0)
    marks.begun = BEGUN
    processes = OneWorker(process, marks)
    processes.told = process.stdout
    yield processes
    process.kill()
    process.communicate()
    os.close(processes.child.pidfd)


@pytest.fixture
def later():
    """What is to be called later, and does not come by itself."""
    return []


@pytest.fixture
def orders(processes, later):
    notes: list[str] = []
    told: list[ToClient] = []
    orders = interrupts.Interrupts(processes, told.append, lambda _, call: later.append(call), notes.append)
    orders.notes, orders.told = notes, told
    return orders


def call_all(later):
    """Call what is to be called later, once the time has come."""
    while later:
        later.pop()()


def state(processes):
    return psutil.Process(processes.child.pid).status()


def test_what_has_begun_is_marked_and_told_and_signalled(processes, orders, later):
    orders.interrupt(Interrupt(1, BEGUN, False))
    assert processes.child.marks.interrupts == 1
    assert processes.sent == [messages.Interrupt(BEGUN)]
    assert processes.told.readline() == "interrupted\n"
    assert later == []


@pytest.mark.parametrize("kill", [False, True])
def test_what_has_not_begun_is_marked_and_nothing_is_stopped(processes, orders, later, kill):
    orders.interrupt(Interrupt(1, OTHER, kill))
    assert processes.child.marks.interrupts == 1
    assert processes.sent == [messages.Interrupt(OTHER)]
    assert wait_until(lambda: state(processes) == psutil.STATUS_SLEEPING)
    assert later == []


def test_a_worker_that_is_killed_is_stopped_first(processes, orders, later):
    orders.interrupt(Interrupt(1, BEGUN, True))
    assert wait_until(lambda: call_all(later) or state(processes) == psutil.STATUS_ZOMBIE)


def test_a_worker_that_answered_before_it_stopped_goes_on(processes, orders, later, monkeypatch):
    looks = iter([False, True])
    monkeypatch.setattr(interrupts, "_is_stopped", lambda pid: next(looks))
    orders.interrupt(Interrupt(1, BEGUN, True))
    assert wait_until(lambda: state(processes) == psutil.STATUS_STOPPED)
    processes.child.marks.begun = OTHER
    call_all(later)
    assert wait_until(lambda: state(processes) == psutil.STATUS_SLEEPING)


def test_a_worker_that_cannot_be_stopped_is_interrupted_instead_which_is_told(
    processes, orders, later, monkeypatch
):
    monkeypatch.setattr(interrupts, "_is_stopped", lambda pid: False)
    monkeypatch.setattr(interrupts, "_STOP_S", 0)
    orders.interrupt(Interrupt(1, BEGUN, True))
    assert processes.told.readline() == "interrupted\n"
    assert orders.notes == [
        f"worker {processes.child.pid} cannot be stopped, so it is not killed: its run may go on for a while"
    ]


def test_a_worker_that_died_meanwhile_is_left_alone(processes, orders, later, monkeypatch):
    monkeypatch.setattr(interrupts, "_is_stopped", lambda pid: False)
    orders.interrupt(Interrupt(1, BEGUN, True))
    del processes.children[1]
    os.kill(processes.child.pid, signal.SIGCONT)
    call_all(later)
    orders.interrupt(Interrupt(1, BEGUN, True))
    assert wait_until(lambda: state(processes) == psutil.STATUS_SLEEPING)


def test_each_child_has_a_line_of_its_own():
    page = mmap.mmap(-1, 2 * LINE_BYTES)
    first, second = Marks(page, 0), Marks(page, 1)
    second.begun = 1 << 62
    second.interrupts += 3
    assert (first.begun, first.interrupts) == (0, 0)
    assert (second.begun, second.interrupts) == (1 << 62, 3)
    second.clear()
    assert (second.begun, second.interrupts) == (0, 0)


def test_a_client_is_told_which_of_its_calls_runs_if_it_is_known(orders, processes):
    processes.child.marks.call = 3
    orders.tell_late(TellLate(1, BEGUN, "ann", 7))
    assert orders.told == [ToClient("ann", messages.Late(7, 2), [])]
    orders.tell_late(TellLate(1, OTHER, "ann", 8))  # it has ended meanwhile
    orders.tell_late(TellLate(2, BEGUN, "ann", 7))  # its worker has died
    processes.child.marks.call = 0  # they are made as one
    orders.tell_late(TellLate(1, BEGUN, "ann", 7))
    assert len(orders.told) == 1
