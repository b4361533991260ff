"""NVIDIA's control program of the Multi-Process Service without a GPU: its command line, its daemon, its answers.

It is strict: both folders must be there and be private, one daemon serves a folder, and a command that it does not
know is refused. A daemon has a server at once, in a session of its own, which ends only when it is told to. The
environment's STAND_IN_MPS may name a fault: `refuses` to start, starts and `never listens`, `never answers`,
`answers nonsense`, or `never quits`.
"""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

FAULT = os.environ.get("STAND_IN_MPS", "")
PIPES, LOGS = (Path(os.environ.get(f"CUDA_MPS_{kind}_DIRECTORY", "")) for kind in ("PIPE", "LOG"))
SERVER = "import signal; signal.pause()"


def is_private(folder):
    found = folder.stat()
    return stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.getuid()


def daemon():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = LOGS / "control.log"
    if FAULT == "refuses":
        log.write_text("Starting control daemon\nAn instance of this daemon is already running\n")
        return 1
    if FAULT == "never listens":
        signal.pause()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(PIPES / "control"))
        listener.listen()
        server = subprocess.Popen([sys.executable, "-c", SERVER], start_new_session=True)
        log.write_text(f"server {server.pid}, devices {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        return answer_all(listener, server)


def answer_all(listener, server):
    kept = []
    while True:
        connection, _ = listener.accept()
        command = connection.makefile().readline().split()
        if FAULT == "never answers" or (FAULT == "never quits" and command[0] == "quit"):
            kept.append(connection)
            continue
        with connection:
            connection.sendall(answer(command, server).encode())
        if command[0] == "quit":
            server.kill()
            server.wait()
            return 0


def answer(command, server):
    if FAULT == "answers nonsense":
        return "Cannot find MPS control daemon process\n"
    match command:
        case ["get_server_list"]:
            return f"{server.pid}\n"
        case ["get_client_list", pid] if int(pid) == server.pid:
            return ""
        case ["quit"] | ["quit", "-t", _]:
            return ""
    return f"Unknown command: {' '.join(command)}\n"


def ask():
    for command in sys.stdin:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(PIPES / "control"))
            except OSError:
                print("Cannot find MPS control daemon process")
                return 1
            connection.sendall(command.encode())
            sys.stdout.write(connection.makefile().read())
    return 0


if not (is_private(PIPES) and is_private(LOGS)):
    sys.exit("its folders must be private")
if sys.argv[1:] not in ([], ["-f"]):
    sys.exit("usage: nvidia-cuda-mps-control [-f]")
sys.exit(daemon() if sys.argv[1:] else ask())
