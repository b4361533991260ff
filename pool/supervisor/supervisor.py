"""The supervisor: events from sockets and processes into the core, its instructions out into the world.

It imports no torch, no numpy and no user code, and never maps weights: no model can crash it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from ...protocol import messages
from ...protocol.channel import Delivery
from ...protocol.errors import InvalidRequest, PoolError
from .. import environment
from ..core import events, instructions
from ..core.devices import Devices
from ..keys import KeyFolder
from ..memory.spill import SpillFolder
from ..runtime import CONTROL, REQUESTS, RuntimeDirectory
from ..settings import Settings
from . import examples
from .answers import Answers
from .clients import Clients, Peer
from .clients_unix import UnixServer
from .clients_zmq import ZmqServer, ipc_endpoint
from .control import Connection, ControlServer
from .cores import make_cores
from .exporter import Exporter
from .history import History
from .inbound import FROM_CALLER, FROM_CHILD, FROM_CLIENT, FROM_ZYGOTE, check_declared
from .interrupts import Interrupts
from .logs import Level, Line, Logs
from .memories import Memories
from .meter import Meter
from .mover import Mover
from .mps import Mps
from .processes import Child, Processes
from .reactor import Reactor
from .recorder import make_recorder
from .shelf import Shelf

_LINGER_MS = 500
#: After these the core hands out memory.
_ASKING = (events.RegionsNeeded, events.RegionsMoved)


class Supervisor:
    """Everything of one pool but its children.

    Args:
        settings: how large it is and where it listens.
        directory: the folder for its sockets, locked; removed at the end.
        is_verbose: whether what workers print goes to stderr (a standalone supervisor's log).
    """

    def __init__(self, settings: Settings, directory: RuntimeDirectory, *, is_verbose: bool) -> None:
        self.settings = settings
        self._directory = directory
        self._is_verbose = is_verbose
        self._events: deque[events.Event] = deque()
        self._is_handling = False
        self._connections: dict[Peer, Connection] = {}
        # One request is with the client or with a worker, so a machine of two cores has one to spare.
        has_cores = environment.cores() > 1
        self._reactor = Reactor(may_spin=lambda: has_cores and self.devices.unanswered <= 1)
        self._memories = memories = self._make_memories()
        call_at = self._reactor.call_at
        self._shelf = Shelf(
            memories.host, memories.stores, send=self._to_filler, feed=self.feed, note=self._note, call_at=call_at
        )
        folder = SpillFolder(environment.cache_folder())
        self._mover = Mover(self._shelf, folder, memories, self._reactor, feed=self.feed, note=self._note)
        self._examples = examples.Examples(self.feed, self._note)
        self._history = History(environment.history_path(), call_at, self._note)
        self._logs = Logs(self._tell_lines, lambda s, call: call_at(time.monotonic() + s, call))
        self._control = ControlServer(self._reactor, received=self._from_caller, ended=self._caller_ended)
        workers = sum(settings.on(device).workers for device in settings.devices)
        joined, left = self._client_joined, self._client_left
        self._clients = Clients(settings.name, workers, received=self._from_client, joined=joined, left=left)
        self._unix_server = UnixServer(self._clients, self._reactor)
        self._zmq_server = ZmqServer(self._clients, self._reactor)
        self._processes = Processes(
            self._reactor,
            [settings.on(name) for name in settings.devices],
            directory.path,
            deliver=self._from_child,
            died=self._child_died,
            printed=self._child_printed,
            zygote_said=self._from_zygote,
            zygote_died=lambda device, cause: self.feed(events.ZygoteDied(cause, device)),
        )
        self._exporter = Exporter(settings, directory.path, self._reactor, self._note)
        self._mps = Mps(settings, directory.path, self._reactor, self._note)
        self._interrupts = Interrupts(self._processes, self._to_client, call_at, self._note)
        totals_bytes, known = [one.total_bytes() for one in memories.devices], self._history.known
        self._recorder = make_recorder(settings, totals_bytes, memories.peers, known, self._reactor, self._note)
        self.devices = Devices(
            make_cores(settings, totals_bytes, memories.peers, known, environment.spare_cores())
        )
        self._meter = Meter(
            self.devices, self._processes, self._exporter, self._shelf, memories, self._reactor, self.feed
        )
        self._answers = Answers(self.devices, settings, self._processes, self._shelf, self._mover, self._meter)
        self._answers.also = lambda: [*memories.fallbacks, *self._mps.fallbacks]
        self._execute = self._hands()
        self._meter.start()
        if self._history.complaint:
            self._note(self._history.complaint)

    # --- life -----------------------------------------------------------------------------------------------

    def serve(self, owner: Connection | None = None) -> None:
        """Serve until told to stop, or until the owner is gone.

        Raises:
            PoolError: an endpoint cannot be bound.
        """
        try:
            self._reactor.on_signals((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2), self._signalled)
            self._listen()
            self._exporter.start()
            self._mps.start(dict(zip(self.settings.devices, self._processes.zygotes, strict=True)))
            self._processes.start_zygotes()
            self._reactor.end_with(self._processes.flush)
            if owner is not None:
                self._control.send(owner, messages.Serving(self._directory.path, os.getpid()))
            self._reactor.run(self.devices.wake_at, lambda: self.feed(events.TimePassed()))
        finally:
            self._close()

    @property
    def control(self) -> ControlServer:
        """The server of the unix socket; an owner's connection is added to it."""
        return self._control

    def feed(self, event: events.Event) -> None:
        """Let the core handle an event, and carry out what it wants; what comes of that is fed after it."""
        if type(event) is not events.MemoryMeasured:
            self._meter.touch()
        if isinstance(event, _ASKING):
            self._events.extend(self._meter.available())
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                event, now = self._events.popleft(), time.monotonic()
                try:
                    out = self.devices.handle(event, now)
                except Exception as error:
                    self._recorder.explain(event, now, error)
                    raise
                self._recorder.keep(event, now, out)
                for instruction in out:
                    self._execute[type(instruction)](instruction)
        finally:
            self._is_handling = False

    def _make_memories(self) -> Memories:
        try:
            return Memories(self.settings, lambda device: self._processes.zygotes[device].environment)
        except PoolError:
            self._directory.remove()
            raise

    def _hands(self) -> dict[type, Callable[[Any], None]]:
        """Return what carries out each kind of instruction."""
        return {
            instructions.ToClient: self._to_client,
            instructions.ToChild: self._to_child,
            instructions.ToCaller: lambda one: self._control.send(
                one.caller, one.message, self._shelf.fds(one.regions)
            ),
            instructions.ForkChild: lambda one: self._processes.fork(one.child, one.role),
            instructions.SignalChild: lambda one: self._processes.signal(one.child, one.signal),
            instructions.Interrupt: self._interrupts.interrupt,
            instructions.TellLate: self._interrupts.tell_late,
            instructions.GrantRegions: self._shelf.grant,
            instructions.MakeRegion: self._shelf.make,
            instructions.GrowRegion: self._shelf.grow,
            instructions.EmptyRegion: self._shelf.empty,
            instructions.Remember: self._history.remember,
            instructions.RememberLoad: self._history.remember_load,
            instructions.FreeRegions: lambda one: self._mover.free(one.regions),
            instructions.MoveRegions: self._mover.move,
            instructions.ToZygote: lambda one: self._processes.zygotes[one.device].tell(
                one.message, self._shelf.fds(one.regions)
            ),
            instructions.ReplaceZygote: lambda one: self._processes.zygotes[one.device].start(),
            instructions.Report: lambda one: self._note(one.text),
            instructions.Finish: lambda _: self._reactor.stop(),
        }

    def _listen(self) -> None:
        self._control.listen(self._directory.join(CONTROL))
        if self.settings.keys:
            self._zmq_server.ask_for_keys(KeyFolder(self.settings.keys), self._note)
        self._zmq_server.bind("ipc", ipc_endpoint(self._directory.join(REQUESTS)))
        if self._is_verbose:
            self._note(f"serving at ipc://{self._directory.path}", "info")
        for endpoint in self.settings.listen:
            self._zmq_server.bind("tcp", endpoint)
            self._note(f"listening at {self._zmq_server.endpoint('tcp')}", "info")

    def _signalled(self, number: int) -> None:
        if number == signal.SIGUSR2:
            self._recorder.write("SIGUSR2", lambda _: None)
            return
        self._note(f"{signal.Signals(number).name}: finishing what was accepted, then leaving", "info")
        self.feed(events.StopAsked(drain=True))

    def _close(self) -> None:
        self._exporter.close()
        self._recorder.close()
        self._history.write()
        self._logs.flush()
        self._unix_server.close(_LINGER_MS)
        self._zmq_server.close(_LINGER_MS)
        self._processes.close()
        self._mps.close()
        self._meter.close()
        self._mover.close()
        self._shelf.close()
        self._control.close()
        self._directory.remove()
        self._reactor.close()

    # --- clients --------------------------------------------------------------------------------------------

    def _client_joined(self, peer: Peer, connection: Connection | None) -> None:
        if connection is not None:
            self._connections[peer] = connection
        self.feed(events.ClientJoined(peer, connection))

    def _client_left(self, peer: Peer) -> None:
        self._connections.pop(peer, None)
        self.feed(events.ClientLeft(peer))

    def _from_client(self, peer: Peer, message: messages.Message, buffers: list[Any]) -> None:
        if type(message) in FROM_CLIENT:
            self.feed(FROM_CLIENT[type(message)](peer, message, buffers))
        elif isinstance(message, messages.Query):
            number = message.request
            self._answers.ask(message.topic, lambda answer: self._reply(peer, number, answer))
        else:
            raise InvalidRequest(f"{type(message).__name__} is not for this socket")

    def _reply(self, peer: Peer, number: int, answer: bytes | PoolError) -> None:
        if isinstance(answer, PoolError):
            self._clients.send(peer, messages.Failed(number, answer.to_record()), [])
        else:
            self._clients.send(peer, messages.Reply(number, 0.0, answer, [], []), [])

    def _to_client(self, one: instructions.ToClient) -> None:
        if one.client == examples.CLIENT:
            self._examples.answered(one.message)
            return
        self._clients.send(cast(Peer, one.client), one.message, one.buffers)

    # --- local processes ------------------------------------------------------------------------------------

    def _from_caller(self, caller: Connection, delivery: Delivery) -> None:
        message = delivery.message
        if isinstance(message, messages.OfferFile):
            try:
                self._shelf.offer(caller, message.path, delivery.fds)
            finally:
                delivery.close_fds()
            return
        delivery.close_fds()  # no other message has any
        if isinstance(message, messages.Admit):
            token = self._clients.make_token(caller)
            endpoint = ipc_endpoint(self._directory.join(REQUESTS))
            self._control.send(caller, messages.Admitted(token, endpoint, self.settings.name))
        elif isinstance(message, messages.Hello):
            self._control.release(caller)
            self._unix_server.add(caller.channel, caller.pid, caller.pidfd, message)
        elif isinstance(message, messages.LoadModel):
            try:
                self.declare(caller, message)
            except PoolError as error:
                self.feed(events.FillingFailed(caller, error.to_record()))
        elif isinstance(message, messages.NeedRegions):
            self._shelf.need(caller, message.wants)
        elif isinstance(message, messages.RegionsFilled):
            self._shelf.filled(caller, message.regions)
        elif isinstance(message, messages.FollowLogs):
            caller.follows_logs = message.follow
            self._control.send(caller, messages.LogLines([list(line) for line in self._logs.kept]))
            if not message.follow:
                self._control.send(caller, messages.Done("logs"))
        elif isinstance(message, messages.WriteRecord):
            why = f"asked for by process {caller.pid}"
            self._recorder.write(why, lambda answer: self._control.send(caller, answer))
        elif type(message) in FROM_CALLER:
            self.feed(FROM_CALLER[type(message)](caller, message, []))
        else:
            raise InvalidRequest(f"{type(message).__name__} is not for this socket")

    def _caller_ended(self, caller: Connection) -> None:
        for peer in [peer for peer, connection in self._connections.items() if connection is caller]:
            self._clients.drop(peer)
        self._clients.void_tokens(caller)
        self.feed(events.CallerLeft(caller))
        if caller.is_owner:
            self._reactor.stop()

    def declare(self, caller: Connection | None, load: messages.LoadModel) -> None:
        """Take a model, of a caller or of nobody, and run its example if it has one.

        Raises:
            PoolError: it cannot be one.
        """
        check_declared(load)
        self.feed(events.ModelDeclared(caller, load))
        self._examples.run(load)

    def _tell_lines(self, lines: list[Line]) -> None:
        plain = messages.LogLines([list(line) for line in lines])
        for caller in list(self._control.connections):
            if caller.follows_logs:
                self._control.send(caller, plain)
        if self._is_verbose:
            is_json = self.settings.log_format == "json"
            for line in lines:
                print(line.to_json() if is_json else line, file=sys.stderr, flush=True)  # noqa: T201

    def _note(self, text: str, level: Level = "warning") -> None:
        self._answers.notes.append(text)
        self._logs.add((os.getpid(), "supervisor", "", 0), text, level)

    # --- children -------------------------------------------------------------------------------------------

    def _from_zygote(self, device: int, delivery: Delivery) -> None:
        message = delivery.message
        if isinstance(message, messages.Forked):
            if self._processes.forked(message.child, message.pid, delivery.fds.pop()):
                self.feed(events.ChildForked(message.child, message.pid))
        elif isinstance(message, messages.Exited):
            self._processes.exited(message.child, message.status)
        elif type(message) in FROM_ZYGOTE:
            self.feed(FROM_ZYGOTE[type(message)](device, message, []))

    def _from_child(self, child: Child, delivery: Delivery) -> None:
        message, number = delivery.message, child.number
        if isinstance(message, messages.OfferFile):
            self._shelf.offer(number, message.path, delivery.fds)
        delivery.close_fds()  # no other message of a child has any
        if isinstance(message, messages.Ran):
            child.ran_last = self._running_on(number, message.attempt)
        elif isinstance(message, messages.ThawFailed) and child.role == "worker":
            self._note(f"worker {child.pid} cannot thaw: {message.error.get('message', '')}")
        elif isinstance(message, messages.NeedRegions):
            self._shelf.need(number, message.wants)
        elif isinstance(message, messages.RegionsFilled):
            self._shelf.filled(number, message.regions)
        if type(message) in FROM_CHILD:
            self.feed(FROM_CHILD[type(message)](number, message, delivery.buffers))

    def _child_died(self, child: Child, cause: str, begun: int) -> None:
        self._logs.ended(child.number, lambda: self._source(child))
        self._meter.gone(child.pid)
        if cause == signal.Signals.SIGBUS.name:  # what comes of memory that has no file behind it any more
            cause = "; ".join([cause, *self._shelf.changed_files()])
        self.feed(events.ChildExited(child.number, cause, begun, was_forked=child.pid > 0))

    def _child_printed(self, child: Child | None, device: int, data: bytes) -> None:
        if child is None:
            zygote = self._processes.zygotes[device]
            self._logs.printed(("zygote", device), data, lambda: (zygote.pid, "zygote", "", 0))
        else:
            self._logs.printed(child.number, data, lambda: self._source(child))

    def _source(self, child: Child) -> tuple[int, str, str, int]:
        # What it wrote at the end of a run may be read before its answer is, or after that.
        worker = self.devices.core_of(child.number).fleet.workers.get(child.number)
        attempt = child.marks.begun or next(iter(worker.outstanding if worker else ()), 0)
        request, model = self._running_on(child.number, attempt)
        if not model:
            request, model = child.ran_last
        return (child.pid, child.role, model, request)

    def _running_on(self, child: int, attempt: int) -> tuple[int, str]:
        return self.devices.core_of(child).attempts.running_on(attempt)

    def _to_child(self, one: instructions.ToChild) -> None:
        self._processes.send(one.child, one.message, one.buffers, self._shelf.fds(one.regions))

    def _to_filler(self, filler: Any, message: messages.RegionsGranted, fds: list[int]) -> None:
        if isinstance(filler, Connection):
            self._control.send(filler, message, fds)
        else:
            self._processes.send(filler, message, [], fds)
