"""Regions: found by their content, waited for while others fill them, freed with their last holder."""

import hypothesis.strategies as st
import pytest
from core.told import Told, codes, done, load_of
from hypothesis import given, settings
from onecopy.pool.core import events
from onecopy.pool.core.instructions import ForkChild, FreeRegions, GrantRegions
from onecopy.pool.core.regions import RegionGrant, Regions, Want
from onecopy.protocol.errors import InvalidRequest, OutOfBudget
from onecopy.protocol.messages import ModelBuilt

A, B = b"a" * 16, b"b" * 16


def states(grants):
    return [grant.state for grant in grants]


def test_what_is_filled_is_found_by_its_content_and_size():
    regions = Regions()
    (first,) = regions.want(1, [Want(4096, A)], may_wait=True)
    regions.filled(1, [first.number])
    again, larger, other = regions.want(2, [Want(4096, A), Want(8192, A), Want(4096, B)], may_wait=True)
    assert again == RegionGrant(first.number, 4096, "compare", is_new=False)
    assert states([larger, other]) == ["fill", "fill"]


def test_what_has_no_digest_is_never_found():
    regions = Regions()
    (first,) = regions.want(1, [Want(4096, b"")], may_wait=True)
    regions.filled(1, [first.number])
    assert states(regions.want(2, [Want(4096, b"")], may_wait=True)) == ["fill"]


def test_among_several_what_another_fills_is_left_for_later():
    regions = Regions()
    regions.want(1, [Want(4096, A)], may_wait=True)
    assert states(regions.want(2, [Want(4096, A), Want(4096, B)], may_wait=True)) == ["wait", "fill"]


def test_alone_it_is_waited_for_and_then_compared():
    regions = Regions()
    (first,) = regions.want(1, [Want(4096, A)], may_wait=True)
    assert regions.want(2, [Want(4096, A)], may_wait=True) == []
    regions.filled(1, [first.number])
    assert regions.answers == [(2, [RegionGrant(first.number, 4096, "compare", is_new=False)])]


def test_if_it_is_given_up_the_first_who_waits_fills_it_and_the_others_wait_for_that():
    regions = Regions()
    regions.want(1, [Want(4096, A)], may_wait=True)
    assert regions.want(2, [Want(4096, A)], may_wait=True) == []
    assert regions.want(3, [Want(4096, A)], may_wait=True) == []
    regions.let_go(1)
    assert regions.freed == [1]
    [(filler, (grant,))] = regions.answers
    assert (filler, grant.state) == (2, "fill")
    regions.filled(2, [grant.number])
    assert regions.answers[1] == (3, [RegionGrant(grant.number, 4096, "compare", is_new=False)])


def test_who_has_something_to_fill_is_not_made_to_wait():
    regions = Regions()
    regions.want(1, [Want(4096, A)], may_wait=True)
    regions.want(2, [Want(4096, B)], may_wait=True)
    assert states(regions.want(2, [Want(4096, A)], may_wait=True)) == ["fill"]
    assert regions.want(1, [Want(4096, B)], may_wait=True)[0].state == "fill"


def test_two_equal_contents_of_one_filler_are_one_region():
    regions = Regions()
    first, second = regions.want(1, [Want(4096, A), Want(4096, A)], may_wait=True)
    assert states([first, second]) == ["fill", "wait"]
    regions.filled(1, [first.number])
    assert regions.want(1, [Want(4096, A)], may_wait=True)[0].number == first.number


def test_nobody_is_made_to_wait_for_an_app_or_as_one():
    regions = Regions()
    regions.want("app", [Want(4096, A)], may_wait=False)
    assert states(regions.want("other app", [Want(4096, A)], may_wait=False)) == ["fill"]


def test_a_region_lives_as_long_as_any_weight_set_lies_in_it():
    regions = Regions()
    (grant,) = regions.want(1, [Want(4096, A)], may_wait=True)
    regions.filled(1, [grant.number])
    regions.use(1, 10, [grant.number, grant.number])
    regions.want(2, [Want(4096, A)], may_wait=True)
    regions.use(2, 20, [grant.number])
    regions.let_go(1)
    regions.let_go(2)
    assert regions[grant.number].weight_sets == [10, 20] or regions[grant.number].weight_sets == [20, 10]
    regions.unuse(10, (grant.number, grant.number))
    assert regions.freed == []
    regions.unuse(20, (grant.number,))
    assert regions.freed == [grant.number]
    assert states(regions.want(3, [Want(4096, A)], may_wait=True)) == ["fill"]


def test_a_file_is_one_region_until_it_changes():
    regions = Regions()
    first = regions.offer(1, (8, 15, 4096, 1), 4096)
    again = regions.offer(2, (8, 15, 4096, 1), 4096)
    changed = regions.offer(2, (8, 15, 4096, 2), 4096)
    assert (first.is_new, again.is_new, changed.is_new) == (True, False, True)
    assert first.number == again.number != changed.number


@pytest.mark.parametrize("wants", [[Want(0, b"")], [Want(-1, A)], [Want(4096, b"short")]])
def test_what_cannot_be_is_refused(wants):
    with pytest.raises(InvalidRequest, match="a region of"):
        Regions().want(1, wants, may_wait=True)


def test_only_what_its_filler_has_filled_can_be_handed_over():
    regions = Regions()
    (grant,) = regions.want(1, [Want(4096, A)], may_wait=True)
    for filler, numbers in ((1, [grant.number]), (2, [grant.number]), (1, [99])):
        with pytest.raises(InvalidRequest, match="was not filled by"):
            regions.use(filler, 10, numbers)


FILLERS = st.integers(1, 3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(FILLERS, st.sampled_from(["ask", "fill", "die", "built"]), st.integers(0, 3)), max_size=60)
)
def test_nobody_waits_for_ever_and_everything_comes_back(steps):
    """Fillers each want some contents, one after the other, and do so in any order and pace."""
    regions = Regions()
    wanted = {filler: [A, B, A] for filler in (1, 2, 3)}
    filling = dict.fromkeys(wanted)
    sets = {}

    def take(filler, grants):
        for grant in grants:
            if grant.state == "fill":
                filling[filler] = grant.number
            waiting.discard(filler)

    waiting = set()
    for filler, step, _ in steps:
        if step == "ask" and wanted[filler] and filling[filler] is None and filler not in waiting:
            waiting.add(filler)
            take(filler, regions.want(filler, [Want(4096, wanted[filler].pop())], may_wait=True))
        elif step == "fill" and filling[filler] is not None:
            regions.filled(filler, [filling[filler]])
            filling[filler] = None
        elif step == "die":
            regions.let_go(filler)
            wanted[filler], filling[filler] = [A, B, A], None
            waiting.discard(filler)
        elif step == "built" and filling[filler] is None and filler not in waiting:
            numbers = tuple(regions._held.get(filler, {}))
            sets[len(sets) + 1] = numbers
            regions.use(filler, len(sets), list(numbers))
        answers, regions.answers[:] = list(regions.answers), []
        for one, grants in answers:
            take(one, grants)
        assert not waiting or any(number is not None for number in filling.values()), "all wait for each other"
    for filler in wanted:
        regions.let_go(filler)
    for weight_set, numbers in sets.items():
        regions.unuse(weight_set, numbers)
    assert len(regions) == 0
    assert len(regions.freed) == len(set(regions.freed))


def test_a_model_shares_what_another_has_and_frees_what_only_it_has():
    core = Told().start()
    (granted,) = core.feed(events.RegionsNeeded("app", [(4096, A), Want(8192, B)]))
    assert core.feed(events.RegionsFilled("app", [1, 2])) == []
    core.feed(events.ModelDeclared("app", load_of("m")._replace(regions=[1, 2])))
    (granted,) = core.feed(events.RegionsNeeded("app 2", [Want(4096, A), Want(8192, A)]))
    assert [(grant.number, grant.state) for grant in granted.grants] == [(1, "compare"), (3, "fill")]
    core.feed(events.RegionsFilled("app 2", [3]))
    core.feed(events.ModelDeclared("app 2", load_of("o")._replace(regions=[1, 3])))
    assert core.feed(events.ModelRemoved("c", "m")) == [FreeRegions((2,)), done("c", "unloaded")]
    assert core.feed(events.ModelRemoved("d", "o"))[0] == FreeRegions((1, 3))


def test_memory_that_is_refused_ends_a_load_and_its_loader():
    core = Told().start()
    core.declare("m", "factory", caller="c")
    assert isinstance(core.feed(events.RegionsNeeded(2, [Want(4096, b"")]))[0], GrantRegions)
    out = core.feed(events.FillingFailed(2, OutOfBudget("no").to_record()))
    assert out[0] == FreeRegions((1,))
    assert codes(out) == {"c": "out_of_budget"}
    assert out[-1].child == 2


def test_memory_that_is_refused_to_an_app_is_told_to_it():
    core = Told().start()
    core.feed(events.RegionsNeeded("app", [(4096, b"")]))
    core.books.callers["app"] = ""
    out = core.feed(events.FillingFailed("app", OutOfBudget("no").to_record()))
    assert codes(out) == {"app": "out_of_budget"}
    assert FreeRegions((1,)) in out


def test_when_the_app_is_gone_so_is_what_it_filled_for_nobody():
    core = Told().start()
    core.fill("app", 2)
    assert core.feed(events.CallerLeft("app")) == [FreeRegions((1, 2))]


def test_attached_processes_keep_the_weights_and_are_not_waited_for():
    core = Told().start()
    core.declare("m", "factory", eager=False)
    core.feed(events.ModelWanted("notebook", "m"))
    out = core.built(2, regions=1)
    assert [(one.caller, type(one.message).__name__, one.regions) for one in out] == [
        ("notebook", "Attached", (1,))
    ]
    assert core.feed(events.ModelRemoved("c", "m"))[0].message.note.startswith(
        "unloaded; its memory is freed when 1"
    )
    assert core.feed(events.CallerLeft("notebook")) == [FreeRegions((1,))]


def test_attaching_to_what_is_not_there_or_cannot_be_loaded_is_refused():
    core = Told().start()
    assert codes(core.feed(events.ModelWanted("a", "nothing"))) == {"a": "model_not_found"}
    core.declare("m", "factory", eager=False)
    core.feed(events.ModelWanted("b", "m"))
    assert codes(core.feed(events.BuildFailed(2, OutOfBudget("no").to_record()))) == {"b": "out_of_budget"}


def test_a_file_that_changed_fails_what_waits_and_is_loaded_anew_when_needed():
    core = Told().start()
    core.declare("m", "factory")
    (granted,) = core.feed(events.FileOffered(2, (1, 2, 4096, 3), 4096))
    core.feed(events.ModelBuilt(2, ModelBuilt([], b"skeleton", [], [granted.grants[0].number], False, [])))
    core.submit(1)
    core.submit(2)
    changed = OutOfBudget("it was cut").to_record()
    out = core.feed(events.FileChanged(1, changed))
    assert codes(out) == {2: "out_of_budget"}
    assert core.ended(1, 1, 1)[0].message.request == 1
    assert core.submit(3)[0].role == "loader"


def test_what_waits_for_the_worker_of_its_session_has_a_file_that_changed_loaded_anew():
    core = Told(workers=2).start()
    core.declare("m", "factory")
    (granted,) = core.feed(events.FileOffered(3, (1, 2, 4096, 3), 4096))
    core.feed(events.ModelBuilt(3, ModelBuilt([], b"skeleton", [], [granted.grants[0].number], False, [])))
    for number in (1, 2):
        core.submit(number, session="s")
    core.feed(events.FileChanged(1, OutOfBudget("it was cut").to_record()))
    out = core.ended(2, 1, 1)
    assert [one.role for one in out if isinstance(one, ForkChild)] == ["loader"]


def test_what_ran_on_a_file_that_changed_and_killed_its_worker_is_answered_by_what_is_loaded_anew():
    core = Told(workers=2).start()
    core.declare("m", "factory")
    (granted,) = core.feed(events.FileOffered(3, (1, 2, 4096, 3), 4096))
    core.feed(events.ModelBuilt(3, ModelBuilt([], b"skeleton", [], [granted.grants[0].number], False, [])))
    core.submit(1, retries=1)
    core.feed(events.FileChanged(1, OutOfBudget("it was cut").to_record()))
    out = core.exited(2, begun=1, cause="SIGBUS")
    assert [one.role for one in out if isinstance(one, ForkChild)][:1] == ["loader"]
    loader = next(one.child for one in out if isinstance(one, ForkChild) and one.role == "loader")
    assert core.built(loader)[-1].message.attempt == 2
