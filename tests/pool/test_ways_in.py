"""The ways into a pool: two sockets in a folder of its user's own, tcp where it is asked for, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from leftovers import wait_until
from onecopy.pool import Pool
from standalone import TOYS, standalone


def processes_of(pool):
    """The supervisor of a pool and all that it has started."""
    supervisor = psutil.Process(pool.status().pid)
    return [supervisor, *supervisor.children(recursive=True)]


def named_sockets():
    """The path of each unix socket of this machine that has one, by inode."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {int(fields[6]): fields[7] for fields in lines if len(fields) > 7}


def inodes_of(process):
    """The sockets that a process holds."""
    links = []
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
        except OSError:  # closed meanwhile
            continue
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def test_workers_and_loaders_have_sockets_that_no_client_can_reach():
    with Pool({"toys": "toy_models:toys"}, workers=2) as pool:
        assert wait_until(lambda: sum(worker.pid > 0 for worker in pool.status().workers) == 2)
        folder = pool.endpoint.removeprefix("ipc://")
        supervisor, *others = processes_of(pool)
        named = named_sockets()
        assert len(others) >= 3  # a zygote and two workers
        assert [named[inode] for process in others for inode in inodes_of(process) if inode in named] == []
        ways_in = {named[inode] for inode in inodes_of(supervisor) if inode in named}
        assert ways_in == {f"{folder}/control", f"{folder}/requests"}
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert [process.net_connections("inet") for process in (supervisor, *others)] == [[]] * (len(others) + 1)


def test_tcp_is_listened_at_where_it_was_asked_for_and_by_the_supervisor_alone(tmp_path):
    toml = 'listen = ["tcp://127.0.0.1:*"]\n' + TOYS
    with standalone(tmp_path, toml) as served, Pool.connect(served.endpoint) as pool:
        assert wait_until(lambda: "listening at" in served.log.read_text())
        supervisor, *others = processes_of(pool)
        (listening,) = supervisor.net_connections("inet")
        assert (listening.laddr.ip, listening.status) == ("127.0.0.1", psutil.CONN_LISTEN)
        assert all(process.net_connections("inet") == [] for process in others)
