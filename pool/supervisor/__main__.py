"""The supervisor process: ``python -m onecopy.pool.supervisor``, started by an app or by ``onecopy serve``."""

from __future__ import annotations

import argparse
import gc
import sys

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
    parser.add_argument("--listen", action="append", default=[], help="tcp endpoint on loopback")
    parser.add_argument("--name", help="what the pool is called, instead of what the file says")
    parser.add_argument("--directory", help="folder for the sockets")
    options = parser.parse_args()
    # What a pool allocates goes by reference counts; collections would only visit all that waits, again and again.
    gc.set_threshold(*COLLECT_AFTER)
    if options.owner_fd is not None:
        return serve_owner(options.owner_fd)
    return serve_standalone(options.config, options.listen, options.directory, options.name)


if __name__ == "__main__":
    sys.exit(main())
