"""Imported by every Python whose path has this folder: has a supervisor count its changes of state."""

import os
import sys

if "onecopy.pool.supervisor" in sys.orig_argv and "ONECOPY_SOAK_TRANSITIONS" in os.environ:
    from soaking.transitions import VARIABLE, Transitions

    Transitions(os.environ[VARIABLE]).count_here()
