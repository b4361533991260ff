"""What every machine tells, and how the real one reads it, from a tree of files such as the kernel shows."""

import os

import pytest
from onecopy.pool import environment
from onecopy.pool.memory.machine import FakeMachine, LinuxMachine, Machine

GIB = 1 << 30
NO_LIMIT_1 = 9223372036854771712
TREE_2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
TREES_1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""


class Tree:
    """The files of a machine with 4000 kB of memory, of which 1000 kB are available, without any group."""

    def __init__(self, root):
        self.root = root
        self.write("proc/meminfo", "MemTotal:    4000 kB\nMemAvailable:    1000 kB\nHugePages_Total: 0\n")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def mount(self, mounts, groups):
        self.write("proc/self/mountinfo", f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounts}")
        self.write("proc/self/cgroup", groups)

    def group(self, path, limit, used, inactive_file=0, active_file=0):
        self.write(f"sys/fs/cgroup/{path}/memory.max", limit)
        self.write(f"sys/fs/cgroup/{path}/memory.current", used)
        self.write(
            f"sys/fs/cgroup/{path}/memory.stat",
            f"anon 1\ninactive_file {inactive_file}\nactive_file {active_file}",
        )

    def old_group(self, path, limit, used, inactive_file=0):
        self.write(f"sys/fs/cgroup/memory/{path}/memory.limit_in_bytes", limit)
        self.write(f"sys/fs/cgroup/memory/{path}/memory.usage_in_bytes", used)
        self.write(
            f"sys/fs/cgroup/memory/{path}/memory.stat",
            f"cache 1\ninactive_file 9\ntotal_inactive_file {inactive_file}",
        )

    @property
    def machine(self):
        return LinuxMachine(str(self.root))

    @property
    def memory(self):
        return self.machine.total_bytes(), self.machine.available_bytes()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture
def grouped(tree):
    """The same; this process is in the group /outer/inner of version 2, and nothing limits it."""
    tree.mount(TREE_2, "0::/outer/inner")
    tree.group("outer/inner", "max", 500)
    return tree


# --- every machine -------------------------------------------------------------------------------------------


@pytest.fixture(params=["here", "fake", "tree"])
def machine(request, tree) -> Machine:
    return {"here": LinuxMachine, "fake": FakeMachine, "tree": lambda: tree.machine}[request.param]()


def test_what_is_available_is_a_part_of_what_there_is(machine):
    assert 0 <= machine.available_bytes() <= machine.total_bytes()
    assert machine.total_bytes() > 0


def test_there_is_a_core_at_least(machine):
    assert machine.cores() >= 1


def test_a_fake_machine_is_as_it_was_told():
    machine = FakeMachine(memory_bytes=3 * GIB, used_bytes=GIB, core_count=7)
    assert (machine.total_bytes(), machine.available_bytes(), machine.cores()) == (3 * GIB, 2 * GIB, 7)
    machine.used_bytes = 4 * GIB
    assert machine.available_bytes() == 0


# --- memory --------------------------------------------------------------------------------------------------


def test_here_it_is_what_the_kernel_tells():
    machine = LinuxMachine()
    assert machine.physical_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.total_bytes() <= machine.physical_bytes()
    assert environment.memory_bytes() == machine.total_bytes()


def test_where_no_groups_are_mounted_the_machine_decides(tree):
    assert tree.memory == (4000 * 1024, 1000 * 1024)


def test_without_a_limit_the_machine_decides(grouped):
    assert grouped.memory == (4000 * 1024, 1000 * 1024)


def test_the_tightest_group_around_the_process_decides(grouped):
    grouped.group("outer/inner", 900_000, 100_000)
    assert grouped.memory == (900_000, 800_000)
    grouped.group("outer", 700_000, 200_000)
    assert grouped.memory == (700_000, 500_000)
    grouped.group("outer", 950_000, 800_000)  # it has more, but leaves less
    assert grouped.memory == (900_000, 150_000)


def test_cached_files_do_not_count_against_a_group(grouped):
    grouped.group("outer/inner", 900_000, 800_000, inactive_file=100_000, active_file=200_000)
    assert grouped.memory == (900_000, 400_000)


def test_a_group_over_its_limit_leaves_nothing(grouped):
    grouped.group("outer", 100_000, 200_000)
    assert grouped.memory == (100_000, 0)


def test_a_group_that_does_not_tell_what_it_uses_still_limits(grouped):
    (grouped.root / "sys/fs/cgroup/outer/inner/memory.current").unlink()
    (grouped.root / "sys/fs/cgroup/outer/inner/memory.stat").unlink()
    grouped.write("sys/fs/cgroup/outer/inner/memory.max", 900_000)
    assert grouped.memory == (900_000, 900_000)


def test_a_process_may_be_moved_to_another_group_while_it_runs(grouped):
    machine = grouped.machine
    grouped.group("other", 300_000, 100_000)
    grouped.write("proc/self/cgroup", "0::/other")
    assert (machine.total_bytes(), machine.available_bytes()) == (300_000, 200_000)


def test_in_a_container_with_a_view_of_its_own_the_top_is_its_group(tree):
    tree.mount(TREE_2, "0::/")
    tree.group("", 600_000, 100_000)
    assert tree.memory == (600_000, 500_000)


def test_in_a_container_that_sees_only_its_part_of_the_tree_paths_begin_there(tree):
    part = "30 20 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup ro"
    tree.mount(part, "0::/docker/abc/inner")
    tree.group("", 600_000, 100_000)
    tree.group("inner", 500_000, 100_000)
    assert tree.memory == (500_000, 400_000)


@pytest.mark.parametrize("path", ["/docker/abcd", "/../sibling", "/"])
def test_a_group_outside_of_what_can_be_seen_is_taken_for_the_top_of_that(tree, path):
    tree.mount("30 20 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup ro", f"0::{path}")
    tree.group("", 600_000, 100_000)
    assert tree.memory == (600_000, 500_000)


def test_groups_of_version_1_limit_too(tree):
    tree.mount(TREES_1, "4:memory:/outer/inner\n1:cpu,cpuacct:/\n0::/")
    tree.old_group("", NO_LIMIT_1, 1000)
    tree.old_group("outer", 700_000, 300_000, inactive_file=100_000)
    tree.old_group("outer/inner", NO_LIMIT_1, 300)
    assert tree.memory == (700_000, 500_000)


# --- cores ---------------------------------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_here_there_are_no_more_cores_than_the_process_may_use():
    assert 1 <= environment.cores() <= len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("1600000 100000", 8),
     ("200000", 8), ("", 8)],
)  # fmt: skip
def test_a_quota_of_time_is_rounded_up_to_cores(grouped, limit, cores):
    grouped.write("sys/fs/cgroup/outer/cpu.max", limit)
    assert grouped.machine.cores() == cores


@pytest.mark.usefixtures("eight_cores")
def test_the_tightest_quota_decides(grouped):
    grouped.write("sys/fs/cgroup/outer/cpu.max", "500000 100000")
    grouped.write("sys/fs/cgroup/outer/inner/cpu.max", "300000 100000")
    assert grouped.machine.cores() == 3


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "cores"), [(250_000, 3), (-1, 8)])
def test_quotas_of_version_1_limit_too(tree, quota, cores):
    tree.mount(TREES_1, "4:memory:/\n1:cpu,cpuacct:/inner\n0::/")
    tree.write("sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", quota)
    tree.write("sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", 100_000)
    assert tree.machine.cores() == cores


@pytest.mark.usefixtures("eight_cores")
def test_nodes_have_the_cores_that_the_process_may_use_and_their_memory(tree):
    assert tree.machine.numa_nodes() == {}
    for number, cores in ((0, "0-2,5"), (1, "3-4,6-12"), (10, "20-23")):
        tree.write(f"sys/devices/system/node/node{number}/cpulist", cores)
        tree.write(f"sys/devices/system/node/node{number}/meminfo", f"Node {number} MemTotal:  {number + 7} kB")
    tree.write("sys/devices/system/node/possible", "0-10")
    nodes = tree.machine.numa_nodes()
    assert list(nodes) == [0, 1, 10]
    assert [node.cores for node in nodes.values()] == [(0, 1, 2, 5), (3, 4, 6, 7), ()]
    assert [node.memory_bytes for node in nodes.values()] == [7 * 1024, 8 * 1024, 17 * 1024]
