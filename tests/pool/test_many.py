"""Many calls at once: what travels together, and that nobody can tell."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import request_models
import torch
from echoing import Echoing, handle_of
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, ModelError, ModelNotFound, Pool, SupervisorLost, WorkerDied
from onecopy.pool.connection import Connection
from onecopy.pool.flow import Flow
from onecopy.pool.options import RequestOptions
from onecopy.pool.packs import Pack, PackSize
from onecopy.protocol.lists import ItemEncoder, join, one_argument
from onecopy.protocol.messages import Reply
from onecopy.protocol.values import encode

# --- without a pool: a connection that answers as a test wants -----------------------------------------------


def test_quick_models_get_packs_that_grow_and_slow_ones_single_calls():
    quick, slow = Echoing(seconds=1e-6), Echoing(seconds=0.01)
    assert list(handle_of(quick).map(range(20_000))) == list(range(20_000))
    assert list(handle_of(slow).map(range(1000))) == list(range(1000))
    assert quick.counts[0] == 0
    assert max(quick.counts) == 256
    assert len(quick.counts) < 1000
    assert slow.counts == [0] * 1000


def test_packs_get_smaller_when_runs_get_longer():
    connection = Echoing(seconds=1e-6)
    results = handle_of(connection).map(range(100_000))
    list(itertools.islice(results, 20_000))
    assert connection.counts[-1] == 256
    connection.seconds = 0.01
    list(itertools.islice(results, 40_000))
    assert connection.counts[-1] == 0
    results.close()


@pytest.mark.parametrize("buffersize", [1, 3, 10, 64, 1000])
def test_no_more_calls_are_under_way_than_said_and_every_worker_gets_some(buffersize):
    connection = Echoing(workers=4, seconds=1e-6)
    pulled = 0

    def source():
        nonlocal pulled
        for x in range(5000):
            pulled += 1
            yield x

    for taken, y in enumerate(handle_of(connection).map(source(), buffersize=buffersize)):
        assert y == taken
        assert pulled <= taken + 1 + buffersize
    assert max(connection.counts) * 8 <= max(buffersize, 8)


def test_of_a_source_without_a_length_no_more_is_taken_than_before():
    connection = Echoing(workers=2, seconds=1e-6)
    pulled = []
    source = (pulled.append(x) or x for x in itertools.count())
    results = handle_of(connection).map(source)
    for taken in range(3000):
        assert next(results) == taken
        assert len(pulled) == taken + 1 + 64  # 16 for each worker, and at least 64
    results.close()


def test_what_is_given_may_be_changed_the_moment_after():
    connection = Echoing(seconds=1e-6)
    array = np.zeros(3)

    def source():
        for number in range(2000):
            array[:] = number
            yield array

    assert all((y == number).all() for number, y in enumerate(handle_of(connection).map(source())))
    assert max(connection.counts) > 1


@pytest.mark.parametrize(
    "options", [{"timeout_s": 5.0}, {"retries": 0}, {"session": "mine"}], ids=["timeout", "no retry", "session"]
)
def test_where_somebody_could_tell_every_call_travels_alone(options):
    connection = Echoing(seconds=1e-6)
    assert list(handle_of(connection, **options).map(range(500))) == list(range(500))
    assert set(connection.counts) == {0}
    assert list(handle_of(connection, priority=-5).map(range(5000))) == list(range(5000))
    assert max(connection.counts) > 1
    assert connection.options[-1].priority == -5


def test_large_arrays_travel_alone_and_in_their_place():
    connection = Echoing(seconds=1e-6)
    xs = [np.full(5000, x) if x % 100 == 0 else x for x in range(3000)]
    results = list(handle_of(connection).map(xs))
    assert all(np.array_equal(x, y) for x, y in zip(xs, results, strict=True))
    assert max(connection.counts) > 1


@pytest.mark.parametrize("bad", [0, 100, 1999])
def test_an_argument_that_cannot_travel_fails_in_its_place_as_if_alone(bad):
    def source():
        for x in range(2000):
            yield {"a": [1, threading.Lock()]} if x == bad else x

    connection = Echoing(seconds=1e-6)
    seen = []
    with pytest.raises(InvalidRequest) as caught:
        seen.extend(handle_of(connection).map(source()))
    assert caught.value.message.startswith("[args, kwargs][0][0]['a'][1] cannot travel: a _thread.lock")
    results = handle_of(Echoing(seconds=1e-6)).map(source())
    assert [next(results) for _ in range(bad)] == list(range(bad))
    with pytest.raises(InvalidRequest):
        next(results)


@pytest.mark.parametrize("error", [WorkerDied("SIGKILL"), InvalidRequest("too much")])
@pytest.mark.parametrize("in_order", [True, False])
def test_the_calls_of_a_pack_that_failed_are_tried_one_by_one(error, in_order):
    connection = Echoing(seconds=1e-6)
    handle = handle_of(connection)
    results = handle.map(range(5000)) if in_order else (y for _, y in handle.as_completed(range(5000)))
    seen = list(itertools.islice(results, 2000))
    expected, _, _, count = connection.sent[-1]
    assert count > 1
    connection.refusals[expected.number] = error
    before = len(connection.counts)
    seen += results
    assert (seen if in_order else sorted(seen)) == list(range(5000))
    assert connection.counts[before:].count(0) >= count
    assert set(connection.options) == {RequestOptions("model")}


def test_what_a_pack_fails_with_otherwise_is_what_its_first_call_fails_with():
    connection = Echoing(seconds=1e-6)
    results = handle_of(connection).map(range(5000))
    seen = list(itertools.islice(results, 2000))
    pack, _, _, count = connection.sent[0]
    connection.refusals[pack.number] = ModelNotFound("it was unloaded")
    assert count > 1
    with pytest.raises(ModelNotFound):
        seen.extend(results)
    assert not connection.sent  # what was not answered is given up


def test_closing_gives_up_what_is_under_way():
    connection = Echoing(seconds=1e-6)
    results = handle_of(connection).map(itertools.count())
    assert next(results) == 0
    sent = [expected.number for expected, *_ in connection.sent]
    results.close()
    assert connection.forgotten == sent != []


@pytest.mark.parametrize("in_order", [True, False])
def test_a_source_that_waits_for_what_was_given_is_not_waited_for_in_vain(in_order):
    """A pack that is not full is sent while the source of arguments makes everybody wait."""
    connection = Echoing(seconds=1e-6)
    given = 0

    def source():
        nonlocal given
        for given in range(3000):
            yield given
            if given % 100 == 99:
                assert wait_until(lambda: unsent() == 0)

    def unsent():
        return given + 1 - sum(max(1, count) for count in connection.counts)

    handle = handle_of(connection)
    results = handle.map(source()) if in_order else (y for _, y in handle.as_completed(source()))
    assert sorted(results) == list(range(3000))
    assert max(connection.counts) > 1


@pytest.mark.parametrize("reply", [[1, 2], "abc", None, {}])
def test_an_answer_that_is_no_list_of_as_many_results_is_refused(reply):
    pack = Pack(0, threading.Condition(), lambda _: None)
    pack.bodies = [b"", b"", b""]
    pack.answered(Reply(1, 0.1, b"", [], []), reply, ())
    assert pack.done()
    assert isinstance(pack.error, InvalidRequest)


def test_errors_of_single_calls_stay_in_their_places():
    pack = Pack(10, threading.Condition(), lambda _: None)
    pack.bodies = [b"", b"", b""]
    record = ModelError("no", exception="KeyError").to_record()
    pack.answered(Reply(1, 0.1, b"", [], [[1, record]]), [5, None, 7], ())
    assert not pack.says_nothing
    first, second, third = pack.outcomes()
    assert (first, third) == (5, 7)
    assert isinstance(second, ModelError)


def test_a_pack_grows_only_as_fast_as_its_calls_come(monkeypatch):
    now = 0.0
    monkeypatch.setattr("onecopy.pool.packs.time.perf_counter", lambda: now)
    size = PackSize(2, None, may_pack=True, may_look_ahead=False)
    pack = Pack(0, threading.Condition(), lambda _: None)
    pack.bodies = [b""]
    for pace_s, calls in ((0.01, 1), (0.001, 2)):
        now += pace_s
        size.sent(1)
        pack.answered(Reply(1, 1e-5, b"", [], []), [1], ())
        size.learn(pack)
        assert size.calls == calls


VALUES = [
    0, -1, 2**63, 2**100, -(2**90), 1.5, float("inf"), True, None, "", "é", "x" * 100_000, b"", b"x" * 100_000, [],
    {}, (1, (2,)), [[1], {"a": 2}], 1j, np.float32(1.5), np.arange(5), torch.arange(3.0),
]  # fmt: skip


def test_values_joined_are_the_list_of_them():
    encoder = ItemEncoder()
    bodies = [encoder.encode(value, name="x").body for value in VALUES]
    assert join(bodies) == encode(VALUES).body
    assert [one_argument(body) for body in bodies] == [encode([[value], {}]).body for value in VALUES]


@pytest.mark.parametrize("value", ["\ud800", threading.Lock(), [print]])
def test_a_value_that_cannot_travel_says_so_as_ever(value):
    with pytest.raises(InvalidRequest) as plain:
        encode(value, name="x")
    with pytest.raises(InvalidRequest) as item:
        ItemEncoder().encode(value, name="x")
    assert item.value.message == plain.value.message
    assert ItemEncoder().encode(5, name="x").body == encode(5).body


# --- with a pool ---------------------------------------------------------------------------------------------


@pytest.fixture
def counts(monkeypatch):
    """How many calls each request has that is sent."""
    seen = []

    def submit(self, *args, count=0, **options):
        seen.append(count or 1)
        return original(self, *args, count=count, **options)

    original = Connection.submit
    monkeypatch.setattr(Connection, "submit", submit)
    return seen


MIXED = [0, -1, 1.5, None, True, "text", b"bytes", [1, 2], {"a": (1, 2)}, np.arange(4), torch.ones(2, 2)]


def same(x, y):
    if isinstance(x, np.ndarray):
        return np.array_equal(x, y)
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else (x == y and type(x) is type(y))


def test_ten_thousand_values_of_all_kinds_come_back_in_order(module_pool, counts):
    xs = MIXED * 1000
    results = list(module_pool.map("model", xs))
    assert len(results) == len(xs)
    assert all(map(same, xs, results))
    assert max(counts) > 8


def test_as_completed_gives_each_result_once_with_its_index(module_pool, counts):
    results = dict(module_pool.as_completed("model", range(10_000)))
    assert results == {x: x for x in range(10_000)}
    assert max(counts) > 8


def test_one_call_that_fails_raises_its_own_error_in_its_place(module_pool):
    handle = module_pool.model("model", method="checked")
    results = handle.map(-x if x == 5000 else x for x in range(10_000))
    assert [next(results) for _ in range(5000)] == list(range(5000))
    with pytest.raises(ModelError, match=r"ValueError: -5000 is negative(.|\n)*request_models\.py"):
        next(results)
    assert wait_until(lambda: module_pool.status().unanswered == 0)


def test_one_result_that_cannot_travel_fails_alone(module_pool):
    handle = module_pool.model("model", method="odd")
    results = handle.map([-1 if x == 5000 else x for x in range(6000)])
    assert [next(results) for _ in range(5000)] == list(range(5000))
    with pytest.raises(InvalidRequest, match=r"the result cannot travel: a _thread\.lock"):
        next(results)


def test_only_the_call_that_kills_fails():
    with Pool({"model": request_models.Quick()}, workers=2, slots=2) as pool:
        results = pool.model("model", method="deadly").map(-1 if x == 5000 else x for x in range(6000))
        seen = [next(results) for _ in range(5000)]
        assert seen == list(range(5000))
        with pytest.raises(WorkerDied, match="tried 2 times"):
            next(results)
        assert list(pool.map("model", range(100))) == list(range(100))


def test_large_results_of_quick_models_travel_alone(module_pool, counts):
    results = list(module_pool.model("model", method="large").map(range(300)))
    assert all(float(y[0]) == x and y.shape == (100_000,) for x, y in enumerate(results))
    assert len(counts) > 250
    counts.clear()
    list(module_pool.model("model", method="large").map(range(100)))
    assert set(counts) == {1}  # it is known by now


def test_a_progress_bar_counts_calls(module_pool, capsys):
    list(module_pool.map("model", range(3000), progress=True))
    assert "3000/3000" in capsys.readouterr().err


def test_many_threads_map_at_once(module_pool):
    results = {}

    def work(seed):
        results[seed] = list(module_pool.map("model", range(seed, seed + 3000)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: list(range(seed, seed + 3000)) for seed in range(6)}


def test_a_map_over_a_lost_supervisor_ends_with_that():
    pool = Pool({"model": request_models.Quick()}, workers=1)
    results = pool.map("model", itertools.count())
    assert [next(results) for _ in range(2000)] == list(range(2000))
    pool._supervisor.kill()
    with pytest.raises(SupervisorLost):
        list(results)
    pool.shutdown()


def test_wrong_buffersizes_are_refused(module_pool):
    for buffersize in (0, -1, 1.5, True, "many"):
        with pytest.raises(ConfigError, match="buffersize must be a whole number from 1"):
            module_pool.map("model", [1], buffersize=buffersize)
        with pytest.raises(ConfigError, match="buffersize"):
            module_pool.as_completed("model", [1], buffersize=buffersize)


def test_a_flow_tells_what_it_is_at():
    flow = Flow(Echoing(), RequestOptions("model"), may_look_ahead=False)
    flow.add(1)
    assert repr(flow) == "<Flow of model: 1 under way, <PackSize 1 of 64>>"
    assert "1 from 0" in repr(flow._packs[0])
    flow.close()
