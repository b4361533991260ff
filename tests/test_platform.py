"""Where onecopy cannot run it says so in one sentence."""

from __future__ import annotations

import subprocess
import sys


def test_another_platform_is_refused_at_import():
    code = "import sys; sys.platform = 'darwin'; import onecopy.pool"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ImportError: onecopy runs on Linux alone: it is built on memfd, pidfd and SCM_RIGHTS"
    )
