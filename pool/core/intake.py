"""What clients ask: requests accepted or refused, given up, late; and readers of streams."""

from __future__ import annotations

from typing import Any

from ...protocol.errors import DeadlineExceeded, InvalidRequest, PoolError, RequestCancelled, SupervisorLost
from ...protocol.limits import MAX_CREDIT
from ...protocol.messages import Failed, Released, Submit
from . import events
from .attempts import Attempts
from .dispatch import Dispatch
from .instructions import Instruction, ToClient
from .library import Library
from .mailboxes import Mailbox, Mailboxes
from .requests import Requests
from .stalls import STALL_S


class Intake:
    """Takes requests in.

    Args:
        library, requests, dispatch, attempts, mailboxes: where they go.
        out: where instructions go.

    Attributes:
        closed: the sentence that newcomers are refused with, if they are.
    """

    def __init__(
        self,
        library: Library,
        requests: Requests,
        dispatch: Dispatch,
        attempts: Attempts,
        mailboxes: Mailboxes,
        out: list[Instruction],
    ) -> None:
        self.closed = ""
        self._library = library
        self._requests = requests
        self._dispatch = dispatch
        self._attempts = attempts
        self._mailboxes = mailboxes
        self._out = out

    def joined(self, event: events.ClientJoined, _now: float) -> None:
        """A client is there."""
        self._requests.join(event.client)
        if event.caller is not None:
            self._mailboxes.join(event.client, event.caller)

    def left(self, event: events.ClientLeft, _now: float) -> None:
        """A client is gone: what waits for it is dropped, and what runs for it alone is interrupted."""
        self._mailboxes.leave(event.client)
        self._attempts.abandon(event.client)
        self._attempts.left(self._requests.leave(event.client))

    def submitted(self, event: events.Submitted, now: float) -> None:
        """A client asks for something to be run."""
        submit = event.submit
        mailboxes: tuple[Mailbox, ...] = ()
        try:
            if self.closed:
                raise SupervisorLost(self.closed)
            self._requests.check_number(event.client, submit.request)
            model = self._library.find(submit.model)
            model.check_room(submit.calls or 1)
            if submit.places or submit.reply:
                mailboxes = self._mailboxes.needed_by(event.client, submit, len(event.buffers))
        except PoolError as error:
            self._fail(event.client, submit, error)
            return
        request = self._requests.accept(event.client, submit, event.buffers, now)
        if isinstance(request, PoolError):
            self._fail(event.client, submit, request)
            return
        if mailboxes:
            request.mailboxes = mailboxes
            self._mailboxes.hold(mailboxes)
        if event.buffers:
            self._mailboxes.note_inline(event.client)
        model.heat.add(request.calls, now)
        model.unanswered += 1
        self._dispatch.take_in(model, request, now)
        if not model.current.is_ready:
            self._library.need_answers(model)

    def cancelled(self, event: events.Cancelled, _now: float) -> None:
        """A client does not want an answer any more."""
        request = self._requests.find(event.client, event.request)
        if request is not None:
            self._attempts.give_up(request, RequestCancelled("cancelled"), kill=event.kill)

    def continued(self, event: events.Continued, _now: float) -> None:
        """The reader of a stream is ready for more."""
        request = self._requests.find(event.client, event.request)
        if request is None or not request.is_stream:  # it was over when this was sent
            return
        if not 0 < event.items <= MAX_CREDIT - request.credit:
            message = (
                f"the reader of a stream may be ready for 1 to {MAX_CREDIT:,} items, "
                f"not for {event.items:,} besides {request.credit:,}"
            )
            self._attempts.give_up(request, InvalidRequest(message))
        else:
            self._attempts.go_on(request, event.items)

    def time_passed(self, now: float) -> None:
        """Give up what is late."""
        for request in self._requests.late(now):
            waited = "waiting for a worker" if request.is_queued else "running"
            message = f"{request.submit.model}: no answer within {request.submit.timeout_s:g} s ({waited})"
            self._attempts.give_up(request, DeadlineExceeded(message))
        for request in self._attempts.stalls.late(now):
            message = f"{request.submit.model}: nobody has read this stream for {STALL_S:g} s"
            self._attempts.give_up(request, DeadlineExceeded(message))

    def _fail(self, client: Any, submit: Submit, error: PoolError) -> None:
        """Refuse a request; what places it has are not used."""
        self._out.append(ToClient(client, Failed(submit.request, error.to_record()), []))
        if submit.reply or any(submit.places):
            self._out.append(ToClient(client, Released(submit.request), []))
