"""`Pool`: what an app imports."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from ..protocol.errors import InvalidRequest
from ..protocol.messages import UnloadModel
from . import environment
from .at_exit import shut_down_at_exit
from .attach import attach
from .checks import check_name, read_size
from .connection import Connection
from .control import ControlSocket
from .devices import DeviceSettings, read_devices
from .executor import PoolExecutor
from .futures import PoolFuture
from .handle import ModelHandle
from .handover import hand_over
from .launch import OwnedSupervisor
from .memory_views import Memory
from .model import Model, as_model, named_models
from .options import RequestOptions
from .residence import Residence
from .settings import MAILBOX_BYTES, Settings, read_workers
from .sources import app_paths, load_by_factory, load_by_name
from .streams import ITEMS_AHEAD, AsyncStream, Stream
from .views import ModelInfo, Status

if TYPE_CHECKING:
    from .planning.views import Plan


class Pool(Residence):
    """A pool of worker processes that run models on one copy of their weights.

    ``Pool(models, workers=8)`` starts a supervisor that belongs to this process and ends with it; it returns
    when the supervisor serves, not when every model is loaded. ``Pool.connect()`` joins one that runs.
    Any number of threads may use it, but no fork: connect anew there. It ends once nobody refers to it.

    Args:
        models: a model, or a mapping of names to models. A model is a `Model` or what may be its ``source``:
            an object with tensors, a factory, or ``"package.module:name"``. One model alone is named "model".
        workers: how many worker processes, on each device; default: its cores. ``(1, 8)``: at least one, and up
            to eight as long as requests wait for one. ``"auto"``: from one to the cores.
        slots: how many of them may run at once; default: the workers, at most the cores.
        adaptive: let the number of those that run at once follow what gives the highest throughput, up to
            ``slots``; default: where ``slots`` is not given.
        threads: threads that torch uses in one run; default: cores divided by slots.
        pin: let the runs that are under way at once use cores of their own, where there are enough. Where several
            pools share a machine, leave that to the system: they would all take the same cores first.
        slot: how much memory each slot may take, in bytes or as ``"256MiB"``; default: as much as its models turn
            out to need.
        mailbox: how much shared memory each client may use for large arrays, in bytes or as ``"256MiB"``; with 0
            they travel through sockets, which is slower.
        devices: how much memory the pool may take of each device, such as
            ``{"cpu": {"budget": "2GiB", "reserve": "512MiB"}}``. ``budget`` is the most that weights, slots,
            mailboxes and private memory of all its processes may take together; default: all that this machine or
            container has but the reserve. ``reserve`` is what it leaves free for others; default: a twentieth of
            that, at most 1 GiB. Weights that lie idle leave memory for the disk when others need the room, and
            come back when they are needed; what cannot fit is refused.
            Several of the names ``cpu:0``, ``cpu:1`` and so on divide the machine, ``"numa"`` does by its nodes:
            each device has a budget, ``cores``, ``workers``, ``slots`` and ``threads`` of its own (default: an
            equal part of memory and cores, and what is said here for the rest), and its own copy of the weights of
            the models that live there. ``cuda:0`` and so on are GPUs, ``"cuda"`` all of them: see docs/gpu.md.
        max_private: a worker whose private memory grows beyond this, in bytes or as ``"2GiB"``, is replaced
            between two requests; default: never.
        name: what the pool is called in status and logs.
        metrics: ``HOST:PORT`` where metrics and health are served over HTTP as long as the pool lives; default:
            nowhere. It needs ``pip install 'onecopy[metrics]'``.
        metrics_public: whether that may be beyond loopback, where anyone may read them.
        mps: whether processes compute on a GPU at the same time, by NVIDIA's Multi-Process Service, instead of in
            turns: ``"off"``; ``"auto"``, where that can be; ``"on"``, or the pool does not start. A fault of one
            process ends all of them then.

    Raises:
        ConfigError: a setting or model cannot be.
        LoadFailed: an object cannot be handed over.
        OutOfBudget: its copy does not fit into memory.
        SupervisorLost: the supervisor did not start.
    """

    def __init__(
        self,
        models: Any,
        *,
        workers: int | tuple[int, int] | Literal["auto"] | None = None,
        slots: int | None = None,
        adaptive: bool | None = None,
        threads: int | None = None,
        pin: bool = True,
        slot: int | str = 0,
        mailbox: int | str = MAILBOX_BYTES,
        devices: Mapping[str, Mapping[str, Any] | DeviceSettings] | Literal["numa", "cuda"] | None = None,
        max_private: int | str = 0,
        name: str = "pool",
        metrics: str = "",
        metrics_public: bool = False,
        mps: Literal["off", "auto", "on"] = "off",
    ) -> None:
        named = named_models(models)
        read = read_devices(devices or {})
        least_workers, most_workers = read_workers(workers, len(read))
        settings = Settings(
            workers=most_workers,
            least_workers=least_workers,
            slots=slots or 0,
            adaptive=adaptive,
            threads=threads or 0,
            pin=pin,
            slot_bytes=read_size("slot", slot),
            mailbox_bytes=read_size("mailbox", mailbox),
            devices=read,
            max_private_bytes=read_size("max_private", max_private),
            name=name,
            metrics=metrics,
            metrics_public=metrics_public,
            mps=mps,
        )
        self._held_bytes: dict[str, int] = {}
        self._supervisor: OwnedSupervisor | None = OwnedSupervisor(settings)
        try:
            self._supervisor.follow_logs()
            self._connection = Connection(f"ipc://{self._supervisor.directory}")
            self._finalizer = weakref.finalize(self, _abandon, self._connection, self._supervisor)
            shut_down_at_exit(self, self._connection)
            for model_name, model in named.items():
                self._load(model_name, model, eager=False)
        except BaseException:
            if "_finalizer" in vars(self):
                self._finalizer()
            else:
                self._supervisor.kill()
                self._supervisor.end()
            raise

    @classmethod
    def connect(cls, endpoint: str | None = None, *, keys: str | None = None) -> Self:
        """Join a supervisor that runs.

        Args:
            endpoint: ``ipc://FOLDER``, ``tcp://HOST:PORT``; default: this user's default supervisor.
            keys: over tcp, the file that ``onecopy keys new`` made for this client; default: ``$ONECOPY_KEYS``.

        Raises:
            SupervisorLost: nobody serves there.
            InvalidRequest: it does not let this client in, or is not the one that the keys are for.
        """
        pool = cls.__new__(cls)
        pool._held_bytes = {}
        pool._supervisor = None
        pool._connection = Connection(endpoint or environment.default_endpoint(), keys)
        pool._finalizer = weakref.finalize(pool, _abandon, pool._connection, None)
        shut_down_at_exit(pool, pool._connection)
        return pool

    def __repr__(self) -> str:
        return f"<Pool at {self._connection.endpoint}, {self._connection.unanswered} unanswered>"

    @property
    def endpoint(self) -> str:
        """Where other processes of this user can join: `Pool.connect` takes it."""
        return self._connection.endpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Whoever leaves by an exception does not want to wait for the rest.
        self.shutdown(cancel_futures=kind is not None)

    # --- running --------------------------------------------------------------------------------------------

    def submit(self, name: str, /, *args: Any, **kwargs: Any) -> PoolFuture:
        """Have a model run on these arguments; return the future result, a `concurrent.futures.Future`.

        Tensors may be on a GPU: they are copied to the host first, and results come back on the host.

        Raises:
            InvalidRequest: an argument cannot travel; the message names its path.
            SupervisorLost: the pool is gone.
        """
        return self.model(name).submit(*args, **kwargs)

    def run(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a model and return its result.

        Raises:
            ModelNotFound: no model or method has this name.
            ModelError: the model raised; the remote traceback is part of the message.
            WorkerDied: workers died over it.
            LoadFailed: the model could not be loaded.
        """
        return self.model(name)(*args, **kwargs)

    async def arun(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a model from asyncio; cancelling the task cancels the request."""
        return await self.model(name).arun(*args, **kwargs)

    def stream(self, name: str, /, *args: Any, buffersize: int = ITEMS_AHEAD, **kwargs: Any) -> Stream:
        """Run a method that yields; return an iterator over its items, see `ModelHandle.stream`."""
        return self.model(name).stream(*args, buffersize=buffersize, **kwargs)

    def astream(self, name: str, /, *args: Any, buffersize: int = ITEMS_AHEAD, **kwargs: Any) -> AsyncStream:
        """Run a method that yields; return an asynchronous iterator over its items."""
        return self.model(name).astream(*args, buffersize=buffersize, **kwargs)

    def map(
        self, name: str, xs: Iterable[Any], *, buffersize: int | None = None, progress: bool = False
    ) -> Generator[Any, None, None]:
        """Run a model on each ``x``; yield the results in order, see `ModelHandle.map`."""
        return self.model(name).map(xs, buffersize=buffersize, progress=progress)

    def as_completed(
        self, name: str, xs: Iterable[Any], *, buffersize: int | None = None, progress: bool = False
    ) -> Generator[tuple[int, Any], None, None]:
        """Run a model on each ``x``; yield ``(index, result)`` as they come."""
        return self.model(name).as_completed(xs, buffersize=buffersize, progress=progress)

    def amap(
        self, name: str, xs: Iterable[Any] | AsyncIterable[Any], *, buffersize: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """Run a model on each ``x``; yield the results in order, from asyncio, see `ModelHandle.amap`."""
        return self.model(name).amap(xs, buffersize=buffersize)

    def executor(self, name: str) -> PoolExecutor:
        """Return a `concurrent.futures.Executor` whose tasks are runs of a model, see `PoolExecutor`."""
        return self.model(name).executor()

    def model(
        self,
        name: str,
        *,
        method: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        retries: int = 1,
        session: str = "",
    ) -> ModelHandle:
        """Return a handle of a model with options for its requests, see `RequestOptions`.

        Raises:
            ConfigError: an option cannot be.
        """
        options = RequestOptions(name, method or "", priority, timeout_s, retries, session)
        return ModelHandle(self._connection, options)

    # --- models ---------------------------------------------------------------------------------------------

    def load(self, name: str, model: Any) -> None:
        """Make a model available, or replace the one of that name; returns when workers can run it.

        Serving goes on meanwhile. A newer version takes over between two requests.

        Raises:
            LoadFailed: it cannot be loaded; an older version stays.
            InvalidRequest: the pool is reached over tcp, where no code may travel.
        """
        self._load(check_name("model", name), as_model(model), eager=True)

    def unload(self, name: str) -> None:
        """Forget a model once it has answered what was submitted; returns when its memory is freed.

        Raises:
            ModelNotFound: no model has this name.
        """
        self._order(UnloadModel(name))
        self._held_bytes.pop(name, None)

    def plan(self, models: Any) -> Plan:
        """Tell what models would take in a pool like this one, before they are loaded, see `planning.plan.plan`.

        For those that this pool has already, what they take stands beside it.

        Raises:
            ConfigError: a model cannot be.
        """
        from .planning.plan import plan_like

        return plan_like(self, models)

    def attach(self, name: str) -> Any:
        """Return a model itself, in this process, its weights mapped from the one copy.

        It is the real object, with its hooks: activations can be looked at and gradients taken. What it costs is a
        skeleton; a write into a weight is seen here alone. It is loaded if it is not. The pool keeps its memory
        until this process ends or uses it no more, even if it is unloaded or the pool ends meanwhile.

        Raises:
            ModelNotFound: no model has this name.
            LoadFailed: it cannot be loaded, or its classes cannot be imported here.
            InvalidRequest: the pool is reached over tcp, or each worker builds this model anew.
        """
        return attach(check_name("model", name), self._control())

    def models(self) -> list[ModelInfo]:
        """Return what models there are, and how they do."""
        return [ModelInfo.from_wire(one) for one in self._connection.query("models")]

    def memory(self) -> Memory:
        """Return what memory the pool takes; measuring it takes some milliseconds."""
        memory = Memory.from_wire(self._connection.query("memory"))
        return dataclasses.replace(memory, app_held_bytes=sum(self._held_bytes.values()))

    def status(self) -> Status:
        """Return how the pool does as a whole."""
        status = Status.from_wire(self._connection.query("status"))
        return dataclasses.replace(status, fallbacks=[*status.fallbacks, *self._connection.fallbacks])

    # --- the end --------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool (a connected one: end the connection), as `concurrent.futures.Executor.shutdown`.

        Done when the interpreter exits, too; without waiting if an exception that nobody caught ends it.

        Args:
            wait: return when everything submitted is answered and every process is gone. Streams that other
                threads read come to their end; those that this one read are closed.
            cancel_futures: give up what is not answered yet.
        """
        if not self._finalizer.alive or self._connection.is_forked:
            return
        self._connection.before_shutdown()
        if self._supervisor is None:
            if wait and not cancel_futures:
                self._connection.wait_for_all()
            self._finalizer()
            return
        self._connection.flush()  # the order to stop goes another way, and must not overtake requests
        self._supervisor.stop(drain=not cancel_futures)
        if wait:
            self._connection.wait_for_all()
            self._finalizer()

    def _load(self, name: str, model: Model, *, eager: bool) -> None:
        with self._control() as control:
            if model.kind == "object":
                self._held_bytes[name] = hand_over(name, model, control, eager=eager)
            elif model.kind == "factory":
                control.ask(load_by_factory(name, model, eager=eager))
            else:
                control.ask(load_by_name(name, model, app_paths(), eager=eager))

    def _control(self) -> ControlSocket:
        """Return a new connection of the kind over which code and memory may travel."""
        self._connection.check_usable()
        if not self._connection.directory:
            raise InvalidRequest(
                f"{self._connection.endpoint}: code, memory and control never travel over tcp; connect on the "
                "supervisor's machine, as its user, over ipc://"
            )
        return ControlSocket(self._connection.directory)


def _abandon(connection: Connection, supervisor: OwnedSupervisor | None) -> None:
    """End a pool whatever it is doing; also called when it is garbage."""
    if supervisor is not None:
        supervisor.stop(drain=False)
    connection.close()
    if supervisor is not None:
        supervisor.end()
