"""What the requests of a handle have in common besides their arguments. Frozen and validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..protocol.limits import MAX_PRIORITY, MAX_RETRIES, MAX_SESSION_CHARACTERS
from .checks import ConfigError, check_count, check_name, check_number


@dataclass(frozen=True)
class RequestOptions:
    """The options of a request.

    Args:
        model: which model runs.
        method: which of its methods; empty: the one that the model was declared with.
        priority: from -100 to 100. Of what waits for a model the higher goes first, whosever it is; a lower one
            waits at most a second per level for its next turn, so that nothing waits for ever.
        timeout_s: seconds after which a request fails with `DeadlineExceeded`; None: never.
        retries: how many deaths of a worker a request survives; with 0 it runs once at most.
        session: requests of one session go to the worker that ran the one before, as long as that lives: up to 128
            printable characters, such as the name of a conversation whose state a model keeps.

    Raises:
        ConfigError: an option cannot be.
    """

    model: str
    method: str = ""
    priority: int = 0
    timeout_s: float | None = None
    retries: int = 1
    session: str = ""

    def __post_init__(self) -> None:
        check_name("model", self.model)
        if self.method != "":
            check_name("method", self.method)
        check_count("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.timeout_s is not None:
            check_number("timeout_s", self.timeout_s, 0, excluded=True)
        check_count("retries", self.retries, 0, MAX_RETRIES)
        _check_session(self.session)

    @property
    def may_be_packed(self) -> bool:
        """Whether calls may travel together: only where nobody could tell."""
        return self.timeout_s is None and self.retries > 0 and not self.session


def _check_session(session: Any) -> None:
    is_text = isinstance(session, str)
    if not is_text or len(session) > MAX_SESSION_CHARACTERS or not session.isprintable():
        raise ConfigError(
            f"session must be a text of at most {MAX_SESSION_CHARACTERS} printable characters, not "
            f"{session!r:.200}"
        )
