"""What happened to each request of a simulation, and what the workers did while it was measured."""

from __future__ import annotations

from collections import Counter, defaultdict

_NEVER = float("inf")


class Journal:
    """Requests by number, from 0; and sums over the time that is measured.

    Args:
        from_s, to_s: the time that is measured.

    Attributes:
        sent_s, answered_s: when each request was sent and answered; infinity: not yet.
        begun_s: when its run began.
        client, model: whose it is, and what it asks for, by number.
        has_failed: the numbers of those that were refused or failed.
        worker_s: how much of the workers' time was used.
        client_s, model_s: the same by number of the client and the model; a batch is its calls' in equal parts.
        batches: how many runs had so many calls.
        in_pool_s: how long requests were in the pool, all together.
        succeeded: how many were answered with a result.
    """

    def __init__(self, from_s: float, to_s: float) -> None:
        self.from_s = from_s
        self.to_s = to_s
        self.sent_s: list[float] = []
        self.begun_s: list[float] = []
        self.answered_s: list[float] = []
        self.client: list[int] = []
        self.model: list[int] = []
        self.has_failed: set[int] = set()
        self.worker_s = 0.0
        self.client_s: defaultdict[int, float] = defaultdict(float)
        self.model_s: defaultdict[int, float] = defaultdict(float)
        self.batches: Counter[int] = Counter()
        self.in_pool_s = 0.0
        self.succeeded = 0
        self._unanswered = 0
        self._counted_s = from_s

    @property
    def unanswered(self) -> int:
        """How many requests have no answer yet."""
        return self._unanswered

    def sent(self, now: float, client: int, model: int) -> int:
        """Note a request; return its number."""
        self._count(now)
        self._unanswered += 1
        self.sent_s.append(now)
        self.begun_s.append(_NEVER)
        self.answered_s.append(_NEVER)
        self.client.append(client)
        self.model.append(model)
        return len(self.sent_s) - 1

    def answered(self, now: float, number: int, *, has_failed: bool) -> None:
        """Note an answer."""
        self._count(now)
        self._unanswered -= 1
        self.answered_s[number] = now
        if has_failed:
            self.has_failed.add(number)
        elif self.from_s <= now < self.to_s:
            self.succeeded += 1

    def ran(self, begun_s: float, ended_s: float, numbers: list[int]) -> None:
        """Note a run of these requests."""
        calls = len(numbers)
        for number in numbers:
            self.begun_s[number] = begun_s
        measured_s = min(ended_s, self.to_s) - max(begun_s, self.from_s)
        if measured_s <= 0:
            return
        self.worker_s += measured_s
        self.batches[calls] += 1
        self.model_s[self.model[numbers[0]]] += measured_s
        for number in numbers:
            self.client_s[self.client[number]] += measured_s / calls

    def measured(self) -> list[int]:
        """Return the requests that were sent in the time that is measured, and succeeded."""
        return [
            number
            for number, sent_s in enumerate(self.sent_s)
            if self.from_s <= sent_s < self.to_s and number not in self.has_failed
        ]

    def _count(self, now: float) -> None:
        """Add the time that passed with as many requests in the pool as there are."""
        until_s = min(now, self.to_s)
        if until_s > self._counted_s:
            self.in_pool_s += self._unanswered * (until_s - self._counted_s)
            self._counted_s = until_s
