"""Models by name: declared, loaded when first needed, replaced, unloaded; their weight sets with them."""

from __future__ import annotations

from typing import Any

from ...protocol.errors import InvalidRequest, ModelNotFound, PoolError
from ...protocol.messages import BuildModel, Done, Forget, LoadModel, Message, Record, Refused, Thaw
from .events import CallerKey, ModelBuilt
from .fleet import Fleet
from .instructions import FreeRegions, GrantRegions, Instruction, Report, ToCaller, ToChild
from .requests import Request
from .weights import MAX_THAW_DEATHS, Model, WeightSet
from .workers import Worker


class Library:
    """Decides about models and weight sets; the core tells it what happened.

    Args:
        fleet: whom to ask for loaders and imports.
        out: where instructions go.
    """

    def __init__(self, fleet: Fleet, out: list[Instruction]) -> None:
        self.models: dict[str, Model] = {}
        self.sets: dict[int, WeightSet] = {}
        self._fleet = fleet
        self._out = out
        self._numbers = 0
        self._loaders: dict[int, WeightSet] = {}

    # --- by name ------------------------------------------------------------------------------------------

    def find(self, name: str) -> Model:
        """Return a model that takes requests.

        Raises:
            ModelNotFound: none has this name; the message lists those there are.
        """
        model = self.models.get(name)
        if model is None or model.is_leaving:
            known = ", ".join(sorted(one.name for one in self.models.values() if not one.is_leaving))
            raise ModelNotFound(f"no model {name!r} here; there are: {known or 'none'}")
        return model

    def declare(self, caller: CallerKey, load: LoadModel, regions: tuple[Any, ...]) -> None:
        """Make a model available, or start to replace the one that has its name."""
        model = self.models.get(load.name)
        if model is not None and (model.is_leaving or model.successor is not None):
            doing = "unloaded" if model.is_leaving else "replaced by a newer version"
            error = InvalidRequest(f"model {load.name!r} is being {doing}; wait for that")
            self.refuse(caller, error, regions)
            return
        self._numbers += 1
        version = WeightSet(self._numbers, load, regions)
        self.sets[version.number] = version
        if model is None:
            model = self.models[load.name] = Model(load.name, version)
        else:
            model.successor = version
        is_replacing = model.successor is version
        if load.eager or is_replacing:
            version.waiting_for_load.append(caller)
        else:
            self._out.append(ToCaller(caller, Done("declared")))
        if load.eager or is_replacing or load.source == "frozen" or load.options.get("warm"):
            self.need(version)

    def refuse(self, caller: CallerKey, error: PoolError, regions: tuple[Any, ...] = ()) -> None:
        """Do not do what was asked for."""
        self._free(regions)
        self._out.append(ToCaller(caller, Refused(error.to_record())))

    def remove(self, caller: CallerKey, name: str) -> None:
        """Take no more requests for a model, and forget it once it has answered those it has."""
        try:
            model = self.find(name)
        except ModelNotFound as error:
            self.refuse(caller, error)
            return
        model.is_leaving = True
        model.waiting_for_unload.append(caller)
        self.leave_if_done(model)

    def leave_if_done(self, model: Model) -> None:
        """Forget a model that is leaving and has nothing left to answer."""
        if not model.is_leaving or model.unanswered:
            return
        del self.models[model.name]
        unloaded = ModelNotFound(f"model {model.name!r} was unloaded before it was loaded")
        versions = [model.current] + ([model.successor] if model.successor else [])
        model.current.unloaders = model.waiting_for_unload
        for version in versions:
            self._retire(version, Refused(unloaded.to_record()))

    # --- loading ------------------------------------------------------------------------------------------

    def need_answers(self, model: Model) -> None:
        """See to it that some version will answer a model's queue; one that is on its way will do."""
        if model.successor is None:
            self.need(model.current)

    def need(self, version: WeightSet) -> None:
        """See to it that a weight set becomes ready; a second call while it does changes nothing."""
        if version.life.state not in ("declared", "failed"):
            return
        if version.load.source == "frozen":
            self._adopt(version)
            return
        version.life.become("building")
        version.error = None
        self._start_loader(version)

    def built(self, event: ModelBuilt) -> None:
        """A loader is done."""
        version = self._loaders.pop(event.child, None)
        if version is None:  # nobody wants it any more
            self._free(event.regions)
            return
        version.loader = 0
        version.manifest, version.skeleton = event.manifest, event.skeleton
        version.modules, version.regions = event.modules, event.regions
        self._adopt(version)

    def build_failed(self, child: int, error: Record) -> list[Request]:
        """A loader gave up; return the requests that nothing will answer now."""
        version = self._loaders.pop(child, None)
        if version is None:
            return []
        version.loader = 0
        version.error = error
        version.life.become("failed")
        model = self.models[version.load.name]
        self._tell(version.waiting_for_load, Refused(error))
        if version is model.successor:
            model.successor = None
            self._retire(version, Refused(error))
        if model.successor is not None or not model.queue:
            return []
        if model.current.life.state == "failed":
            return list(model.queue)
        self.need(model.current)  # the queue had waited for the successor
        return []

    def loader_exited(self, child: int, *, was_forked: bool) -> bool:
        """A loader is gone; true if that ends a load (the caller reports why), false if it is of no matter."""
        version = self._loaders.get(child)
        if version is not None and not was_forked:  # the zygote died before it came to this
            del self._loaders[child]
            self._start_loader(version)
            version = None
        self._fleet.loader_exited(child)
        return version is not None

    def grant(self, child: int, sizes_bytes: list[int]) -> None:
        """A loader asks for memory."""
        if child in self._loaders:
            self._out.append(GrantRegions(child, sizes_bytes))

    def adopted(self) -> list[Model]:
        """Imports are done: return the models whose weight sets became ready by it."""
        ready: list[Model] = []
        for version in list(self.sets.values()):  # a version that takes over frees another
            if version.life.state == "adopting" and version.generation <= self._fleet.generation:
                version.life.become("ready")
                ready.append(self._took_over(version))
        return ready

    def _start_loader(self, version: WeightSet) -> None:
        load = version.load
        order = BuildModel(load.name, load.source, load.options, load.manifest, load.pickled, load.paths)
        version.loader = self._fleet.fork_loader(order)
        self._loaders[version.loader] = version

    def _adopt(self, version: WeightSet) -> None:
        version.life.become("adopting")
        version.generation = self._fleet.need_modules(version.modules, version.load.paths)

    def _took_over(self, version: WeightSet) -> Model:
        model = self.models[version.load.name]
        if version is model.successor:
            model.successor, retired = None, model.current
            model.current, model.expected_s = version, None
            self._retire(retired, Done("replaced by a newer version"))
        self._tell(version.waiting_for_load, Done("loaded"))
        return model

    # --- holders ------------------------------------------------------------------------------------------

    def give(self, version: WeightSet, worker: Worker, *, eager: bool) -> None:
        """Hand a weight set to a worker that does not hold it yet."""
        if version.number in worker.holds:
            return
        worker.holds.add(version.number)
        version.holders.add(worker.child)
        if eager:
            worker.thawing[version.number] = None
        load = version.load
        order = Thaw(
            version.number, load.name, load.options, version.manifest, version.skeleton, load.paths, eager
        )
        self._out.append(ToChild(worker.child, order, [], version.regions))

    def warm(self, worker: Worker) -> None:
        """Hand an idle worker every weight set that shall be warm."""
        for model in self.models.values():
            if model.current.is_ready and model.current.is_warm:
                self.give(model.current, worker, eager=True)

    def forgot(self, worker: Worker, number: int) -> None:
        """A worker has unmapped a weight set."""
        worker.holds.discard(number)
        worker.thawing.pop(number, None)
        self._dropped_by(worker.child, number)

    def worker_died(self, worker: Worker, begun: int) -> None:
        """A worker is gone, and with it all that it had mapped."""
        if worker.thawing and not begun:
            self._died_thawing(self.sets[next(iter(worker.thawing))])
        for number in worker.holds:
            self._dropped_by(worker.child, number)
        worker.holds.clear()

    def _died_thawing(self, version: WeightSet) -> None:
        """Do not let one warm model kill worker after worker, from which all models would suffer."""
        version.thaw_deaths += 1
        if version.thaw_deaths == MAX_THAW_DEATHS:
            text = f"{version.thaw_deaths} workers died when they were to thaw it; it is thawed when it is run"
            self._out.append(Report(f"{version.load.name} is not kept warm: {text}"))

    def _retire(self, version: WeightSet, answer: Message) -> None:
        """Free a weight set as soon as nobody holds it; ``answer`` is for who still waits for it."""
        self._tell(version.waiting_for_load, answer)
        if version.life.state == "building":
            del self._loaders[version.loader]
            self._fleet.give_up_loader(version.loader)
        if version.holders:
            version.life.become("draining")
            for child in sorted(version.holders):
                self._out.append(ToChild(child, Forget(version.number), [], ()))
        else:
            self._freed(version)

    def _dropped_by(self, child: int, number: int) -> None:
        version = self.sets.get(number)
        if version is None:
            return
        version.holders.discard(child)
        if version.life.state == "draining" and not version.holders:
            self._freed(version)

    def _freed(self, version: WeightSet) -> None:
        version.life.become("freed")
        del self.sets[version.number]
        self._free(version.regions)
        version.regions = ()
        self._tell(version.unloaders, Done("unloaded"))

    def _free(self, regions: tuple[Any, ...]) -> None:
        if regions:
            self._out.append(FreeRegions(regions))

    def _tell(self, callers: list[CallerKey], answer: Message) -> None:
        for caller in callers:
            self._out.append(ToCaller(caller, answer))
        callers.clear()
