"""Where modules of the user's own are found."""

from __future__ import annotations

import sys


def extend_path(paths: list[str]) -> None:
    """Let modules be found where the app finds them, after everything that is found already."""
    sys.path.extend(path for path in paths if path not in sys.path)
