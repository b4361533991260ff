"""A simulated pool that is attacked for hours: the books of soaks account for everything that it accepted."""

import pytest
from onecopy.pool.core import events, instructions
from simulation.chaos import Chaos, chaos
from simulation.scenario import scenario_of

SAID = {"workers": 3, "models": 4, "clients": 3, "hours": 0.5}


def test_everything_is_accounted_for_whatever_happens():
    found = chaos(scenario_of(SAID))
    assert [text for name, text in found.items() if name.startswith("violation ")] == []
    assert found["violations"] == 0
    assert found["requests"] > 10_000
    for what in ("kill a worker", "kill a loader", "evict", "replace", "unload and load", "a client leaves"):
        assert found[f"happened: {what}"] > 0


def test_a_seed_decides_everything():
    first, again, other = (chaos(scenario_of(SAID | {"hours": 0.05, "seed": seed})) for seed in (2, 2, 3))
    for one in (first, again, other):
        one.pop("real seconds")
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda one: [one, one], "had ended before"),
        (lambda one: [], "was never answered"),
        (lambda one: [one._replace(message=one.message._replace(body=b"nobody's"))], "it got b"),
    ],
)  # fmt: skip
def test_a_core_that_breaks_its_promises_is_found_out(damage, complaint):
    """The core's answers to one kind of event are doubled, lost or mixed up; the books tell."""
    run = Chaos(scenario_of(SAID | {"hours": 0.02}))
    handle, machine = run.machine.handle, run.machine

    def damaged(event, now):
        out = handle(event, now)
        if not isinstance(event, events.AttemptEnded):
            return out
        damages = {instructions.ToClient: damage}
        return [new for one in out for new in damages.get(type(one), lambda one: [one])(one)]

    machine.handle = damaged
    run.run()
    assert complaint in " ".join(run.books.violations)
