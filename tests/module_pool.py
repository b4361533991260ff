"""A pool for the tests of a module that change nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from leftovers import wait_until
from onecopy.pool import Pool


@contextmanager
def shared_pool(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Any], workers: int = 3
) -> Iterator[Pool]:
    """Make one whose sockets lie in a folder of its own, as each test's do, and whose workers may all run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("shared")))
        pool = Pool(models, workers=workers, slots=workers)
    with pool:
        # One that is still on its way up would look like something that the first test left behind.
        assert wait_until(lambda: sum(one.pid > 0 for one in pool.status().workers) == workers)
        yield pool
