"""A peer's processes, seen from outside, and their end.

In an interpreter of its own, which has no other children than those of the test.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


def run(code, *arguments):
    """Run code that prints JSON."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_shared_memory_of_several_processes_is_counted_once_though_nobody_has_touched_it():
    found = run("""
import json, mmap, os, sys
from peers.processes import footprint
before = footprint([os.getpid()])
fd = os.memfd_create("weights")
os.posix_fallocate(fd, 0, 64 << 20)
view = mmap.mmap(fd, 64 << 20)
ours, theirs = os.pipe()
children = []
for _ in range(2):
    if not (pid := os.fork()):
        os.read(ours, 1)
        os._exit(0)
    children.append(pid)
after = footprint([os.getpid(), *children])
os.write(theirs, b"xx")
for pid in children:
    os.waitpid(pid, 0)
print(json.dumps([after.shared_bytes - before.shared_bytes, after.processes]))
""")
    assert found == [64 << 20, 3]


def test_private_memory_is_counted_where_it_is():
    found = run("""
import json, os
from peers.processes import footprint
before = footprint([os.getpid()])
held = os.urandom(32 << 20)
print(json.dumps(footprint([os.getpid()]).anonymous_bytes - before.anonymous_bytes))
""")
    assert 32 << 20 <= found < 36 << 20


def test_names_in_shared_memory_go_unless_they_were_there_before_or_are_used():
    found = run("""
import json, os
from multiprocessing.shared_memory import SharedMemory
from peers.processes import SHARED_MEMORY, remove_left_shared_memory
kept, used = SharedMemory(create=True, size=1), SharedMemory(create=True, size=1)
left = f"{SHARED_MEMORY}/left-{os.getpid()}"
open(left, "w").close()
remove_left_shared_memory(set(os.listdir(SHARED_MEMORY)) - {used.name, os.path.basename(left)})
names = (kept.name, used.name, os.path.basename(left))
print(json.dumps([name in os.listdir(SHARED_MEMORY) for name in names]))
for memory in (kept, used):
    memory.close()
    memory.unlink()
""")
    assert found == [True, True, False]


def test_processes_are_ended_that_have_left_their_session_and_lost_their_parent():
    found = run("""
import json, os, signal, psutil
from peers.processes import adopt_orphans, descendants, end_all
adopt_orphans()
ours, theirs = os.pipe()
if not os.fork():
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork():
        os._exit(0)  # the one below is an orphan now
    os.write(theirs, str(os.getpid()).encode())
    while True:
        signal.pause()
orphan = int(os.read(ours, 20))
end_all()
print(json.dumps([orphan, psutil.pid_exists(orphan), descendants(os.getpid())]))
""")
    assert found[1:] == [False, []]
