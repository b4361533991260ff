"""Several devices: whose each event is, where models go, what goes to another, and one answer for all."""

import pytest
from core.several import CHANGED, MB, several, sized
from core.simulated import RunPlan
from onecopy.pool.core import events
from onecopy.pool.core.core import Core, Position
from onecopy.pool.core.devices import Devices
from onecopy.pool.core.homes import Homes


def test_models_spread_over_the_devices_and_requests_find_them():
    pool = several()
    for name in "abcd":
        pool.host.load(name, plan=sized(MB))
    pool.pass_time(1.0)
    assert sorted(pool.device_of_model(name)[0] for name in "abcd") == ["cpu:0", "cpu:0", "cpu:1", "cpu:1"]
    numbers = [pool.host.submit(name) for name in "abcd"]
    pool.pass_time(1.0)
    assert [pool.host.code(number) for number in numbers] == ["reply"] * 4


def test_a_model_goes_to_the_device_whose_models_have_least_to_do():
    pool = several()
    pool.host.load("hot", devices=["cpu:0"], plan=sized(MB))
    for name in ("idle", "rare"):
        pool.host.load(name, devices=["cpu:1"], plan=sized(MB))
    pool.pass_time(1.0)
    for _ in range(100):
        pool.host.submit("hot", plan=RunPlan(0.5))
        pool.host.submit("rare", plan=RunPlan(0.001))
        pool.pass_time(0.5)
    assert pool.worlds[0].core.library.models["hot"].demand(pool.now) == pytest.approx(0.5, abs=0.1)  # of a minute
    pool.host.load("third", plan=sized(MB))
    pool.pass_time(1.0)
    assert pool.device_of_model("third") == ["cpu:1"], "although there are more models"
    pool.pass_time(600.0)
    pool.host.load("fourth", plan=sized(MB))
    pool.pass_time(1.0)
    assert pool.device_of_model("fourth") == ["cpu:0"], "where nothing has gone on for long"


def test_a_model_goes_where_it_may_and_stays_there():
    pool = several()
    pool.host.load("a", devices=["cpu:1"])
    pool.pass_time(1.0)
    assert pool.device_of_model("a") == ["cpu:1"]
    pool.host.load("a")  # a newer version
    pool.pass_time(1.0)
    assert pool.device_of_model("a") == ["cpu:1"]
    elsewhere = pool.host.load("a", devices=["cpu:0"])
    unknown = pool.host.load("b", devices=["cpu:9"])
    pool.pass_time(1.0)
    assert pool.host.answers[elsewhere].error["message"] == (
        "a is on cpu:1, and the new version would be on cpu:0; unload it first"
    )
    assert pool.host.answers[unknown].error["message"] == (
        "no device 'cpu:9' in this pool; there are: cpu:0, cpu:1"
    )


def test_a_model_on_several_devices_is_answered_for_once_and_its_requests_are_divided():
    pool = several()
    loaded = pool.host.load("a", replicas=2)
    pool.pass_time(1.0)
    assert pool.host.outcome(loaded) == "done"
    assert pool.device_of_model("a") == ["cpu:0", "cpu:1"]
    numbers = [pool.host.submit("a", plan=RunPlan(0.1)) for _ in range(20)]
    pool.pass_time(0.05)
    assert [world.core.requests.unanswered for world in pool.worlds] == [10, 10]
    pool.pass_time(5.0)
    assert {pool.host.code(number) for number in numbers} == {"reply"}
    assert pool.host.outcome(pool.host.pin("a")) == "done"
    unloaded = pool.host.unload("a")
    pool.pass_time(1.0)
    assert pool.host.outcome(unloaded) == "done"
    assert pool.device_of_model("a") == []


def test_a_replica_that_could_not_be_loaded_gets_no_requests_as_long_as_there_is_another():
    pool = several()
    pool.host.load("large", plan=sized(8 * MB), devices=["cpu:1"], pin=True)
    pool.pass_time(1.0)
    loaded = pool.host.load("a", plan=sized(5 * MB), replicas=2)
    pool.pass_time(2.0)
    assert pool.host.outcome(loaded) == "out_of_budget", "there is room for one alone"
    numbers = [pool.host.submit("a") for _ in range(20)]
    pool.pass_time(5.0)
    assert {pool.host.code(number) for number in numbers} == {"reply"}


def test_a_session_stays_on_its_device():
    pool = several()
    pool.host.load("a", replicas=2)
    pool.pass_time(1.0)
    pool.host.submit("a", session="s")
    pool.pass_time(1.0)
    (home,) = [one for one in pool.worlds if one.core.dispatch.sessions.has_session("a", "s")]
    for _ in range(5):
        pool.host.submit("a", session="s", plan=RunPlan(1.0))
    assert home.core.requests.unanswered == 5


def test_a_model_that_does_not_fit_goes_to_the_next_device_with_all_that_waits_for_it():
    pool = several()
    pool.host.load("here", plan=sized(8 * MB), devices=["cpu:0"], pin=True)
    pool.host.load("more", devices=["cpu:1"])
    pool.host.load("most", devices=["cpu:1"])
    pool.pass_time(1.0)
    loaded = pool.host.load("large", plan=sized(5 * MB))
    assert pool.device_of_model("large") == ["cpu:0"], "where fewer models are; how large it is nobody knows"
    numbers = [pool.host.submit("large", client, timeout_s=30.0) for client in ("ann", "bob", "ann")]
    attached = pool.host.attach("large")
    pool.pass_time(2.0)
    assert pool.device_of_model("large") == ["cpu:1"]
    assert pool.host.outcome(loaded) == "done"
    assert pool.host.attached[attached]
    clients = ("ann", "bob", "ann")
    codes = [pool.host.code(number, client) for number, client in zip(numbers, clients, strict=True)]
    assert codes == ["reply"] * 3


def region_of(world, name):
    return world.core.library.models[name].current.regions[0]


def test_a_model_whose_other_version_still_runs_goes_to_no_other_device():
    pool = several()
    pool.host.load("pinned", plan=sized(2 * MB), devices=["cpu:0"], pin=True)
    pool.host.load("more", devices=["cpu:1"])
    pool.host.load("most", devices=["cpu:1"])
    pool.pass_time(1.0)
    plan = sized(5 * MB)
    pool.host.load("a", plan=plan)
    pool.pass_time(1.0)
    assert pool.device_of_model("a") == ["cpu:0"]
    running = pool.host.submit("a", plan=RunPlan(3.0))
    pool.pass_time(0.1)
    plan.wants = ((5 * MB, b"otherwise equal!"),)
    pool.feed(events.FileChanged(region_of(pool.worlds[0], "a"), CHANGED))
    waiting = pool.host.submit("a")
    pool.pass_time(10.0)
    assert pool.device_of_model("a") == ["cpu:0"]
    assert pool.host.code(running) == "reply"
    assert pool.host.code(waiting) == "out_of_budget"
    assert pool.host.outcome(pool.host.pin("a")) == "done"


def test_what_is_pinned_stays_so_on_another_device():
    pool = several()
    pool.host.load("here", plan=sized(8 * MB), devices=["cpu:0"], pin=True)
    pool.host.load("more", devices=["cpu:1"])
    pool.host.load("most", devices=["cpu:1"])
    pool.pass_time(1.0)
    pool.host.load("large", plan=sized(5 * MB), eager=False)
    pool.host.pin("large")
    pool.pass_time(2.0)
    assert pool.device_of_model("large") == ["cpu:1"]
    assert pool.worlds[1].core.library.models["large"].is_pinned


def test_what_fits_nowhere_is_refused_with_the_numbers_of_each_device():
    pool = several()
    loaded = pool.host.load("large", plan=sized(11 * MB), divide=False)
    number = pool.host.submit("large")
    pool.pass_time(2.0)
    assert pool.host.outcome(loaded) == "out_of_budget"
    assert pool.host.code(number) == "out_of_budget"
    message = pool.host.answers[loaded].error["message"]
    assert "needs 11.0 MB on cpu:0" in message
    assert "needs 11.0 MB on cpu:1" in message


def test_a_size_that_is_known_decides_where_it_goes():
    pool = several()
    pool.host.load("small", plan=sized(6 * MB), devices=["cpu:1"], pin=True)
    pool.host.load("a", devices=["cpu:0"])
    pool.host.load("b", devices=["cpu:0"])
    pool.pass_time(1.0)
    pool.host.load("large", plan=sized(5 * MB), size_bytes=5 * MB)
    assert pool.device_of_model("large") == ["cpu:0"], "although there are more models"


def test_what_is_handed_over_is_filled_and_stays_where_it_may_be():
    pool = several()
    for name, devices in (("a", ["cpu:1"]), ("b", []), ("c", ["cpu:0"])):
        pool.feed(events.ModelExpected(f"caller {name}", name, devices, 4096))
    caller = f"caller {next(pool.host._serial) + 1}"
    pool.feed(events.ModelExpected(caller, "m", ["cpu:1"], 4096))
    assert pool.host.load("m", frozen=True, plan=sized(4096), devices=["cpu:1"]) == caller
    pool.pass_time(1.0)
    assert pool.host.outcome(caller) == "done"
    assert pool.device_of_model("m") == ["cpu:1"]
    several_times = pool.host.load("n", frozen=True, plan=sized(4096), replicas=2)
    assert "replicas are for models that a loader builds" in pool.host.answers[several_times].error["message"]


def test_what_is_handed_over_goes_to_a_gpu_where_there_is_one_unless_it_may_not():
    processor = Core(1, 1, position=Position("cpu", 0, 2))
    gpu = Core(1, 1, position=Position("cuda:0", 1, 2, gpu=0), host=processor)
    homes = Homes([processor, gpu])
    homes.expect(events.ModelExpected("one", "m", [], 4096))
    homes.expect(events.ModelExpected("other", "m", ["cpu"], 4096))
    homes.expect(events.ModelExpected("mistaken", "m", ["cuda:7"], 4096))
    for filler, device in (("one", gpu), ("other", processor), ("mistaken", gpu), ("unexpected", gpu)):
        assert homes.of_filler(events.RegionsNeeded(filler, [])) is device


def test_a_number_in_use_is_refused_whichever_device_has_it():
    pool = several()
    pool.host.load("a", devices=["cpu:0"])
    pool.host.load("b", devices=["cpu:1"])
    pool.pass_time(1.0)
    number = pool.host.submit("a", plan=RunPlan(1.0))
    request = pool.worlds[0].core.requests.find("ann", number)
    pool.feed(events.Submitted("ann", request.submit._replace(model="b"), []))
    assert pool.host.inboxes["ann"][number].error["message"] == f"request number {number} is in use"


def test_no_model_is_told_with_those_of_all_devices():
    pool = several()
    pool.host.load("a", devices=["cpu:0"])
    pool.host.load("b", devices=["cpu:1"])
    number = pool.host.submit("c")
    assert "there are: a, b" in pool.host.inboxes["ann"][number].error["message"]


def test_it_finishes_once_when_all_devices_have():
    pool = several(3)
    pool.host.load("a", devices=["cpu:2"])
    pool.pass_time(1.0)
    number = pool.host.submit("a", plan=RunPlan(1.0))
    pool.feed(events.StopAsked(drain=True))
    pool.pass_time(0.5)
    assert not pool.host.is_finished
    pool.pass_time(5.0)
    assert pool.host.is_finished
    assert pool.host.code(number) == "reply"


def test_every_kind_of_event_has_its_way():
    kinds = set(events.Event.__args__) - {events.ModelArrived, events.ModelExpected, events.ModelDeclared}
    kinds -= {events.ModelBuilt, events.PartReleased}
    routed = set(Devices([several().worlds[0].core])._routes)
    assert kinds - routed == {events.ModelRemoved, events.ModelPinned, events.ModelEvicted, events.ModelMoved}


@pytest.mark.parametrize("devices", [1, 2, 64])
def test_numbers_tell_the_device(devices):
    from onecopy.pool.core.numbers import Numbers, device_of

    given_out = [(index, numbers.new()) for index in range(devices) for numbers in [Numbers(index, devices)]]
    assert all(device_of(number, devices) == index for index, number in given_out)
    assert min(number for _, number in given_out) >= 1
