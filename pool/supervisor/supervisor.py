"""The supervisor: events from sockets and processes into the core, its instructions out into the world.

It imports no torch, no numpy and no user code, and never maps weights: no model can crash it.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ...protocol import messages
from ...protocol.channel import Channel, Delivery
from ...protocol.errors import InvalidRequest, LoadFailed, OutOfBudget, PoolError
from ...protocol.manifest import Manifest
from ..config import Settings, check_name
from ..core import events, instructions
from ..core.core import Core
from ..memory.base import Region, RegionBusy, RegionRefused
from ..memory.memfd import MemfdStore
from ..runtime import CONTROL, REQUESTS, RuntimeDirectory
from .answers import Answers
from .clients import ClientSockets, Peer, ipc_endpoint
from .control import Connection, ControlServer
from .logs import Line, Logs
from .processes import Child, Processes
from .reactor import Reactor

_LINGER_MS = 500


class Supervisor:
    """Everything of one pool but its children.

    Args:
        settings: how large it is and where it listens.
        directory: the folder for its sockets, locked; removed at the end.
        is_verbose: whether what workers print goes to stderr (a standalone supervisor's log).
    """

    def __init__(self, settings: Settings, directory: RuntimeDirectory, *, is_verbose: bool) -> None:
        _raise_descriptor_limit()
        self.settings = settings
        self._directory = directory
        self._is_verbose = is_verbose
        self._events: deque[events.Event] = deque()
        self._is_handling = False
        self._granted: dict[int, list[Region]] = {}
        self._connections: dict[Peer, Connection] = {}
        self._tokens: dict[bytes, Connection] = {}
        self._store = MemfdStore()
        self.core = Core(settings.workers, settings.slots)
        self._reactor = Reactor()
        self._logs = Logs(self._tell_lines, lambda s, call: self._reactor.call_at(time.monotonic() + s, call))
        self._control = ControlServer(self._reactor, received=self._from_caller, ended=self._caller_ended)
        self._clients = ClientSockets(
            settings.name,
            settings.workers,
            received=self._from_client,
            joined=self._client_joined,
            left=self._client_left,
            call_at=self._reactor.call_at,
        )
        self._processes = Processes(
            self._reactor,
            settings,
            directory.path,
            deliver=self._from_child,
            died=self._child_died,
            printed=self._child_printed,
            zygote_said=self._from_zygote,
            zygote_died=lambda cause: self.feed(events.ZygoteDied(cause)),
        )
        self._answers = Answers(self.core, settings, self._processes, self._reactor, self._store)
        self._execute: dict[type, Callable[[Any], None]] = {
            instructions.ToClient: self._to_client,
            instructions.ToChild: self._to_child,
            instructions.ToCaller: lambda one: self._control.send(one.caller, one.message),
            instructions.ForkChild: lambda one: self._processes.fork(one.child, one.role),
            instructions.SignalChild: lambda one: self._processes.signal(one.child, one.signal),
            instructions.GrantRegions: self._grant,
            instructions.FreeRegions: lambda one: self._close_regions(one.regions),
            instructions.ToZygote: lambda one: self._processes.tell_zygote(one.message),
            instructions.ReplaceZygote: lambda _: self._processes.start_zygote(),
            instructions.Report: lambda one: self._note(one.text),
            instructions.Finish: lambda _: self._reactor.stop(),
        }

    # --- life -----------------------------------------------------------------------------------------------

    def serve(self, owner: Connection | None = None) -> None:
        """Serve until told to stop, or until the owner is gone.

        Raises:
            PoolError: an endpoint cannot be bound.
        """
        try:
            self._reactor.on_signals((signal.SIGTERM, signal.SIGINT), self._signalled)
            self._listen()
            self._processes.start_zygote()
            self._reactor.poll_first(self._clients.poll)
            if owner is not None:
                self._control.send(owner, messages.Serving(self._directory.path, os.getpid()))
            self._reactor.run(self.core.wake_at, lambda: self.feed(events.TimePassed()))
        finally:
            self._close()

    @property
    def control(self) -> ControlServer:
        """The server of the unix socket; an owner's connection is added to it."""
        return self._control

    def feed(self, event: events.Event) -> None:
        """Let the core handle an event, and carry out what it wants; what comes of that is fed after it."""
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                for instruction in self.core.handle(self._events.popleft(), time.monotonic()):
                    self._execute[type(instruction)](instruction)
        finally:
            self._is_handling = False

    def _listen(self) -> None:
        self._control.listen(self._directory.join(CONTROL))
        self._watch_zmq("ipc", ipc_endpoint(self._directory.join(REQUESTS)))
        if self._is_verbose:
            self._note(f"serving at ipc://{self._directory.path}")
        for endpoint in self.settings.listen:
            self._watch_zmq("tcp", endpoint)
            self._note(f"listening at {self._clients.endpoint('tcp')}")

    def _watch_zmq(self, transport: str, endpoint: str) -> None:
        fd = self._clients.bind(transport, endpoint)
        self._reactor.forget(fd)
        self._reactor.watch(fd, lambda: None)  # it only wakes the loop, which asks the socket itself

    def _signalled(self, number: int) -> None:
        self._note(f"{signal.Signals(number).name}: finishing what was accepted, then leaving")
        self.feed(events.StopAsked(drain=True))

    def _close(self) -> None:
        self._logs.flush()
        self._clients.close(_LINGER_MS)
        self._processes.close()
        self._answers.close()
        self._control.close()
        self._directory.remove()
        self._reactor.close()

    # --- clients --------------------------------------------------------------------------------------------

    def _client_joined(self, peer: Peer, token: bytes) -> None:
        connection = self._tokens.pop(token, None)
        if connection is not None:
            self._connections[peer] = connection
        self.feed(events.ClientJoined(peer))

    def _client_left(self, peer: Peer) -> None:
        self._connections.pop(peer, None)
        self.feed(events.ClientLeft(peer))

    def _from_client(self, peer: Peer, message: messages.Message, buffers: list[Any]) -> None:
        if isinstance(message, messages.Submit):
            self.feed(events.Submitted(peer, message, buffers))
        elif isinstance(message, messages.Cancel):
            self.feed(events.Cancelled(peer, message.request))
        elif isinstance(message, messages.Query):
            number = message.request
            self._answers.ask(message.topic, lambda answer: self._reply(peer, number, answer))
        else:
            raise InvalidRequest(f"{type(message).__name__} is not for this socket")

    def _reply(self, peer: Peer, number: int, answer: bytes | PoolError) -> None:
        if isinstance(answer, PoolError):
            self._clients.send(peer, messages.Failed(number, answer.to_record()), [])
        else:
            self._clients.send(peer, messages.Reply(number, answer), [])

    def _to_client(self, one: instructions.ToClient) -> None:
        self._clients.send(one.client, one.message, one.buffers)

    # --- local processes ------------------------------------------------------------------------------------

    def _from_caller(self, caller: Connection, delivery: Delivery) -> None:
        message = delivery.message
        if not isinstance(message, messages.LoadModel):
            delivery.close_fds()
        if isinstance(message, messages.Admit):
            token = self._clients.make_token()
            self._tokens[token] = caller
            endpoint = ipc_endpoint(self._directory.join(REQUESTS))
            self._control.send(caller, messages.Admitted(token, endpoint, self.settings.name))
        elif isinstance(message, messages.LoadModel):
            self._declare(caller, message, delivery.fds)
            delivery.close_fds()
        elif isinstance(message, messages.UnloadModel):
            self.feed(events.ModelRemoved(caller, message.name))
        elif isinstance(message, messages.StopPool):
            self.feed(events.StopAsked(message.drain))
        elif isinstance(message, messages.FollowLogs):
            caller.follows_logs = message.follow
            self._control.send(caller, messages.LogLines([list(line) for line in self._logs.kept]))
            if not message.follow:
                self._control.send(caller, messages.Done("logs"))
        else:
            raise InvalidRequest(f"{type(message).__name__} is not for this socket")

    def _caller_ended(self, caller: Connection) -> None:
        for peer in [peer for peer, connection in self._connections.items() if connection is caller]:
            self._clients.drop(peer)
        for token in [token for token, connection in self._tokens.items() if connection is caller]:
            del self._tokens[token]
        if caller.is_owner:
            self._reactor.stop()

    def _declare(self, caller: Connection, load: messages.LoadModel, fds: list[int]) -> None:
        regions: list[Region] = []
        try:
            check_name("model", load.name)
            if load.source == "frozen":
                self._adopt(load, fds, regions)
            elif load.source not in ("factory", "import"):
                raise InvalidRequest(f"source {load.source!r}; known are frozen, factory and import")
        except PoolError as error:
            self._close_regions(tuple(regions))
            self._control.send(caller, messages.Refused(error.to_record()))
            return
        self.feed(events.ModelDeclared(caller, load, tuple(regions)))

    def _adopt(self, load: messages.LoadModel, fds: list[int], regions: list[Region]) -> None:
        """Take over and seal the regions that an app has filled."""
        try:
            sizes = Manifest.from_wire(load.manifest).region_sizes_bytes
            if len(sizes) != len(fds):
                raise InvalidRequest(f"the manifest names {len(sizes)} regions, {len(fds)} came along")
            for size_bytes in sizes:
                regions.append(self._store.adopt(fds[0], size_bytes, load.name))
                fds.pop(0)  # it belongs to the region now
        except (ValueError, OSError, RegionBusy) as error:
            raise LoadFailed(f"{load.name}: {error}") from error

    def _tell_lines(self, lines: list[Line]) -> None:
        plain = messages.LogLines([list(line) for line in lines])
        for caller in list(self._control.connections):
            if caller.follows_logs:
                self._control.send(caller, plain)
        if self._is_verbose:
            for line in lines:
                print(line, file=sys.stderr, flush=True)  # noqa: T201

    def _note(self, text: str) -> None:
        self._answers.notes.append(text)
        self._logs.add((os.getpid(), "supervisor", "", 0), text)

    # --- children -------------------------------------------------------------------------------------------

    def _from_zygote(self, delivery: Delivery) -> None:
        message = delivery.message
        if isinstance(message, messages.Forked):
            if self._processes.forked(message.child, message.pid, delivery.fds.pop()):
                self.feed(events.ChildForked(message.child, message.pid))
        elif isinstance(message, messages.Exited):
            self._processes.exited(message.child, message.status)
        elif isinstance(message, messages.Adopted):
            self.feed(events.ModulesAdopted(message.generation, message.refused, message.threads))
        elif isinstance(message, messages.ZygoteReady):
            self.feed(events.ZygoteReady())

    def _from_child(self, child: Child, delivery: Delivery) -> None:
        message, number = delivery.message, child.number
        delivery.close_fds()  # no message of a child has any
        if isinstance(message, messages.Ran):
            child.ran_last = self.core.running_on(message.attempt)
            ended = events.AttemptEnded(
                number, message.attempt, message.seconds, message.body, delivery.buffers, None
            )
            self.feed(ended)
        elif isinstance(message, messages.RunFailed):
            child.ran_last = self.core.running_on(message.attempt)
            self.feed(events.AttemptEnded(number, message.attempt, message.seconds, b"", [], message.error))
        elif isinstance(message, messages.Thawed):
            self.feed(events.SetThawed(number, message.weight_set, None))
        elif isinstance(message, messages.ThawFailed):
            self._note(f"worker {child.pid} cannot thaw: {message.error.get('message', '')}")
            self.feed(events.SetThawed(number, message.weight_set, message.error))
        elif isinstance(message, messages.Forgot):
            self.feed(events.SetForgotten(number, message.weight_set, message.unmapped))
        elif isinstance(message, messages.NeedRegions):
            self.feed(events.RegionsNeeded(number, message.sizes_bytes))
        elif isinstance(message, messages.ModelBuilt):
            self._built(number, message)
        elif isinstance(message, messages.BuildFailed):
            self.feed(events.BuildFailed(number, message.error))

    def _built(self, number: int, message: messages.ModelBuilt) -> None:
        regions = tuple(self._granted.pop(number, ()))
        try:
            for region in regions:
                self._store.seal(region)
        except RegionBusy as error:
            self._close_regions(regions)
            self.feed(events.BuildFailed(number, LoadFailed(str(error)).to_record()))
            return
        self.feed(events.ModelBuilt(number, message.manifest, message.skeleton, message.modules, regions))

    def _child_died(self, child: Child, cause: str, begun: int) -> None:
        self._logs.ended(child.number, lambda: self._source(child))
        self._close_regions(tuple(self._granted.pop(child.number, ())))
        self.feed(events.ChildExited(child.number, cause, begun, was_forked=child.pid > 0))

    def _child_printed(self, child: Child | None, data: bytes) -> None:
        if child is None:
            self._logs.printed(None, data, lambda: (self._processes.zygote_pid, "zygote", "", 0))
        else:
            self._logs.printed(child.number, data, lambda: self._source(child))

    def _source(self, child: Child) -> tuple[int, str, str, int]:
        # What it wrote at the end of a run may be read after its answer was.
        begun = self._processes.begun_by(child)
        request, model = self.core.running_on(begun) if begun else child.ran_last
        return (child.pid, child.role, model, request)

    def _to_child(self, one: instructions.ToChild) -> None:
        fds = [region.fd for region in one.regions]
        self._processes.send(one.child, one.message, one.buffers, fds)

    def _grant(self, one: instructions.GrantRegions) -> None:
        granted = self._granted.setdefault(one.child, [])
        try:
            for size_bytes in one.sizes_bytes:
                granted.append(self._store.create(size_bytes, "onecopy-weights"))
        except (RegionRefused, ValueError, OSError) as error:
            kind = OutOfBudget if isinstance(error, RegionRefused) else LoadFailed
            self.feed(events.BuildFailed(one.child, kind(str(error)).to_record()))
            self._processes.signal(one.child, signal.SIGKILL)
            return
        fds = [region.fd for region in granted]
        self._processes.send(one.child, messages.RegionsGranted(), [], fds)

    def _close_regions(self, regions: tuple[Any, ...]) -> None:
        for region in regions:
            self._store.close(region)


def serve_owner(owner_fd: int) -> int:
    """Run the supervisor of the app that started this process; return the exit code."""
    owner_pid = os.getppid()
    pidfd = os.pidfd_open(owner_pid)
    if os.getppid() != owner_pid:  # it was gone before it could be watched
        return 1
    channel = Channel(socket.socket(fileno=owner_fd))
    first = channel.receive()
    if first is None:
        return 1
    try:
        if not isinstance(first.message, messages.Configure):
            raise InvalidRequest("the first message must be Configure")
        settings = Settings.from_wire(first.message.settings)
        supervisor = Supervisor(settings, RuntimeDirectory(), is_verbose=False)
        owner = supervisor.control.add(channel, owner_pid, pidfd, is_owner=True)
        supervisor.serve(owner)
    except PoolError as error:
        channel.send(messages.Refused(error.to_record()))
        return 1
    return 0


def _raise_descriptor_limit() -> None:
    """Use as many descriptors as the system allows: each worker takes four, each region one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
