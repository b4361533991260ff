"""Models are run once with their example, so that it is known what they need before anybody waits for an answer.

To the core it is a request like any other, of a client that nobody is; it comes before all others of its model,
which is loaded for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.messages import Failed, LoadModel, Message, Submit
from ..core import events

#: Who asks, as far as the core is concerned.
CLIENT: Final = "examples"


class Examples:
    """Has models run with their examples.

    Args:
        feed: takes events for the core.
        note: takes sentences for the log.
    """

    def __init__(self, feed: Callable[[events.Event], None], note: Callable[[str], None]) -> None:
        self._feed = feed
        self._note = note
        self._count = 0
        self._running: dict[int, str] = {}

    def run(self, load: LoadModel) -> None:
        """Run a model that was just declared, if it has an example."""
        if not load.example:
            return
        if not self._running:
            self._feed(events.ClientJoined(CLIENT))
        self._count += 1
        self._running[self._count] = load.name
        body, *buffers = load.example
        submit = Submit(self._count, load.name, "", 0.0, 0, 0, "", 0, 0, body, [], [])
        self._feed(events.Submitted(CLIENT, submit, buffers))

    def answered(self, message: Message) -> None:
        """Take what came of a run: nothing but why it failed is of interest."""
        number = getattr(message, "request", 0)
        name = self._running.pop(number, "")
        if isinstance(message, Failed):
            self._note(f"{name}: its example failed: {message.error.get('message', '')}")
        if not self._running:
            self._feed(events.ClientLeft(CLIENT))
