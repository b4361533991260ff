"""What every test gets: a check that it leaves nothing behind."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import warnings
from collections.abc import Iterator

import pytest
from leftovers import Census

os.environ.setdefault("HF_HUB_OFFLINE", "1")
faulthandler.enable()
# What a shell runs in the background ignores it, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail a test that leaves a process, descriptor, socket file or shared memory behind."""
    runtime = tmp_path_factory.mktemp("run", numbered=True)
    runtime.chmod(0o700)
    before_environment = {name: os.environ.get(name) for name in ("XDG_RUNTIME_DIR", "ONECOPY_CACHE_DIR")}
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    os.environ["ONECOPY_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache", numbered=True))
    before = Census.take(runtime)
    gc.freeze()  # what is there already need not be searched after every test, for a third of a second
    yield
    request.node.funcargs.clear()  # the values of other fixtures, which pytest would keep a little longer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
        gc.unfreeze()
    try:
        before.check_nothing_new(runtime)
    finally:
        for name, value in before_environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
