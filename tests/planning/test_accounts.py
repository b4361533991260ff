"""Adding up a plan out of what was found, with nothing run."""

from __future__ import annotations

from onecopy.pool import Model
from onecopy.pool.core.identity import identity_of
from onecopy.pool.planning.accounts import Limits, Terms, made_plan, run_bytes
from onecopy.pool.planning.found import Base, Found, Part
from onecopy.pool.planning.views import Plan

MB = 1_000_000
PAGE = 4096
BASE = Base(supervisor_bytes=20 * MB, zygote_bytes=100 * MB, worker_bytes=10 * MB, files_bytes=30 * MB)
CPU = Limits("cpu", 1000 * MB, 0, 100 * MB)


def found(name: str, *parts: tuple[str, int], **settings) -> Found:
    regions = tuple(Part(pages * PAGE, (pages * PAGE, key.encode()), is_file=False) for key, pages in parts)
    return Found(name, regions, manifest=[name], **{"private_bytes": 0, **settings})


def planned(
    *models: Found, limits=(CPU,), workers=4, slots=2, slot_bytes=0, history=None, only=None, peers=None
) -> Plan:
    terms = Terms(workers, slots, slot_bytes, 50 * MB)
    return made_plan(models, BASE, limits, terms, history=history or {}, only=only or {}, peers=peers)


def test_equal_parts_count_once_and_each_model_tells_what_is_its_own():
    plan = planned(found("a", ("base", 10), ("a", 1)), found("b", ("base", 10), ("b", 2), ("b", 2)))
    [device] = plan.devices
    assert device.weights_bytes == 13 * PAGE
    a, b = plan.models
    assert (a.weights_bytes, a.own_bytes, a.shared_with) == (11 * PAGE, PAGE, {"b": 10 * PAGE})
    assert (b.weights_bytes, b.own_bytes, b.shared_with) == (12 * PAGE, 2 * PAGE, {"a": 10 * PAGE})


def test_a_file_that_is_mapped_takes_no_memory():
    file = Part(5 * PAGE, ("file", b"1"), is_file=True)
    [model] = (plan := planned(Found("a", (file,)))).models
    assert (model.weights_bytes, model.file_bytes) == (5 * PAGE, 5 * PAGE)
    assert plan.devices[0].weights_bytes == 0


def test_each_ring_has_slots_of_its_largest_need_and_who_uses_none_has_memory_of_its_own():
    plan = planned(
        found("a", need_bytes=PAGE, how="shapes"),
        found("b", need_bytes=3 * PAGE - 1, how="shapes"),
        found("own", need_bytes=2 * PAGE, how="shapes", options={"workspace": "own"}),
        found("none", need_bytes=9 * PAGE, how="run", options={"workspace": "private"}),
        slot_bytes=2 * PAGE,
    )
    assert plan.devices[0].slots_bytes == 2 * (2 + 2 + 9) * PAGE
    assert [one.need_from for one in plan.models] == ["shapes", "shapes", "shapes", "a run"]


def test_slots_on_a_gpu_take_their_whole_size():
    gpu = CPU._replace(name="cuda:0")
    one = found("a", need_bytes=PAGE, how="shapes")
    assert planned(one, limits=(gpu,)).devices[0].slots_bytes == 2 * (64 << 20)
    large = found("a", need_bytes=(256 << 20) + 1, how="shapes")
    assert planned(large, limits=(gpu,)).devices[0].slots_bytes == 2 * (320 << 20)
    assert planned(one, limits=(gpu,), slot_bytes=2 * PAGE).devices[0].slots_bytes == 4 * PAGE
    outside = found("a", need_bytes=PAGE, how="shapes", options={"workspace": "private"})
    assert planned(outside, limits=(gpu,)).devices[0].slots_bytes == 2 * PAGE


def test_workers_have_each_model_and_warm_ones_share_most_of_it_with_the_zygote():
    cold = planned(found("a", private_bytes=7 * MB)).devices[0]
    assert cold.workers_bytes == 4 * (10 * MB + run_bytes(1) + 7 * MB)
    warm = planned(found("a", private_bytes=7 * MB, options={"warm": True})).devices[0]
    assert warm.workers_bytes == cold.workers_bytes - 4 * 7 * MB + 7 * MB + 4 * MB
    assert cold.others_bytes - 120 * MB < 100_000


def test_arrays_of_examples_wait_in_mailboxes_as_far_as_those_may_grow():
    assert planned(found("a", inputs_bytes=2 * MB)).devices[0].mailboxes_bytes == 2 * 2 * 2 * MB
    assert planned(found("a", inputs_bytes=200 * MB)).devices[0].mailboxes_bytes == 50 * MB


def test_earlier_runs_count_where_they_say_more_than_rounding_does():
    model = found("a", ("a", 1), need_bytes=3 * MB, how="shapes")
    identity = identity_of("a", ["a"], [(PAGE, b"a")])
    [told] = planned(model, history={identity: {"x": 3 << 20, "y": 1}}).models
    assert (told.need_bytes, told.need_from) == (3 * MB, "shapes")
    [told] = planned(model, history={identity: {"x": 3 << 20, "y": 9 << 20}}).models
    assert (told.need_bytes, told.need_from) == (9 << 20, "earlier runs")
    [told] = planned(found("a", ("a", 1)), history={identity: {"x": 1 << 20}}).models
    assert told.need_from == "earlier runs"


def test_what_does_not_fit_is_told_and_so_is_a_load_that_does_not_fit_while_it_is_under_way():
    model = found("a", ("a", 100 * MB // PAGE))
    needed = planned(model).devices[0].needed_bytes
    assert planned(model, limits=[Limits("cpu", needed, 0, 0)]).fits
    scarce = planned(model, limits=[Limits("cpu", needed + 50, needed - 7, 50)])
    assert not scarce.fits
    assert scarce.missing_bytes == scarce.devices[0].missing_bytes == 7
    building = planned(model._replace(loading_bytes=100 * MB), limits=[Limits("cpu", needed, 0, 0)])
    assert building.devices[0].missing_bytes == 0
    assert building.missing_bytes == building.peak_bytes - needed > 90 * MB


def test_loads_are_ordered_so_that_the_peak_is_low():
    large = found("large", ("l", 30 * MB // PAGE))
    small = found("small", ("s", 10 * MB // PAGE), loading_bytes=40 * MB)
    plan = planned(large, small)
    assert plan.order == ["small", "large"]
    assert plan.declared_peak_bytes - plan.peak_bytes > 20 * MB
    assert "as given" in str(plan)


def test_models_that_compute_avoid_each_other_and_each_device_has_its_own_accounts():
    computing = {"flops": 100 * MB, "touched_bytes": MB}
    models = [found(name, (name, 100), **computing) for name in "ab"] + [found("c", ("c", 100))]
    limits = [Limits(f"cpu:{index}", 400 * MB, 400 * MB, 0) for index in range(2)]
    plan = planned(*models, limits=limits, only={"c": ["cpu:1"]})
    a, b, c = plan.models
    assert {a.device, b.device} == {"cpu:0", "cpu:1"}
    assert c.device == "cpu:1"
    assert (a.is_compute_bound, c.is_compute_bound, plan.crowded) == (True, False, 0)
    assert [one.weights_bytes for one in plan.devices] == [100 * PAGE, 200 * PAGE]
    assert plan.devices[0].others_bytes - plan.devices[1].others_bytes > 19 * MB
    assert planned(*models, limits=[CPU]).crowded == 1


def test_a_model_of_which_nothing_is_known_takes_nothing_and_does_not_fit():
    plan = planned(Found("a", error="it cannot be built"), found("b"))
    assert not plan.fits
    assert plan.missing_bytes == 0
    assert plan.to_dict()["models"][0]["error"] == "it cannot be built"
    assert "a: it cannot be built" in str(plan)


def test_pictures_fit_a_terminal_and_show_what_is_too_much():
    limits = [
        Limits("cpu", 1000 * MB, 0, 100 * MB),
        Limits("a-device-with-a-long-name", 100 * MB, 80 * MB, 20 * MB),
    ]
    plan = planned(
        found("a", ("a", 500 * MB // PAGE)), found("b", ("b", 10)), limits=limits, only={"b": [limits[1].name]}
    )
    lines = plan.picture()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("cpu      [WWW")
    assert lines[0].endswith("rr]")
    assert "." not in lines[0].split("|")[1]


TWO = (Limits("cpu:0", 600 * MB, 400 * MB, 0), Limits("cpu:1", 600 * MB, 500 * MB, 0))


def layers(count: int, **settings) -> Found:
    return found("large", *[(f"layer {n}", 10 * MB // PAGE) for n in range(count)], **settings)


def test_a_model_that_fits_on_no_device_alone_is_divided():
    small = found("small", ("s", 10))
    plan = planned(layers(45, need_bytes=PAGE, how="shapes"), small, limits=TWO, workers=1)
    large, _ = plan.models
    assert plan.fits, plan
    assert large.device == "cpu:1, cpu:0"
    assert "it fits on no device alone: a pool divides it by layers" in large.notes
    first, second = plan.devices
    assert first.weights_bytes + second.weights_bytes == large.weights_bytes + 10 * PAGE
    assert second.weights_bytes > first.weights_bytes > 0
    assert (first.slots_bytes, second.slots_bytes) == (0, 2 * PAGE), "it runs on the first that it is on"
    models = {"large": Model("a:b"), "small": Model("a:b")}
    assert plan.placed(models)["large"] is models["large"]


def test_one_that_may_not_be_divided_or_does_not_fit_even_so_says_by_how_much():
    whole = planned(layers(45, options={"divide": False}), limits=TWO, workers=1)
    assert whole.models[0].device in {"cpu:0", "cpu:1"}
    assert not whole.fits
    cards = [one._replace(name=one.name.replace("cpu", "cuda")) for one in TWO]
    assert planned(layers(45), limits=cards, workers=1).models[0].device in {"cuda:0", "cuda:1"}
    linked = {"cuda:0": ["cuda:1"], "cuda:1": ["cuda:0"]}
    assert planned(layers(45), limits=cards, workers=1, peers=linked).models[0].device == "cuda:1, cuda:0"
    only = planned(layers(45), limits=TWO, workers=1, only={"large": ["cpu:1"]})
    assert only.models[0].device == "cpu:1"
    more = planned(layers(90), limits=TWO, workers=1)
    assert more.models[0].device == "cpu:1, cpu:0"
    assert more.missing_bytes > 100 * MB
    assert not more.fits
