"""Another process, which knows of a frozen object only what travels: skeleton, manifest, regions."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from onecopy.protocol.frozen import thaw
from onecopy.protocol.mapping import map_region

MAX_FDS = 250
FOLDER = Path(__file__).parents[1]


class Elsewhere:
    """The process, and the way to it. One at a time is asked; it ends when this is closed."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "zoo.elsewhere", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": str(FOLDER)},
            )
        self._stream = self._socket.makefile("rwb")

    def run(self, frozen: Any, regions: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Thaw an object there, call it, and return what it returned."""
        socket.send_fds(self._socket, [b"."], [region.fd for region in regions])
        sizes_bytes = [region.size_bytes for region in regions]
        pickle.dump((frozen.skeleton, frozen.manifest, sizes_bytes, inputs), self._stream)
        self._stream.flush()
        outputs = pickle.load(self._stream)
        assert isinstance(outputs, dict), outputs
        return outputs

    def close(self) -> None:
        """End the process."""
        self._stream.close()
        self._socket.close()
        assert self._process.wait(30) == 0


def main(connection: socket.socket) -> None:
    """Thaw and run until the other side closes."""
    torch.set_num_threads(1)
    stream = connection.makefile("rwb")
    while True:
        marker, fds, _, _ = socket.recv_fds(connection, 1, MAX_FDS)
        if not marker:
            return
        skeleton, manifest, sizes_bytes, inputs = pickle.load(stream)
        mappings = [map_region(fd, size_bytes) for fd, size_bytes in zip(fds, sizes_bytes, strict=True)]
        for fd in fds:
            os.close(fd)
        answer: object
        try:
            with torch.inference_mode():  # in which thawing must not differ, too
                answer = thaw(skeleton, manifest, mappings)(inputs)
        except Exception:
            answer = traceback.format_exc()
        pickle.dump(answer, stream)
        stream.flush()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
