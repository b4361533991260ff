"""The state tables: complete, reachable, and never left by a move that they do not allow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol.states import TABLES, ImpossibleTransition, Lifecycle, observe

FIRST = {"request": "queued", "worker": "starting", "weight set": "declared", "region": "filling", "slot": "free"}
TERMINAL = {"request": "answered", "worker": "dead", "weight set": "freed", "region": "freed", "slot": "freed"}
ROWS = [(kind, state) for kind, table in TABLES.items() for state in table]


def test_every_kind_has_one_first_and_one_terminal_state():
    assert set(FIRST) == set(TERMINAL) == set(TABLES)


@pytest.mark.parametrize("kind", TABLES)
def test_every_state_that_is_named_has_a_row(kind):
    named = {target for row in TABLES[kind].values() for target in row}
    assert named | {FIRST[kind]} == set(TABLES[kind])


@pytest.mark.parametrize(("kind", "state"), ROWS)
def test_every_move_has_a_reason_and_none_leads_to_itself(kind, state):
    row = TABLES[kind][state]
    assert all(reason for reason in row.values())
    assert state not in row


@pytest.mark.parametrize("kind", TABLES)
def test_only_the_terminal_state_has_an_empty_row(kind):
    assert [state for state, row in TABLES[kind].items() if not row] == [TERMINAL[kind]]


@pytest.mark.parametrize(("kind", "state"), ROWS)
def test_every_state_is_reached_from_the_first_and_reaches_the_end(kind, state):
    assert state in reachable(kind, FIRST[kind])
    assert TERMINAL[kind] in reachable(kind, state)


def reachable(kind, start):
    found, new = set(), {start}
    while new:
        found |= new
        new = {target for state in new for target in TABLES[kind][state]} - found
    return found


@pytest.mark.parametrize(("kind", "state"), ROWS)
@pytest.mark.parametrize("unknown", [False, True])
def test_an_impossible_move_raises_and_changes_nothing(kind, state, unknown):
    targets = {"nowhere"} if unknown else set(TABLES[kind]) - set(TABLES[kind][state])
    for target in targets:
        life = Lifecycle(kind, "7", state)
        with pytest.raises(ImpossibleTransition, match=f"{kind} 7 cannot become {target}: {state}"):
            life.become(target)
        assert life.state == state
        assert life.is_over == (state == TERMINAL[kind])


def test_the_story_of_an_object_is_told():
    life = Lifecycle("request", "12 for embed", "queued")
    for state in ("running", "queued", "running", "answered"):
        life.become(state)
    assert life.is_over
    assert repr(life) == "<request 12 for embed: answered>"
    story = "queued -> running -> queued -> running -> answered"
    with pytest.raises(ImpossibleTransition, match=f"^request 12 for embed cannot become running: {story}$"):
        life.become("running")


def test_a_long_story_is_told_from_where_it_matters():
    life = Lifecycle("worker", "3", "starting")
    for state in ["idle", "busy"] * 1000:
        life.become(state)
    with pytest.raises(ImpossibleTransition) as caught:
        life.become("starting")
    assert len(str(caught.value)) < 250
    assert str(caught.value).endswith("idle -> busy")


@settings(deadline=None)
@given(st.data())
def test_a_walk_along_the_table_never_fails_and_ends_where_it_is_over(data):
    kind = data.draw(st.sampled_from(list(TABLES)))
    life = Lifecycle(kind, "1", FIRST[kind])
    for _ in range(30):
        if life.is_over:
            break
        target = data.draw(st.sampled_from(list(TABLES[kind][life.state])))
        life.become(target)
        assert life.state == target
    assert life.is_over == (life.state == TERMINAL[kind])


def test_changes_are_told_to_who_observes_and_those_that_are_refused_are_not():
    told = []
    observe(lambda *change: told.append(change))
    try:
        life = Lifecycle("request", 1, "queued")
        life.become("running")
        with pytest.raises(ImpossibleTransition):
            life.become("running")
    finally:
        observe(None)
    life.become("answered")
    assert told == [("request", "queued", "running")]
