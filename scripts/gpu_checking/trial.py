"""The process of one fact: ``python -m gpu_checking.trial CATALOGUE FACT``; it speaks in JSON lines on stdout."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import traceback

from .check import Check, Untried
from .processes import die_with_parent


def main() -> None:
    """Try a fact; what an experiment prints by itself goes to stderr."""
    die_with_parent()
    faulthandler.enable()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    catalogue, name = sys.argv[1:]
    fact = next(one for one in importlib.import_module(catalogue).FACTS if one.name == name)
    try:
        fact.experiment(Check(output))
    except Untried as error:
        print(json.dumps({"broken": str(error)}), file=output)
    except Exception as error:  # noqa: BLE001 - it belongs in the report, whatever it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
        print(json.dumps({"broken": " ".join(said.split())[:600]}), file=output)
    output.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
