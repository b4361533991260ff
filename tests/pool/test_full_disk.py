"""A pool whose disk is full: it loads, answers, and says what it could not keep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from standalone import environment

APP = """
    import json, os, sys
    sys.path.insert(0, {tests!r})
    from leftovers import wait_until
    from onecopy.pool import Model, Pool
    from toy_models import toys

    with Pool({{"first": Model(toys(), method="square")}}, workers=1) as pool:
        answers = [pool.run("first", 7)]
        pool.load("second", Model("toy_models:toys", method="square"))
        answers.append(pool.run("second", 7))
        told = lambda: [text for text in pool.status().notes if "is not remembered" in text]
        assert wait_until(told)
        pool.evict("second")
        answers.append(pool.run("second", 7))
        print(json.dumps([answers, told()]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is full")
def test_a_pool_whose_disk_is_full_answers_and_says_what_it_does_not_keep(tmp_path):
    full, app = tmp_path / "full", tmp_path / "app.py"
    full.mkdir()
    lines = APP.format(tests=str(Path(__file__).parents[1])).splitlines()
    app.write_text("\n".join(line.removeprefix("    ") for line in lines))
    script = (
        'mount -t tmpfs -o size=16k disk "$1" && ! head -c 1M /dev/zero > "$1/zeros" 2>/dev/null && exec "$2" "$3"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(full), sys.executable, str(app)],
        env=environment() | {"ONECOPY_CACHE_DIR": str(full), "TMPDIR": str(full)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers, told = json.loads(done.stdout)
    assert answers == [49, 49, 49]
    assert "No space left on device" in told[0]
