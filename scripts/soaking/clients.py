"""Clients in processes of their own, and jobs of the command line: started, read to their end, and killed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from .books import Asked, Books, Key
from .journal import Entries
from .load import PATIENT

#: How long one that is to end may take: everything it has asked must be answered.
_END_S: Final = 60.0
_LINES: Final = 400
#: After so many interruptions a job is let be.
_MOST_TURNS: Final = 3


class Client:
    """A process that asks, and a thread that reads its notes.

    Args:
        endpoint: where it joins.
        name: what it is called; no two have the same.
        seed: of what it draws.
        entries, books: where its notes go.
    """

    def __init__(self, endpoint: str, name: str, seed: str, entries: Entries, books: Books, threads: int) -> None:
        self.name = name
        self.endpoint = endpoint
        self.was_killed = False
        self._entries = entries
        self._books = books
        command = [sys.executable, "-m", "soaking.client", endpoint, name, seed, str(threads)]
        # In a session of its own: Ctrl-C is for who keeps the books.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, name=f"reads {name}")
        self._reader.start()

    def kill(self) -> None:
        """Kill it; what it has asked and not been answered is nobody's."""
        self.was_killed = True
        self.process.kill()
        self._reader.join()

    def end(self) -> None:
        """Let it come to its end."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(_END_S)
        except (OSError, subprocess.TimeoutExpired):
            self._entries.complain(f"{self.name} does not come to its end")
            self.process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self._entries.enter(self.name, line)
        code = self.process.wait()
        with self._entries.lock:
            if self.was_killed:
                self._books.left(self.name)
                return
            self._books.settle(self.name)
            if code:
                self._books.complain(f"{self.name} ended with exit code {code}")


class Jobs:
    """One job of the command line after the other; one that is killed is resumed, and no line may be missing.

    Args:
        endpoint: where they join.
        folder: for their files.
        random: draws what they ask.
        entries, books: where their notes go.
    """

    def __init__(self, endpoint: str, folder: Path, random: Random, entries: Entries, books: Books) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._random = random
        self._entries = entries
        self._books = books
        self._process: subprocess.Popen[bytes] | None = None
        self.finished = 0

    def run(self, is_over: threading.Event) -> None:
        """Run jobs until told to stop."""
        for number in itertools.count(1):
            if is_over.is_set():
                return
            self._run_one(f"job {number}", self._folder / f"job-{number}")

    def kill(self) -> bool:
        """Kill the one that runs, if there is one."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        return True

    def _run_one(self, name: str, path: Path) -> None:
        whats = [
            ("small", f"{name}/{number}", self._random.randrange(1 << 16), 1 + number) for number in range(_LINES)
        ]
        asking = Path(f"{path}.in")
        asking.write_text("".join(json.dumps({"id": what[1], "args": [what[1:]]}) + "\n" for what in whats))
        with self._entries.lock:
            for number, what in enumerate(whats):
                self._books.asked(Key(name, number), Asked(time.monotonic(), "plain", what, PATIENT))
        answering = Path(f"{path}.out")
        turn = 0
        while turn == 0 or (self._process is not None and self._process.returncode < 0 and turn <= _MOST_TURNS):
            resume = ["--resume"] if answering.exists() else []
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "onecopy.pool.cli", "batch", "plain", "--method", "one",
                    "--input", str(asking), "--output", str(answering), "--retries", str(PATIENT),
                    "--endpoint", self._endpoint, *resume,
                ],
                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            said = self._process.communicate()[1].decode(errors="replace")
            turn += 1
        self._check(name, answering, said)
        for left in self._folder.glob(f"{path.name}.*"):
            os.unlink(left)

    def _check(self, name: str, path: Path, said: str) -> None:
        """Enter what has come, in order; a job that was killed too often has nothing more to come."""
        assert self._process is not None
        lines = path.read_text().splitlines() if path.exists() else []
        with self._entries.lock:
            for number, line in enumerate(lines):
                answer = _read(line)
                if "error" in answer:
                    self._books.failed(Key(name, number), answer["error"]["code"], time.monotonic(), line)
                else:
                    self._books.answered(Key(name, number), answer.get("result", line), time.monotonic())
            if self._process.returncode < 0:
                self._books.left(name)
                return
            self.finished += 1
            self._books.settle(name)
            if self._process.returncode:
                self._books.complain(f"{name} ended with exit code {self._process.returncode}: {said[-500:]}")


def wait_for(is_so: Callable[[], bool], timeout_s: float, every_s: float = 0.005) -> bool:
    """Wait until something is so; return whether it is."""
    end = time.monotonic() + timeout_s
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(every_s)
    return found


def _read(line: str) -> dict[str, object]:
    """Return a line of output; one that was cut off by a kill is as it is."""
    try:
        return json.loads(line)
    except ValueError:
        return {"result": line}
