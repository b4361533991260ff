"""Processes that stand still, starve, or never come."""

from __future__ import annotations

import os
import time
from typing import Final

from onecopy.protocol.errors import PoolError

from . import census
from .attack import NotPermitted
from .clients import wait_for
from .group import MemoryGroup
from .load import PATIENT
from .own import Actor, Aims, beside

#: What a worker may take that the kernel watches.
_STARVING_BYTES: Final = 4 << 20


class ProcessActs(Actor):
    """What machines do to processes."""

    @property
    def aims(self) -> Aims:
        """See `Actor`."""
        return {
            self.kill_while_zygote_stops: ("worker: starting -> dead",),
            self.stop_somebody: (),
            self.starve: ("slot: leased -> lost",),
        }  # fmt: skip

    def kill_while_zygote_stops(self) -> None:
        """Have a worker ordered from a zygote that never forks it."""
        for zygote in self._attack.zygotes[:1]:
            with census.stopped([zygote], self._attack.runtime):
                for worker in census.children_of(zygote)[:1]:
                    self._attack.kill("kill a worker", worker)
                wait_for(lambda: any(not one.pid for one in self._pool.status().workers), 2.0)
                self._attack.kill("kill a zygote", zygote)

    def stop_somebody(self) -> None:
        """Let somebody stand still for a while."""
        status = self._pool.status()
        workers = [one.pid for one in status.workers if one.pid]
        somebody = [*workers, status.pid, *self._attack.zygotes, *census.children_of(os.getpid())]
        with census.stopped([self._random.choice(somebody)], self._attack.runtime):
            time.sleep(self._random.uniform(0.05, 0.7))

    def starve(self) -> None:
        """Let the kernel kill a worker for want of memory."""
        try:
            group = MemoryGroup(_STARVING_BYTES)
        except OSError as error:
            raise NotPermitted(str(error)) from error
        try:
            for worker in [one.pid for one in self._pool.status().workers if one.pid][:1]:
                self._attack.entries.died()
                group.add(worker)
                with beside(self._hog):
                    wait_for(lambda: group.kills > 0, 2.0)
                    self._attack.done["killed by the kernel"] += group.kills
                    group.release()
        finally:
            wait_for(group.remove, 2.0)

    def _hog(self) -> None:
        """Have workers take more memory than there is for one of them."""
        begun_at = time.monotonic()
        futures = [
            self._pool.model("plain", method="hog", retries=PATIENT).submit("hog", 4 * _STARVING_BYTES)
            for _ in range(8)
        ]
        for future in futures:
            try:
                future.result()
            except PoolError as error:
                self._attack.judge("hog", "plain", error, begun_at)
