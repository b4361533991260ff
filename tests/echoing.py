"""A connection without a pool behind it, which answers as a test wants."""

from __future__ import annotations

import itertools
from collections import deque

from onecopy.pool.gatherings import Gatherings
from onecopy.pool.handle import ModelHandle
from onecopy.pool.options import RequestOptions
from onecopy.protocol.messages import Reply, Welcome
from onecopy.protocol.values import decode


class Echoing:
    """A connection whose models return their argument, once somebody waits. Its time passes when `now` is set."""

    def __init__(self, workers=2, seconds=1e-5):
        self.now = 100.0
        self.welcome = Welcome("pool", workers)
        self.seconds = seconds  # of each call
        self.counts = []
        self.options = []
        self.forgotten = []
        self.numbers = itertools.count(1)
        self.sent = deque()
        self.refusals = {}  # by the number of a request: how it fails
        self.gatherings = Gatherings(self, lambda: self.now)

    def check_usable(self):
        """It always is."""

    def keep_receiving(self, *, urgent=False):
        """Somebody will call `answer_one`."""

    def expects_large(self, _key):
        return False

    def submit(self, expected, options, body, buffers=(), *, count=0, credit=0):
        expected.number = next(self.numbers)
        self.counts.append(count)
        self.options.append(options)
        self.sent.append((expected, body, buffers, count))

    post = submit

    def wait(self, waitable, timeout=None):
        while not waitable.done():
            if self.sent:
                self.answer_one()
            else:  # what is left waits for others, for a moment
                self.now += 0.001
                self.gatherings.look_after()

    def answer_one(self):
        self.answer(self.sent.popleft())
        self.gatherings.look_after()

    def answer(self, request):
        expected, body, buffers, count = request
        if expected.number in self.refusals:
            expected.failed(self.refusals[expected.number])
            return
        value = decode(body, buffers)
        result = value if count else value[0][0]
        expected.answered(Reply(expected.number, self.seconds * (count or 1), b"", [], []), result, ())

    def read_once(self):
        for _ in range(min(10, len(self.sent))):
            self.answer_one()

    def forget(self, number, kill=False):
        self.forgotten.append(number)
        due = [one for one in self.sent if one[0].number == number]
        for one in due:
            self.sent.remove(one)
        return bool(due)


def handle_of(connection, **options):
    return ModelHandle(connection, RequestOptions("model", **options))
