"""The other side of a `Child`: run as ``python -m gpu_checking.child FD MODULE FUNCTION ARGUMENTS``."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import socket
import sys

from .children import Link
from .processes import die_with_parent


def main() -> None:
    """Run the function; end without tidying up, which could hang once a GPU context is broken."""
    die_with_parent()
    faulthandler.enable()
    descriptor, module, name, arguments = sys.argv[1:]
    link, code = Link(socket.socket(fileno=int(descriptor))), 0
    try:
        getattr(importlib.import_module(module), name)(link, *json.loads(arguments))
    except Exception as error:  # noqa: BLE001 - the parent gets whatever it is, and says it
        code = 1
        try:
            link.send(raised=type(error).__name__, text=" ".join(str(error).split())[:500])
        except OSError:
            print(repr(error), file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
