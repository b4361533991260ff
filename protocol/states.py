"""The states of everything that has some, as tables: what may follow what, and why.

`TABLES[kind][state]` lists what may come next. Terminal states have an empty row. Code that changes a
state goes through `Lifecycle.become`, which refuses what is not in the table and tells the object's story:
a state machine that is wrong must fail loudly, near the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Table = dict[str, dict[str, str]]

#: A request, from being accepted to its one answer.
REQUEST: Final[Table] = {
    "queued": {
        "running": "handed to a worker",
        "answered": "failed, cancelled or expired before it ran",
    },
    "running": {
        "answered": "its attempt ended, or nobody waits for it any more",
        "queued": "its worker died",
    },
    "answered": {},
}

#: A worker process.
WORKER: Final[Table] = {
    "starting": {"idle": "forked", "dead": "never came up"},
    "idle": {"busy": "got work", "leaving": "replaced or no longer needed", "dead": "died"},
    "busy": {"idle": "did its work", "dead": "died"},
    "leaving": {"dead": "exited"},
    "dead": {},
}

#: A weight set: one version of one model on one device.
WEIGHT_SET: Final[Table] = {
    "declared": {
        "building": "needed, a loader builds it",
        "adopting": "came frozen from an app",
        "freed": "never needed",
    },
    "building": {
        "adopting": "built and sealed",
        "failed": "the loader failed",
        "freed": "unloaded meanwhile",
    },
    "adopting": {"ready": "new workers have its modules", "freed": "unloaded meanwhile"},
    "ready": {
        "evicting": "idle, and its memory is needed",
        "draining": "unloaded or replaced",
        "freed": "unloaded, and no worker holds it",
    },
    "evicting": {
        "evicted": "its memory is free",
        "ready": "it could not be written out",
        "draining": "unloaded meanwhile",
        "freed": "unloaded meanwhile, and no worker holds it",
    },
    "evicted": {
        "returning": "needed again",
        "building": "needed again, and it could not be written out: a loader builds it anew",
        "freed": "unloaded",
    },
    "returning": {
        "ready": "in memory again",
        "evicted": "there was no memory for it, or the disk failed",
        "freed": "unloaded meanwhile",
    },
    "draining": {"freed": "no worker holds it any more"},
    "failed": {"building": "needed again", "freed": "unloaded"},
    "freed": {},
}

#: A region: memory that weights lie in.
REGION: Final[Table] = {
    "filling": {"sealed": "filled, or a file", "freed": "given up"},
    "sealed": {"leaving": "no weight set in memory lies in it", "freed": "nobody holds it any more"},
    "leaving": {"away": "written out", "sealed": "it could not be", "freed": "nobody holds it any more"},
    "away": {"returning": "a weight set is to be in memory again", "freed": "nobody holds it any more"},
    "returning": {
        "sealed": "mapped from there, or copied to its GPU",
        "away": "no memory, or the disk failed",
        "freed": "nobody holds it any more",
    },
    "freed": {},
}

#: A slot: memory that workers run in, one after the other.
SLOT: Final[Table] = {
    "free": {
        "leased": "a worker that runs in it sat down",
        "freed": "no model needs it, another takes its place, or it was never made",
    },
    "leased": {
        "free": "the worker has answered all that it ran there",
        "lost": "the worker died, and may have written late; or another slot takes its place meanwhile",
    },
    "lost": {"freed": "never used again"},
    "freed": {},
}

TABLES: Final[dict[str, Table]] = {
    "request": REQUEST,
    "worker": WORKER,
    "weight set": WEIGHT_SET,
    "region": REGION,
    "slot": SLOT,
}

_STORY_LENGTH: Final = 20


class ImpossibleTransition(Exception):
    """A state change that no table allows: a bug in the caller, never a user's fault."""


#: Called with kind, state before and state after of whatever changes its state in this process; see `observe`.
Observer: TypeAlias = Callable[[str, str, str], None]
_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Have every change of state told from now on, to somebody who counts them; None: to nobody."""
    global _observer
    _observer = observer


class Lifecycle:
    """The state of one object, and how it came there.

    Args:
        kind: a key of `TABLES`.
        name: what to call the object in its story; made a string only if that has to be told.
        state: where it starts.
    """

    __slots__ = ("_name", "_story", "_table", "state")

    def __init__(self, kind: str, name: object, state: str) -> None:
        self._table = TABLES[kind]
        self._name = (kind, name)
        self._story: tuple[str, ...] = (state,)
        self.state = state

    def __repr__(self) -> str:
        return f"<{self._name[0]} {self._name[1]}: {self.state}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return not self._table[self.state]

    def become(self, state: str) -> None:
        """Enter a state.

        Raises:
            ImpossibleTransition: the table does not allow it from here; the message tells the story.
        """
        if state not in self._table[self.state]:
            told = " -> ".join(self._story)
            raise ImpossibleTransition(f"{self._name[0]} {self._name[1]} cannot become {state}: {told}")
        if _observer is not None:
            _observer(self._name[0], self.state, state)
        self.state = state
        story = self._story
        self._story = (*story, state) if len(story) < _STORY_LENGTH else (*story[1:], state)
