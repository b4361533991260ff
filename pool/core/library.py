"""Models by name: declared, loaded when first needed, replaced, unloaded; their weight sets with them."""

from __future__ import annotations

from typing import TypeGuard

from ...protocol.errors import InvalidRequest, ModelNotFound, PoolError
from ...protocol.messages import BuildModel, Done, LoadModel, Message, ModelBuilt, Record, Refused
from .admission import Admission
from .events import CallerKey, ModelArrived
from .fleet import Fleet
from .guests import loader_of
from .holdings import Holdings
from .instructions import Instruction, Report, ToCaller
from .predictions import Predictions, is_overdue
from .regions import FillerKey, Regions
from .requests import Request
from .seen import Seen, merged
from .warming import Warming
from .weights import ROOM, Model, WeightSet
from .workspace import Workspace


class Library:
    """Decides about models and weight sets; the core tells it what happened.

    Args:
        fleet: whom to ask for loaders and imports.
        regions, workspace, admission: what memory there is, and who waits for it.
        predictions: what loads should take.
        out: where instructions go.
        all_libraries: those of all devices; this one is added.
    """

    def __init__(
        self,
        fleet: Fleet,
        regions: Regions,
        workspace: Workspace,
        admission: Admission,
        predictions: Predictions,
        out: list[Instruction],
        all_libraries: list[Library],
    ) -> None:
        self.models: dict[str, Model] = {}
        self._all_libraries = all_libraries
        all_libraries.append(self)
        self.holdings = Holdings(regions, workspace, admission, predictions, out)
        self.warming = Warming(fleet, self.holdings, out)
        self._fleet = fleet
        self._out = out
        self._admission = admission
        self.predictions = predictions
        self._loaders: dict[int, WeightSet] = {}
        self._postponed: list[WeightSet] = []

    # --- by name ------------------------------------------------------------------------------------------

    def find(self, name: str) -> Model:
        """Return a model that takes requests.

        Raises:
            ModelNotFound: none has this name; the message lists those there are.
        """
        model = self.models.get(name)
        if model is None or model.is_leaving or model.is_part:
            models = [one for library in self._all_libraries for one in library.models.values()]
            known = ", ".join(sorted({one.name for one in models if not (one.is_leaving or one.is_part)}))
            raise ModelNotFound(f"no model {name!r} here; there are: {known or 'none'}")
        return model

    def declare(self, caller: CallerKey, load: LoadModel) -> None:
        """Make a model available, or start to replace the one that has its name."""
        model = self.models.get(load.name)
        if model is not None and (model.is_leaving or model.successor is not None):
            doing = "unloaded" if model.is_leaving else "replaced by a newer version"
            self.refuse(caller, InvalidRequest(f"model {load.name!r} is being {doing}; wait for that"))
            return
        try:
            version = self.holdings.add(load, caller)
        except InvalidRequest as error:
            self.refuse(caller, error)
            return
        self.holdings.let_go(caller)
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

    def refuse(self, caller: CallerKey, error: PoolError) -> None:
        """Do not do what was asked for."""
        self.holdings.let_go(caller)
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

    def release_part(self, name: str) -> None:
        """Forget what lies here of a model on another device."""
        model = self.models[name]
        model.is_leaving = True
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

    # --- to another device, and from one --------------------------------------------------------------------

    def may_depart(self, model: Model) -> bool:
        """Whether nothing of a model is here but what builds it: no other version, and none that runs yet."""
        version = model.current
        is_building = version.life.state == "building" and version.loader in self._loaders
        is_new = is_building and not (version.evictions or version.regions)
        is_idle = model.unanswered == len(model.queue)
        return is_new and is_idle and model.successor is None and not model.is_leaving

    def depart(self, model: Model) -> ModelArrived:
        """Let a model go that is being built, with all that waits for it; its requests are still this device's."""
        version = model.current
        del self._loaders[version.loader]
        self.holdings.let_go(version.loader)
        self._fleet.give_up_loader(version.loader)
        departure = ModelArrived(
            version.load, version.waiting_for_load[:], version.waiting_to_attach[:], list(model.queue),
            version.refusals, version.room, model.is_pinned,
        )  # fmt: skip
        version.waiting_for_load.clear()
        version.waiting_to_attach.clear()
        del self.models[model.name]
        self.holdings.retire(version, Done("it is on another device"))
        return departure

    def arrive(self, arrived: ModelArrived) -> Model:
        """Take in a model that comes from another device."""
        version = self.holdings.add(arrived.load)
        version.refusals, version.room = arrived.refusals, arrived.room
        version.waiting_for_load += arrived.waiting_for_load
        version.waiting_to_attach += arrived.waiting_to_attach
        model = self.models[arrived.load.name] = Model(arrived.load.name, version)
        model.is_pinned = arrived.is_pinned
        return model

    # --- loading ------------------------------------------------------------------------------------------

    def need_answers(self, model: Model) -> None:
        """See to it that some version will answer a model's queue; one that is on its way will do."""
        if model.successor is None:
            self.need(model.current)

    def need(self, version: WeightSet) -> None:
        """See to it that a weight set becomes ready; a second call while it does changes nothing."""
        if version.life.state == "evicted" and not version.is_given_up:
            version.life.become("returning")
            self._admission.bring_back(version)
            return
        if version.life.state not in ("declared", "failed", "evicted"):
            return
        if version.load.source == "frozen" and not self.holdings.regions.is_gpu:
            self._adopt(version)
            return
        version.life.become("building")
        version.is_given_up = False
        version.error = None
        self._start_loader(version)

    def built(self, child: int, built: ModelBuilt) -> None:
        """A loader is done.

        Raises:
            InvalidRequest: it names regions that it has not filled.
        """
        version = self._loaders.get(child)
        if version is None:  # nobody wants it any more
            self.holdings.let_go(child)
            return
        own = self.holdings.regions.own(built.regions)
        self.holdings.regions.unuse(version.number, version.regions)  # what it was built from
        self.holdings.regions.use(child, version.number, own)
        del self._loaders[child]
        version.loader = 0
        version.seen = merged(version.seen, Seen(loader_bytes=self._admission.ledger.loader_bytes(child)))
        version.manifest, version.skeleton = built.manifest, built.skeleton
        version.modules, version.regions, version.layout = built.modules, tuple(own), tuple(built.regions)
        if built.rebuild:
            load = version.load
            version.recipe = [load.source, load.manifest, load.pickled]
        version.notes = built.notes
        for note in built.notes:
            self._out.append(Report(f"{version.load.name}: {note}"))
        self.holdings.let_go(child)
        self._adopt(version)

    def loader_forked(self, child: int, now: float) -> None:
        """A loader is there; what it takes until its weights are ready is what they cost."""
        if child in self._loaders:
            self._loaders[child].forked_at = now

    def loaded(self, version: WeightSet, now: float) -> None:
        """A weight set has become ready; what lies of it on other devices is not seen here."""
        load_s = None if version.forked_at is None else now - version.forked_at
        if version.evictions > version.returns:
            version.returns, version.return_s = version.returns + 1, load_s or 0.0
        records = [self.holdings.regions[number] for number in dict.fromkeys(version.regions)]
        weights_bytes = sum(record.size_bytes for record in records if not record.is_elsewhere)
        self.predictions.saw(
            version,
            Seen(
                weights_bytes=None if version.is_divided else weights_bytes,
                load_s=load_s,
            ),
        )

    def thawed(self, number: int, private_bytes: int, opaque: dict[str, str]) -> None:
        """A process of the pool has thawed a weight set, which took so much besides the regions."""
        version = self.holdings.sets.get(number)
        if version is not None:
            version.private_bytes, version.opaque = private_bytes, opaque
            self.predictions.saw(version, Seen(private_bytes=private_bytes))

    def overdue_loaders(self, now: float) -> list[int]:
        """Return the loaders that take far longer than expected."""
        return [child for child, version in self._loaders.items() if is_overdue(version, now)]

    def build_failed(self, child: int, error: Record) -> list[Request]:
        """A loader gave up; return the requests that nothing will answer now."""
        version = self._loaders.pop(child, None)
        if version is None:
            return []
        self._admission.drop_filler(child)
        version.loader = 0
        version.error = error
        version.begin_anew()
        version.life.become("failed")
        model = self.models[version.load.name]
        self.holdings.tell(version.waiting_for_load, Refused(error))
        self.holdings.tell(version.waiting_to_attach, Refused(error))
        if version is model.successor:
            model.successor = None
            self._retire(version, Refused(error))
        if model.successor is not None or not model.queue:
            return []
        if model.current.life.state == "failed":
            return list(model.queue)
        self.need(model.current)  # the queue had waited for the successor
        return []

    def built_by(self, child: int) -> WeightSet | None:
        """Return the weight set that a loader builds; None if nobody wants it."""
        return self._loaders.get(child)

    def is_loading(self, filler: FillerKey) -> TypeGuard[int]:
        """Whether this is a loader, and somebody wants what it builds."""
        return type(filler) is int and filler in self._loaders

    def loaded_by(self, filler: FillerKey) -> str:
        """Return the name of the model that a loader builds; empty if this is none."""
        return self._loaders[filler].load.name if self.is_loading(filler) else ""

    def has_active_loads(self, *, but: FillerKey) -> bool:
        """Whether somebody else loads, or hands over, and does not wait for memory itself, on whichever device."""
        active = (*self._loaders, *self.holdings.regions.fillers())
        waiting = [loader_of(one) for library in self._all_libraries for one in library.waiting_fillers()]
        return any(not (one == but or loader_of(one) in waiting or self._fleet.is_to_fork(one)) for one in active)

    def waiting_fillers(self) -> list[FillerKey]:
        """Return all who fill regions and wait for memory here."""
        return self._admission.waiting_fillers()

    @property
    def has_postponed(self) -> bool:
        """Whether loads are to begin anew."""
        return bool(self._postponed)

    def postpone(self, child: int) -> None:
        """Give a load up that waits for memory which others need first; it begins anew with `resume_postponed`."""
        version = self._loaders.pop(child)
        self.holdings.let_go(child)
        self._fleet.give_up_loader(child)
        self._postponed.append(version)

    def resume_postponed(self) -> None:
        """Begin those loads anew, one after another."""
        while self._postponed and not self._loaders:
            version = self._postponed.pop(0)
            if version.life.state == "building":
                version.begin_anew()
                self._start_loader(version)

    def loader_exited(self, child: int, *, was_forked: bool) -> bool:
        """A loader is gone; true if that ends a load (the caller reports why), false if it is of no matter."""
        self.holdings.let_go(child)
        version = self._loaders.get(child)
        if version is not None and not was_forked:  # the zygote died before it came to this
            del self._loaders[child]
            self._start_loader(version)
            version = None
        self._fleet.loader_exited(child)
        return version is not None

    def adopted(self) -> list[Model]:
        """Imports are done: return the models whose weight sets became ready by it."""
        ready: list[Model] = []
        for version in list(self.holdings.sets.values()):  # a version that takes over frees another
            if version.life.state == "adopting" and version.generation <= self._fleet.zygote.generation:
                version.life.become("ready")
                ready.append(self._took_over(version))
        return ready

    def attach(self, caller: CallerKey, name: str) -> None:
        """Hand a model's weights to somebody at the unix socket, once they are loaded."""
        try:
            model = self.find(name)
        except ModelNotFound as error:
            self.refuse(caller, error)
            return
        version = model.current
        if not version.is_ready and model.successor is not None:
            version = model.successor
        self.holdings.attach(version, caller)
        self.need(version)

    def file_changed(self, number: int, error: Record) -> list[Request]:
        """A file that is a region is not what it was: load anew what lies in it, when it is needed again.

        It may be a region of another device, with a part of a model of this one.

        Returns:
            The requests that waited for what is not to be had any more.
        """
        failed: list[Request] = []
        for version in [one for one in self.holdings.sets.values() if number in one.layout]:
            model = self.models.get(version.load.name)
            if version.life.state not in ("adopting", "ready") or model is None or model.current is not version:
                continue
            if version.load.source == "frozen":  # nobody here could load it anew; a part goes with its model
                continue
            model.replace(self.holdings.add(version.load))
            model.current.error = error
            self._retire(version, Refused(error))
            failed += model.queue
        return failed

    def _start_loader(self, version: WeightSet) -> None:
        load = version.load
        options = {**load.options, ROOM: version.room} if version.room else load.options
        order = BuildModel(load.name, load.source, options, load.manifest, load.pickled, load.paths)
        version.forked_at = None
        # Of an object the modules are known. What is in its regions is made an object again by the loader.
        generation = self._fleet.zygote.need_modules(load.modules, load.paths) if load.modules else 0
        version.loader = self._fleet.fork_loader(
            order, version.expected.loader_bytes or 0, load.regions, generation
        )
        self._loaders[version.loader] = version

    def _adopt(self, version: WeightSet) -> None:
        version.life.become("adopting")
        version.generation = self._fleet.zygote.need_modules(version.modules, version.load.paths)

    def _took_over(self, version: WeightSet) -> Model:
        model = self.models[version.load.name]
        if version is model.successor:
            model.successor, retired = None, model.current
            model.replace(version)
            self._retire(retired, Done("replaced by a newer version"))
        self.holdings.tell(version.waiting_for_load, Done("loaded"))
        self.holdings.attach_waiting(version)
        if version.is_warm:
            self.warming.want(version)
        return model

    def _retire(self, version: WeightSet, answer: Message) -> None:
        if version.life.state == "building" and self._loaders.pop(version.loader, None) is not None:
            self._admission.drop_filler(version.loader)
            self._fleet.give_up_loader(version.loader)
        self.warming.drop(version)
        self.holdings.retire(version, answer)
