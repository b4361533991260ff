"""Models that are loaded, replaced and unloaded, at moments that are not convenient."""

from __future__ import annotations

import time
from typing import Final

from onecopy.pool import Model
from onecopy.protocol.errors import PoolError

from . import census, pattern
from .clients import wait_for
from .load import PASSING
from .models import Stamp
from .own import LARGE, OWN, STAMP, Actor, Aims, beside

LATE: Final = "soaking.models:late"
FAILING: Final = "soaking.models:failing"
_SLOW_MODULE: Final = """
import time
from soaking.models import Stamp
time.sleep(0.5)
class Slow(Stamp): pass
"""


class ModelActs(Actor):
    """What an administrator may do with models."""

    @property
    def aims(self) -> Aims:
        """See `Actor`."""
        return {
            self.swap: ("region: filling -> sealed", "weight set: ready -> draining"),
            self.swap_object: ("weight set: declared -> adopting",),
            self.come_and_go: ("weight set: draining -> freed", "region: sealed -> freed"),
            self.never_need: ("weight set: declared -> freed",),
            self.never_run: ("weight set: ready -> freed",),
            self.fail_to_load: (
                "weight set: building -> failed", "weight set: failed -> building", "weight set: failed -> freed",
            ),
            self.unload_while_building: ("weight set: building -> freed",),
            self.kill_while_filling: ("region: filling -> freed",),
            self.unload_while_adopting: ("weight set: adopting -> freed",),
            self.own_ring: ("slot: free -> freed",),
            self.attach: (),
        }  # fmt: skip

    def swap(self) -> None:
        """Replace a model by a newer version."""
        seed = self._attack.new_seed()
        self._attack.load("swapped", seed, Model(STAMP, args=(seed,)))

    def swap_object(self) -> None:
        """Replace a model by an object of this process."""
        seed = self._attack.new_seed()
        self._attack.load("handed", seed, Model(Stamp(seed)))

    def come_and_go(self) -> None:
        """Load a model, warm or not, that is asked for, and unload it."""
        name, seed = self._random.choice(PASSING), self._attack.new_seed()
        warm = self._random.random() < 0.3
        self._attack.load(name, seed, Model(STAMP, args=(seed,), warm=warm))
        self._rest(0.5)
        self._attack.attempt("unload", name, "model_not_found")

    def never_need(self) -> None:
        """Declare a model and unload it before anybody has asked for it."""
        self._own.load(eager=False)

    def never_run(self) -> None:
        """Load a model and unload it before any worker has run it."""
        self._own.load()

    def fail_to_load(self) -> None:
        """Ask twice for a model that cannot be loaded."""
        seed = self._attack.new_seed()
        self._attack.load(OWN, seed, Model(FAILING, args=(seed,)), eager=False)
        for _ in range(2):
            try:
                self._pool.run(OWN, "x", 0, 1)
                self._attack.entries.complain("a model that cannot be built has answered")
            except PoolError as error:
                self._attack.judge("run", OWN, error, time.monotonic(), "load_failed")

    def unload_while_building(self) -> None:
        """Unload a model while its loader is at it."""
        with beside(lambda: self._own.load(LATE, 1.0)):
            wait_for(lambda: self._own.state == "building", 2.0)
            self._own.unload()

    def kill_while_filling(self) -> None:
        """Kill a loader while it writes weights."""
        with beside(lambda: self._own.load(STAMP, LARGE)):
            before = census.descriptors(self._attack.supervisor)["/memfd"]
            wait_for(lambda: census.descriptors(self._attack.supervisor)["/memfd"] > before, 3.0, 0.001)
            for pid in self._attack.others():
                self._attack.kill("kill a loader", pid)

    def unload_while_adopting(self) -> None:
        """Unload a model while the zygote imports what it needs, which no other does."""
        module = f"slow_{self._attack.new_seed()}"
        (self._attack.folder / "modules" / f"{module}.py").write_text(_SLOW_MODULE)
        with beside(lambda: self._own.load(f"{module}:Slow")):
            wait_for(lambda: self._own.state == "adopting", 3.0)
            self._own.unload()

    def own_ring(self) -> None:
        """Run a model that has slots of its own."""
        if self._own.load(workspace="own"):
            self._own.ask()

    def attach(self) -> None:
        """Have a model in this process, and go on using it when the pool has forgotten it."""
        seed = self._attack.new_seed()
        if not self._attack.load(OWN, seed, Model(STAMP, args=(seed,))):
            return
        begun_at = time.monotonic()
        try:
            model = self._pool.attach(OWN)
        except PoolError as error:
            self._attack.judge("attach", OWN, error, begun_at)
            return
        self._own.unload()
        if model("own", 0, pattern.SIZE) != ["own", seed, pattern.figure(seed, 0, pattern.SIZE)]:
            self._attack.entries.complain("an attached model has other weights than it was loaded with")
