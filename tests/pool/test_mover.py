"""Regions on their way to the disk and back: their content, what is told, and what is left when it goes wrong."""

import fcntl
import gc
import mmap
import os
import resource
import signal
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import wait_until
from onecopy.pool.core import events
from onecopy.pool.core.instructions import GrantRegions, MoveRegions
from onecopy.pool.core.regions import RegionGrant
from onecopy.pool.memory import spill
from onecopy.pool.memory.machine import FakeMachine
from onecopy.pool.memory.memfd import MemfdStore
from onecopy.pool.memory.spill import SpillFolder
from onecopy.pool.supervisor.carrier import Carriers
from onecopy.pool.supervisor.mover import Mover
from onecopy.pool.supervisor.reactor import Reactor
from onecopy.pool.supervisor.shelf import Shelf
from onecopy.protocol.mapping import map_region

MIB = 1 << 20
#: Above any size in these tests, so that only one that wants to is refused.
MEMORY = 1 << 40


class HeldFolder(SpillFolder):
    """Lets the thread go on only when it is told to."""

    def __init__(self, path):
        super().__init__(path)
        self.is_reached = threading.Event()
        self.may_go_on = threading.Event()

    def create(self):
        self.is_reached.set()
        self.may_go_on.wait()
        return super().create()


class Hands:
    """A shelf and a mover, and a reactor that runs until something is told."""

    def __init__(self, folder):
        self.reactor = Reactor()
        self.told = []
        self.notes = []
        self.machine = FakeMachine(MEMORY)
        self.folder = folder
        memory = MemfdStore(self.machine)
        self.shelf = Shelf(
            memory,
            [memory],
            send=lambda filler, message, fds: None,
            feed=lambda event: None,
            note=self.notes.append,
            call_at=self.reactor.call_at,
        )
        memories = SimpleNamespace(machine=self.machine, carriers=Carriers({}, 1))
        self.mover = Mover(self.shelf, folder, memories, self.reactor, feed=self._feed, note=self.notes.append)

    def _feed(self, event):
        assert isinstance(event, events.RegionsMoved)
        self.told.append(event)
        self.reactor.stop()

    def fill(self, number, content):
        """Make a region, as if a loader had filled it."""
        self.shelf.grant(GrantRegions("loader", [RegionGrant(number, len(content), "fill", is_new=True)]))
        os.pwrite(self.shelf.fds((number,))[0], content, 0)
        self.shelf.filled("loader", [number])

    def order(self, *regions, tier):
        self.mover.move(MoveRegions(regions, tier))

    def move(self, *regions, tier):
        """Move regions, and wait for what comes of it."""
        before = len(self.told)
        self.order(*regions, tier=tier)
        self.wait_for(before + 1)
        return self.told[-1]

    def wait_for(self, count):
        while len(self.told) < count:
            self.reactor.run(lambda: float("inf"), lambda: None)

    def free(self, *regions):
        """Free regions, as the supervisor does."""
        self.mover.free(regions)

    def content_of(self, number):
        region = self.shelf.region(number)
        return os.pread(region.fd, region.size_bytes + 1, 0)

    def close(self):
        self.mover.close()
        self.shelf.close()
        self.reactor.close()


@contextmanager
def hands_over(folder):
    hands = Hands(folder)
    try:
        yield hands
    finally:
        hands.close()


@pytest.fixture
def hands(tmp_path):
    with hands_over(SpillFolder(str(tmp_path / "cache"))) as hands:
        yield hands


@pytest.fixture
def held(tmp_path):
    with hands_over(HeldFolder(str(tmp_path / "cache"))) as hands:
        yield hands
        hands.folder.may_go_on.set()


CONTENT = os.urandom(100_000)


# --- there and back ------------------------------------------------------------------------------------------


def test_a_region_leaves_memory_for_a_file_without_a_name_and_comes_back_as_it_was(hands):
    hands.fill(1, CONTENT)
    told = hands.move(1, tier="disk")
    assert (told.regions, told.tier, told.error) == ((1,), "disk", None)
    assert told.seconds > 0
    assert hands.shelf.allocated_bytes() == 0
    assert (hands.mover.evicted_bytes(), hands.mover.disk_bytes()) == (len(CONTENT), len(CONTENT))
    assert os.listdir(hands.folder.path) == []
    told = hands.move(1, tier="memory")
    assert (told.regions, told.tier, told.error) == ((1,), "memory", None)
    assert hands.content_of(1) == CONTENT
    assert hands.shelf.allocated_bytes() >= len(CONTENT)
    assert (hands.mover.evicted_bytes(), hands.mover.disk_bytes()) == (0, len(CONTENT))
    assert hands.notes == []


def test_what_has_come_back_cannot_be_written(hands):
    hands.fill(1, CONTENT)
    hands.move(1, tier="disk")
    hands.move(1, tier="memory")
    (fd,) = hands.shelf.fds((1,))
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert os.fstat(fd).st_mode & 0o777 == 0o400
    with pytest.raises(PermissionError):
        mmap.mmap(fd, len(CONTENT), access=mmap.ACCESS_WRITE)
    mapping = map_region(fd, len(CONTENT))
    mapping[0:3] = b"xyz"  # a page of its own
    assert hands.content_of(1) == CONTENT


def test_what_comes_back_is_the_file_that_it_left_for(hands):
    hands.fill(1, CONTENT)
    hands.move(1, tier="disk")
    hands.move(1, tier="memory")
    (fd,) = hands.shelf.fds((1,))
    assert os.path.sameopenfile(fd, hands.mover._files[1].fd)


def test_what_was_away_once_leaves_without_being_written_again(hands, monkeypatch):
    hands.fill(1, CONTENT)
    hands.move(1, tier="disk")
    hands.move(1, tier="memory")
    monkeypatch.setattr(hands.folder, "create", None)
    assert hands.move(1, tier="disk").error is None
    assert hands.shelf.allocated_bytes() == 0
    assert hands.move(1, tier="memory").error is None
    assert hands.content_of(1) == CONTENT


def test_several_regions_are_told_of_when_all_are_there(hands):
    contents = {number: os.urandom(number * 10_000) for number in range(1, 6)}
    for number, content in contents.items():
        hands.fill(number, content)
    hands.move(2, 4, tier="disk")
    hands.move(1, 2, 3, 4, 5, tier="disk")
    assert hands.mover.evicted_bytes() == sum(map(len, contents.values()))
    hands.move(*contents, tier="memory")
    assert {number: hands.content_of(number) for number in contents} == contents


def test_orders_are_carried_out_in_the_order_in_which_they_come(hands):
    for number in (1, 2, 3):
        hands.fill(number, CONTENT)
    for number in (1, 2, 3):
        hands.order(number, tier="disk")
    hands.wait_for(3)
    assert [one.regions for one in hands.told] == [(1,), (2,), (3,)]


def test_a_file_that_is_a_region_and_one_that_is_gone_stay_what_they_are(hands):
    hands.fill(1, CONTENT)
    told = hands.move(1, 7, tier="disk")
    assert (told.regions, told.error) == ((1, 7), None)
    told = hands.move(1, 7, tier="memory")
    assert told.error is None
    assert hands.content_of(1) == CONTENT


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_where_the_folder_is_in_memory_regions_stay_where_they_are():
    with hands_over(SpillFolder("/dev/shm/onecopy-not-there")) as hands:
        hands.fill(1, CONTENT)
        told = hands.move(1, tier="disk")
        assert told.error["code"] == "out_of_budget"
        assert "is on tmpfs, which is memory itself" in told.error["message"]
        assert hands.content_of(1) == CONTENT
        assert hands.mover.disk_bytes() == 0


@contextmanager
def files_of_at_most(size_bytes):
    """Have the system refuse to write more than this to any file, as a full disk does, in the middle of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_what_was_written_of_what_does_not_fit_on_the_disk_is_given_back(hands):
    small, large = os.urandom(1000), os.urandom(MIB)
    hands.fill(1, small)
    hands.fill(2, large)
    with files_of_at_most(MIB // 2):
        told = hands.move(1, 2, tier="disk")
    assert told.error["code"] == "out_of_budget"
    assert "File too large" in told.error["message"]
    assert (hands.content_of(1), hands.content_of(2)) == (small, large)
    assert (hands.mover.disk_bytes(), hands.mover.evicted_bytes()) == (0, 0)
    assert hands.move(1, 2, tier="disk").error is None  # there is room again


def test_without_memory_regions_stay_on_the_disk(hands):
    hands.fill(1, CONTENT)
    hands.fill(2, CONTENT)
    hands.move(1, 2, tier="disk")
    hands.machine.used_bytes = MEMORY - 150_000  # enough for each of them, but not for both
    told = hands.move(1, 2, tier="memory")
    assert told.error["code"] == "out_of_budget"
    assert told.error["details"] == {"needed_bytes": 200_000, "available_bytes": 150_000}
    assert (hands.mover.evicted_bytes(), hands.shelf.allocated_bytes()) == (200_000, 0)
    hands.machine.used_bytes = 0
    assert hands.move(1, 2, tier="memory").error is None


def test_what_cannot_be_read_back_stays_on_the_disk_and_leaves_no_memory_behind(hands):
    hands.fill(1, CONTENT)
    hands.fill(2, CONTENT)
    hands.move(1, 2, tier="disk")
    path = f"/proc/self/fd/{hands.mover._files[2].fd}"
    os.chmod(path, 0o600)
    os.truncate(path, 5000)
    told = hands.move(1, 2, tier="memory")
    assert "ends after 5,000 of 100,000 bytes" in told.error["message"]
    assert (hands.mover.evicted_bytes(), hands.shelf.allocated_bytes()) == (200_000, 0)
    assert hands.move(1, tier="memory").error is None
    assert hands.content_of(1) == CONTENT


def test_a_fallback_is_told_once(hands, monkeypatch):
    monkeypatch.setattr(hands.folder, "fallback", "second best")
    for number in (1, 2):
        hands.fill(number, CONTENT)
        hands.move(number, tier="disk")
    assert hands.notes == ["second best"]


# --- what is freed or closed meanwhile ----------------------------------------------------------------------


def test_a_region_that_is_freed_on_its_way_out_is_gone(held):
    held.fill(1, CONTENT)
    held.fill(2, CONTENT)
    held.order(1, 2, tier="disk")
    assert held.folder.is_reached.wait(20)
    held.free(1)
    held.folder.may_go_on.set()
    held.wait_for(1)
    assert held.told[0].error is None
    assert held.mover.disk_bytes() == len(CONTENT)
    assert not held.shelf.has(1)
    assert held.move(2, tier="memory").error is None
    assert held.content_of(2) == CONTENT


def test_a_region_that_is_freed_once_it_is_out_leaves_no_file(hands):
    hands.fill(1, CONTENT)
    hands.move(1, tier="disk")
    hands.free(1)
    assert (hands.mover.disk_bytes(), hands.mover.evicted_bytes()) == (0, 0)
    assert hands.move(1, tier="memory").error is None  # the order was under way when it was freed
    assert not hands.shelf.has(1)


def test_a_region_that_is_freed_on_its_way_back_is_gone(held):
    held.folder.may_go_on.set()
    for number in (1, 2):
        held.fill(number, CONTENT)
    held.move(1, tier="disk")
    held.folder.may_go_on.clear()
    held.folder.is_reached.clear()
    held.order(2, tier="disk")  # which keeps the thread busy
    assert held.folder.is_reached.wait(20)
    held.order(1, tier="memory")
    held.free(1)
    held.folder.may_go_on.set()
    held.wait_for(3)
    assert not held.shelf.has(1)
    assert held.mover.disk_bytes() == len(CONTENT)
    assert held.shelf.allocated_bytes() == 0


def test_closing_ends_what_is_under_way_at_the_next_chunk(tmp_path, monkeypatch):
    with hands_over(HeldFolder(str(tmp_path / "cache"))) as hands:
        monkeypatch.setattr(spill, "CHUNK_BYTES", 1000)
        hands.fill(1, CONTENT)
        hands.order(1, tier="disk")
        assert hands.folder.is_reached.wait(20)
        (move,) = hands.mover._moves.values()
        closing = threading.Thread(target=hands.mover.close)
        closing.start()
        assert wait_until(lambda: not move.is_wanted)
        hands.folder.may_go_on.set()
        closing.join()
        assert hands.mover.disk_bytes() == 0
        assert hands.told == []
        monkeypatch.setattr(hands.mover, "close", lambda: None)


# --- any order of things -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(["out", "back", "free", "wait"]), st.sets(st.integers(1, 5))), max_size=25)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_for_in_whatever_order_content_stays_and_nothing_leaks(tmp_path, steps):
    """Orders as the core gives them: a region that is on its way is not moved again before it has arrived."""
    before = set(os.listdir("/proc/self/fd"))
    with hands_over(SpillFolder(str(tmp_path / "cache"))) as hands:
        contents = {number: bytes([number]) * (number * 5000) for number in range(1, 6)}
        place = dict.fromkeys(contents, "memory")
        for number, content in contents.items():
            hands.fill(number, content)
        orders = 0
        for action, chosen in steps:
            if action == "wait":
                hands.wait_for(orders)
                place = {one: where.removeprefix("to ") for one, where in place.items()}
                continue
            if action == "free":
                for number in chosen & place.keys():
                    hands.free(number)
                    del place[number]
                continue
            start, end = ("memory", "disk") if action == "out" else ("disk", "memory")
            moving = tuple(number for number in sorted(chosen) if place.get(number) == start)
            if moving:
                hands.order(*moving, tier=end)
                orders += 1
                place |= dict.fromkeys(moving, f"to {end}")
        hands.wait_for(orders)
        assert all(one.error is None for one in hands.told)
        for number, where in place.items():
            if where.endswith("memory"):
                assert hands.content_of(number) == contents[number]
            else:
                assert not hands.shelf.has(number)
        away = [number for number, where in place.items() if where.endswith("disk")]
        assert hands.mover.evicted_bytes() == sum(len(contents[number]) for number in away)
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
