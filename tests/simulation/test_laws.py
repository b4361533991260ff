"""What a simulation finds obeys the laws that any queue obeys, and those of queues whose solution is known."""

import math

import pytest
from simulation import measures
from simulation.load import backlog, load
from simulation.saturation import saturated, saturation
from simulation.scenario import scenario_of
from simulation.traffic import prepared


def simulated(**said):
    """What comes of a load; one worker and one model that takes 10 ms on average, unless it is said otherwise."""
    alone = {"workers": 1, "models": 1, "clients": 1, "service": "exponential", "base_ms": 10, "duration_s": 200}
    return load(scenario_of(alone | said))


def waits_by_erlang(servers, load):
    """The mean wait in an M/M/c queue, in multiples of the service time (Erlang C)."""
    offered = servers * load
    full = offered**servers / math.factorial(servers) / (1 - load)
    waits = full / (sum(offered**one / math.factorial(one) for one in range(servers)) + full)
    return waits / (servers * (1 - load))


#: Of the factor that the mean time of a run is multiplied with.
VARIANCES = {"fixed": 0.0, "exponential": 1.0, "lognormal": math.e - 1}
MANY = {"workers": 16, "models": 5, "clients": 3, "duration_s": 4}


@pytest.mark.parametrize(
    "said",
    [
        {},
        MANY,
        MANY | {"service": "lognormal", "load": 0.95},
        MANY | {"max_batch": 8, "item_ms": 1, "load": 0.9},
        MANY | {"outstanding": 20},
    ],
)
def test_what_is_in_the_pool_is_what_comes_times_how_long_it_stays(said):
    found = simulated(**said)
    expected = found["throughput, requests/s"] * found["latency, ms"]["mean"] / 1000  # Little's law
    assert found["requests in the pool"] == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("offered", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("service", VARIANCES)
def test_workers_are_used_as_much_as_is_asked_for(offered, service):
    found = simulated(**MANY | {"load": offered, "service": service})
    deviation = 1 / math.sqrt(found["requests"])  # of a Poisson process
    assert found["throughput, requests/s"] == pytest.approx(offered * 1600, rel=4 * deviation)
    assert found["utilisation"] == pytest.approx(offered, rel=4 * deviation * math.sqrt(1 + VARIANCES[service]))


@pytest.mark.parametrize(("servers", "offered"), [(1, 0.5), (2, 0.6), (8, 0.7)])
def test_waits_are_those_of_the_queue_that_erlang_solved(servers, offered):
    found = simulated(workers=servers, load=offered, duration_s=400 / servers)
    assert found["wait, ms"]["mean"] == pytest.approx(10 * waits_by_erlang(servers, offered), rel=0.15)


@pytest.mark.parametrize("service", VARIANCES)
def test_waits_grow_with_the_spread_of_the_runs_as_pollaczek_and_khinchine_found(service):
    found = simulated(service=service, load=0.5, duration_s=400)
    assert found["wait, ms"]["mean"] == pytest.approx(5 * (1 + VARIANCES[service]), rel=0.15)


def test_a_closed_loop_has_as_many_requests_under_way_as_it_is_told():
    found = simulated(**MANY | {"outstanding": 20})
    assert found["requests in the pool"] == pytest.approx(60)
    assert found["utilisation"] == pytest.approx(1, abs=0.01)


def test_a_seed_decides_everything_and_another_one_other_things():
    said = MANY | {"service": "lognormal", "max_batch": 4, "item_ms": 2, "duration_s": 1}
    first, again, other = (simulated(**said, seed=seed) for seed in (5, 5, 6))
    for one in (first, again, other):
        assert one.pop("real")["events"] > 1000
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "said", [{"load": 1.5}, {"max_batch": 16, "item_ms": 1, "load": 1.2}, {"outstanding": 50}, {"load": 0.01}]
)
def test_every_request_is_answered_once_and_the_pool_ends(said):
    scenario = scenario_of(MANY | {"duration_s": 1} | said)
    machine = prepared(scenario)
    answered = []
    on_answer = machine.on_answer
    machine.on_answer = lambda number: (answered.append(number), on_answer(number))
    machine.run()
    journal = machine.journal
    assert sorted(answered) == list(range(len(journal.sent_s)))
    assert journal.unanswered == len(journal.has_failed) == 0
    assert all(
        sent_s <= begun_s < answered_s
        for sent_s, begun_s, answered_s in zip(journal.sent_s, journal.begun_s, journal.answered_s, strict=True)
    )
    assert max(journal.batches) <= said.get("max_batch", 1)
    machine.stop()
    assert machine.is_finished


def test_batches_do_more_than_single_calls_could():
    said = MANY | {"service": "fixed", "base_ms": 9, "item_ms": 1, "load": 0.5, "max_batch": 32}
    found = simulated(**said)
    assert found["capacity, requests/s"] == pytest.approx(16 * 32 / 0.041)
    assert found["throughput, requests/s"] > 3 * 16 / 0.010  # what runs of one call could do
    assert found["calls of a run"]["mean"] > 4


def test_the_higher_priority_waits_less():
    said = MANY | {"load": 0.95, "duration_s": 10}
    kinds = [{"name": "high", "priority": 10}, {"name": "low", "priority": -10, "demand": 3}]
    latency = simulated(**said | {"clients": kinds})["latency by clients, ms"]
    assert latency["high"]["mean"] < 0.8 * latency["low"]["mean"]


# --- fairness ------------------------------------------------------------------------------------------------


def test_models_get_their_shares_and_clients_equal_parts_when_all_ask_for_too_much():
    found = saturation(scenario_of(MANY | {"models": 6, "clients": 4, "service": "lognormal"}))
    assert found["utilisation"] > 0.99
    assert found["Jain's index over clients"] > 0.99
    shares, demands = found["models by share"], found["clients by demand"]
    assert {key: one["due"] for key, one in shares.items()} == pytest.approx({"1": 1 / 3, "2": 2 / 3})
    assert {key: one["due"] for key, one in demands.items()} == pytest.approx({"1": 1 / 2, "2": 1 / 2})
    for one in (*shares.values(), *demands.values()):
        assert one["got"] == pytest.approx(one["due"], rel=0.03)
        assert one["least of its due"] > 0.9
        assert one["most of its due"] < 1.1


def test_where_all_ask_for_too_much_each_asks_for_more_than_its_due():
    models = [{"share": 5, "base_ms": 3}, {"demand": 4, "count": 3}]
    scenario = saturated(scenario_of({"models": models, "clients": [{"demand": 7, "outstanding": 3}, {}]}))
    work = [kind.demand * kind.call_s for kind in scenario.each_model]
    shares = [kind.share for kind in scenario.each_model]
    asked = [kind.demand for kind in scenario.each_client]
    for one, share in zip(work, shares, strict=True):
        for client in asked:
            part = scenario.load * one / sum(work) * client / sum(asked)
            assert part > share / sum(shares) / len(asked)


def test_a_light_client_hardly_waits_beside_one_with_a_long_backlog():
    found = backlog(scenario_of({"workers": 64, "models": 1, "service": "exponential"}), requests=20_000)
    assert found["the backlog lasts, s"] == pytest.approx(20_000 * 0.010 / 64)
    assert found["alone: wait, ms"]["max"] == 0
    assert found["beside it: wait, ms"]["max"] < 10


def test_jains_index_and_percentiles_are_what_they_are_defined_as():
    assert measures.jain([3, 3, 3]) == pytest.approx(1)
    assert measures.jain([5, 0, 0, 0]) == pytest.approx(1 / 4)
    assert math.isnan(measures.jain([0, 0]))
    ordered = list(range(1, 1001))
    assert [measures.percentile(ordered, part) for part in (0.5, 0.99, 0.999, 1)] == [500, 990, 999, 1000]
    assert math.isnan(measures.spread([])["p99"])
