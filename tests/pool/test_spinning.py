"""When supervisor and client look again and again before they sleep; time is made up."""

import os
import threading

import pytest
from onecopy.pool import Pool, spinning
from onecopy.pool.spinning import REST_S, SPIN_S, TAKEN_S, Spinner

READABLE = [(7, 1)]
LOOK_S = SPIN_S / 10


class Machine:
    """A poll object, a clock, and a scheduler that takes the core for as long as it is told.

    Attributes:
        due_at: when something will be there.
        looks, sleeps: how often it was asked what there is, and to wait for it.
    """

    def __init__(self, monkeypatch):
        self.now = self.due_at = 100.0
        self.taken_s = 0.0
        self.looks = self.sleeps = 0
        self.may_spin = True
        monkeypatch.setattr(spinning, "give_core", self.give_core)
        self.spinner = Spinner(self.poll, lambda: self.may_spin, lambda: self.now)

    def give_core(self):
        self.now += self.taken_s

    def poll(self, timeout_s):
        if timeout_s == 0:
            self.looks += 1
            self.now += LOOK_S
            return READABLE if self.now >= self.due_at else []
        self.sleeps += 1
        until = self.due_at if timeout_s is None else min(self.due_at, self.now + timeout_s)
        self.now = max(self.now, until)
        return READABLE if self.now >= self.due_at else []

    def wait(self, due_s, timeout_s=None):
        """Wait for something that will be there then; return what came, and how often it looked and slept."""
        self.looks = self.sleeps = 0
        self.due_at = self.now + due_s
        return self.spinner.wait(timeout_s), self.looks, self.sleeps


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_after_a_short_wait_it_looks_until_there_is_something(machine):
    assert machine.wait(SPIN_S / 2) == (READABLE, 0, 1)
    assert machine.wait(SPIN_S / 2) == (READABLE, 5, 0)
    assert machine.wait(SPIN_S / 2) == (READABLE, 5, 0)


def test_what_takes_long_is_slept_for_and_not_looked_for_the_next_time(machine):
    machine.wait(SPIN_S / 2)
    assert machine.wait(1.0) == (READABLE, 10, 1)
    assert machine.wait(1.0) == (READABLE, 0, 1)


def test_nobody_is_kept_from_a_core_that_is_of_use_to_others(machine):
    machine.wait(SPIN_S / 2)
    machine.taken_s = 2 * TAKEN_S
    assert machine.wait(SPIN_S / 2) == (READABLE, 1, 1)  # while it looked others had the core
    machine.taken_s = 0.0
    machine.wait(SPIN_S / 2)
    assert machine.wait(SPIN_S / 2) == (READABLE, 0, 1)  # so for a while it does not
    machine.now += REST_S
    assert machine.wait(SPIN_S / 2) == (READABLE, 5, 0)


def test_it_looks_only_where_it_may(machine):
    machine.may_spin = False
    for _ in range(3):
        assert machine.wait(SPIN_S / 2) == (READABLE, 0, 1)


def test_a_timeout_is_kept_and_none_at_all_is_one_look(machine):
    assert machine.wait(SPIN_S / 2, timeout_s=SPIN_S / 4) == ([], 0, 1)
    assert machine.wait(1.0, timeout_s=0) == ([], 1, 0)
    assert machine.wait(1.0, timeout_s=0.5) == ([], 10, 1)
    assert machine.now < 100.0 + 0.5 + 2 * SPIN_S


class Waits:
    """Answers when a file is there."""

    def __call__(self, path):
        while not os.path.exists(path):
            threading.Event().wait(0.001)


def test_a_client_may_look_while_it_waits_for_one_answer_alone(tmp_path):
    with Pool({"waits": Waits()}, workers=2) as pool:
        connection = pool._connection
        assert not connection._may_spin()
        first = pool.submit("waits", str(tmp_path / "first"))
        assert connection._may_spin() == connection._has_cores
        second = pool.submit("waits", str(tmp_path / "second"))
        assert not connection._may_spin()
        for name, future in (("first", first), ("second", second)):
            (tmp_path / name).touch()
            future.result()
        connection._has_cores = False  # then whoever answers could not run
        assert not connection._may_spin()
