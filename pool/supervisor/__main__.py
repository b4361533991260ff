"""The supervisor process: ``python -m onecopy.pool.supervisor``, started by an app or by ``onecopy serve``."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys

from .init import serve_in_a_fork
from .owned import serve_owner
from .standalone import serve_standalone

#: Allocations until a collection, and collections until one of the next older generation.
COLLECT_AFTER = (100_000, 50, 100)


def main() -> int:
    """Serve the app at the other end of a socket, or a pool.toml; return the exit code."""
    parser = argparse.ArgumentParser(prog="onecopy.pool.supervisor")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--owner-fd", type=int, help="socket of the app that starts this process")
    which.add_argument("--config", help="path of a pool.toml")
    parser.add_argument(
        "--listen", action="append", default=[], help="tcp endpoint; beyond loopback with keys only"
    )
    parser.add_argument("--name", help="what the pool is called, instead of what the file says")
    parser.add_argument("--directory", help="folder for the sockets")
    parser.add_argument("--metrics", help="HOST:PORT where metrics are served")
    parser.add_argument("--metrics-public", action="store_true", default=None, help="even if that is not loopback")
    parser.add_argument("--log-format", help="text or json")
    parser.add_argument(
        "--place", action="append", default=[], help="MODEL=DEVICE; models are loaded in this order"
    )
    parser.add_argument("--mps", help="off, auto or on")
    options = parser.parse_args()
    # What a pool allocates goes by reference counts; collections would only visit all that waits, again and again.
    # So a cycle is as good as never freed, and nothing that is done often may leave one.
    gc.set_threshold(*COLLECT_AFTER)
    _raise_descriptor_limit()
    if os.getpid() == 1:
        serve_in_a_fork()
    if options.owner_fd is not None:
        return serve_owner(options.owner_fd)
    said = {key: getattr(options, key) for key in ("name", "metrics", "metrics_public", "log_format", "mps")}
    changes = {key: value for key, value in said.items() if value is not None}
    return serve_standalone(options.config, options.listen, options.directory, changes, options.place)


def _raise_descriptor_limit() -> None:
    """Use as many descriptors as the system allows: each worker takes four, each region one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
