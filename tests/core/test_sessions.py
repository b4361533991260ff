"""Sessions: to the worker that had them, as long as it lives; and nobody else waits for ever because of that."""

from core.told import Told
from onecopy.pool.core import events
from onecopy.pool.core import sessions as sessions_module
from onecopy.protocol.messages import Run


def runs(out):
    return [
        (one.child, one.message.parts[0][0].decode())
        for one in out
        if isinstance(getattr(one, "message", None), Run)
    ]


def test_a_session_goes_to_the_worker_that_had_it_before():
    core = Told(workers=3).start("m")
    assert runs(core.submit(1, session="s")) == [(3, "ann/1")]
    core.ended(3, 1, 1)
    core.submit(2)
    core.submit(3)
    core.ended(3, 2, 2)
    core.ended(2, 3, 3)
    assert runs(core.submit(4, session="s")) == [(3, "ann/4")]


def test_it_waits_for_that_worker_although_others_are_idle():
    core = Told(workers=2).start("m")
    core.submit(1, session="s")
    assert runs(core.submit(2, session="s")) == []
    assert runs(core.submit(3)) == [(1, "ann/3")]
    assert runs(core.ended(2, 1, 1)) == [(2, "ann/2")]


def test_sessions_of_models_are_apart():
    core = Told(workers=2).start("a", "b")
    core.submit(1, "a", session="s")
    assert runs(core.submit(2, "b", session="s")) == [(1, "ann/2")]


def test_it_begins_anew_when_its_worker_dies_and_keeps_its_order():
    core = Told(workers=2).start("m")
    core.submit(1, session="s", retries=1)
    core.submit(2, session="s")
    core.submit(3, session="s")
    assert runs(core.exited(2, begun=1)) == [(1, "ann/1")]
    assert runs(core.forked(3)) == []
    assert runs(core.ended(1, 2, 1)) == [(1, "ann/2")]
    assert runs(core.ended(1, 3, 2)) == [(1, "ann/3")]


def test_it_moves_when_its_worker_is_to_be_replaced():
    core = Told(workers=2).start("m")
    core.submit(1, session="s")
    core.submit(2, session="s")
    core.core.fleet.workers.outdate(core.core.fleet.workers.get(2))
    assert runs(core.submit(3)) == [(1, "ann/3")]
    assert runs(core.forked(3)) == []
    assert runs(core.ended(2, 1, 1)) == [(3, "ann/2")]


def test_others_take_turns_with_it():
    core = Told(workers=1).start("m")
    for number in range(1, 5):
        core.submit(number, session="s")
    core.feed(events.ClientJoined("bob"))
    for number in range(11, 14):
        core.submit(number, client="bob")
    order = []
    for _ in range(6):
        [(attempt, given)] = core.books.held[1].items()
        [(client, number)] = given.keys
        order.append(number)
        answer = [b"answer to " + f"{client}/{number}".encode(), [], [], 0]
        core.feed(events.AttemptEnded(1, attempt, 1.0, [answer], []))
    assert sorted(order[:4]) == [1, 2, 11, 12], order


def test_a_session_keeps_its_order_although_its_later_requests_waited_elsewhere():
    core = Told(workers=2).start("m")
    core.submit(1, session="s")
    core.submit(2, session="s")
    core.submit(3, session="s")  # these two wait for the worker, as there is one that could take others
    assert runs(core.submit(4)) == [(1, "ann/4")]
    core.submit(5, session="s")  # and this one in the model's queue, as there is none
    order = []
    for attempt in (1, 3, 4, 5):
        number = 1 if attempt == 1 else order[-1]
        [(_, begun)] = runs(core.ended(2, attempt, number)) or [(2, "ann/0")]
        order.append(int(begun.removeprefix("ann/")))
    assert order == [2, 3, 5, 0]


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(sessions_module, "MOST_SESSIONS", 3)
    core = Told().start("m")
    for number in range(10):
        core.submit(number, session=f"s{number}")
        core.ended(1, number + 1, number)
    sessions = core.core.dispatch.sessions
    assert len(sessions) == 3
    assert sum(len(keys) for keys in sessions._keys.values()) == 3


def test_what_waits_for_a_worker_can_be_cancelled():
    core = Told(workers=2).start("m")
    core.submit(1, session="s")
    core.submit(2, session="s")
    core.feed(events.Cancelled("ann", 2))
    assert runs(core.ended(2, 1, 1)) == []
    assert not core.core.dispatch.sessions._queues
