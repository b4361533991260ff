"""Several devices: whose each event is, where models go, what goes to another, and one answer for all."""

import hypothesis.strategies as st
import pytest
from core.several import Several
from core.simulated import LoadPlan, RunPlan
from hypothesis import HealthCheck, given, settings
from onecopy.pool.core import events
from onecopy.pool.core.devices import Devices
from onecopy.pool.core.ledger import Allowance
from onecopy.protocol.messages import Thaw

MB = 1_000_000
#: Of each device; nothing else takes memory in these worlds.
LIMIT_BYTES = 10 * MB


def several(count=2, **options):
    world = Several(count, **{"workers": 2, "allowance": Allowance(100 * MB, LIMIT_BYTES, 0), **options})
    for client in ("ann", "bob"):
        world.host.join(client)
    world.pass_time(1.0)
    return world


def sized(*sizes_bytes):
    return LoadPlan(wants=tuple((size, bytes([index]) * 16) for index, size in enumerate(sizes_bytes)))


def test_models_spread_over_the_devices_and_requests_find_them():
    pool = several()
    for name in "abcd":
        pool.host.load(name, plan=sized(MB))
    pool.pass_time(1.0)
    assert sorted(pool.device_of_model(name)[0] for name in "abcd") == ["cpu:0", "cpu:0", "cpu:1", "cpu:1"]
    numbers = [pool.host.submit(name) for name in "abcd"]
    pool.pass_time(1.0)
    assert [pool.host.code(number) for number in numbers] == ["reply"] * 4


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


def test_a_model_that_fits_on_no_device_is_divided_among_them():
    pool = several()
    loaded = pool.host.load("large", plan=sized(*[MB * 7 // 2] * 4))
    number = pool.host.submit("large")
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "done"
    assert pool.host.code(number) == "reply"
    assert [world.core.ledger.accounts()["weights"] for world in pool.worlds] == [7 * MB, 7 * MB]
    (home,) = [world for world in pool.worlds if "large" in world.core.library.models]
    version = home.core.library.models["large"].current
    thaw = next(one for one in home.instructions if isinstance(getattr(one, "message", None), Thaw))
    assert thaw.regions == version.layout
    assert len(version.layout) == 4
    part = f"large+{version.number}"
    assert "no model" in pool.host.inboxes["ann"].get(pool.host.submit(part)).error["message"]
    evicted = pool.host.evict("large")
    assert "it is divided among devices" in pool.host.answers[evicted].error["message"]
    pool.host.unload("large")
    pool.pass_time(3.0)
    assert [world.core.ledger.accounts()["weights"] for world in pool.worlds] == [0, 0]
    assert not pool.host.store.open_fds
    assert not pool.devices._parts


def test_it_is_not_divided_where_it_is_not_to_be():
    pool = several()
    loaded = pool.host.load("large", plan=sized(*[4 * MB] * 4), divide=False)
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "out_of_budget"


@pytest.mark.parametrize("after_s", [0.01, 0.06, 0.11, 0.16, 0.21, 0.26, 0.31])
@pytest.mark.parametrize("how", ["the loader dies", "it is unloaded"])
def test_whenever_dividing_ends_nothing_of_it_is_left(after_s, how):
    pool = several()
    pool.host.load("large", plan=sized(*[MB * 7 // 2] * 4))
    pool.pass_time(0.4)  # until the second device has refused it, too
    pool.pass_time(after_s)
    if how == "it is unloaded":
        pool.host.unload("large")
    for world in pool.worlds:
        for loader in world.loaders():
            if how == "the loader dies":
                loader.die("SIGKILL")
    pool.pass_time(5.0)
    pool.host.unload("large")
    pool.pass_time(5.0)
    assert [world.core.ledger.used_bytes for world in pool.worlds] == [0, 0]
    assert not pool.host.store.open_fds
    assert not pool.devices._parts


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
    assert kinds - routed == {events.ModelRemoved, events.ModelPinned, events.ModelEvicted}


NAMES = st.sampled_from("abc")
CLIENTS = st.sampled_from(["ann", "bob"])
STEPS = st.one_of(
    st.tuples(
        st.just("load"), NAMES, st.sampled_from([[], ["cpu:0"], ["cpu:1"], ["cpu:2", "cpu:0"]]),
        st.sampled_from([1, 2]), st.sampled_from([0, 3, 6, 9, 12, 24]), st.sampled_from([0, 6]), st.booleans(),
    ),
    st.tuples(st.just("submit"), NAMES, CLIENTS, st.integers(1, 20), st.sampled_from([0.0, 0.5]), st.booleans()),
    st.tuples(st.just("kill"), st.sampled_from(["worker", "loader", "zygote"]), st.integers(0, 5)),
    st.tuples(st.just("unload"), NAMES),
    st.tuples(st.just("pin"), NAMES, st.booleans()),
    st.tuples(st.just("evict"), NAMES),
    st.tuples(st.just("leave"), CLIENTS),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.03, 0.3, 2.0])),
)  # fmt: skip


@given(st.lists(STEPS, min_size=1, max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_everybody_is_answered_once_and_nothing_is_left(steps):
    pool = several(3)
    asked, callers = [], []
    for step in steps:
        run_step(pool, step, asked, callers)
    pool.check_that_everything_ends(asked, callers, "abc")
    assert [len(world.workers()) for world in pool.worlds] == [2, 2, 2]
    pool.feed(events.StopAsked(drain=True))
    pool.pass_time(10.0)
    assert pool.host.is_finished


def run_step(pool, step, asked, callers):
    kind, *rest = step
    if kind == "load":
        name, devices, replicas, size, hint, is_eager = rest
        options = {"replicas": replicas, **({"devices": devices} if devices else {})}
        parts = tuple((size * MB // 3, f"{name}{part}".encode() * 8) for part in range(3) if size)
        plan = LoadPlan(seconds=0.1, wants=parts)
        callers.append(pool.host.load(name, eager=is_eager, plan=plan, size_bytes=hint * MB, **options))
    elif kind == "submit":
        name, client, count, timeout_s, has_session = rest
        wishes = {"session": "s"} if has_session else {}
        for _ in range(count):
            number = pool.host.submit(name, client, timeout_s=timeout_s, retries=1, plan=RunPlan(0.02), **wishes)
            asked.append((client, number))
    elif kind == "kill":
        whom, place = rest
        world = pool.worlds[place % len(pool.worlds)]
        if whom == "zygote":
            world.zygote_dies("SIGKILL")
        elif found := (world.workers() if whom == "worker" else world.loaders()):
            found[place % len(found)].die("SIGKILL")
    elif kind == "leave":
        (client,) = rest
        pool.feed(events.ClientLeft(client))
        asked[:] = [one for one in asked if one[0] != client]
        pool.host.join(client)
    elif kind == "wait":
        pool.pass_time(rest[0])
    else:
        calls = {"unload": pool.host.unload, "evict": pool.host.evict}
        callers.append(pool.host.pin(rest[0], is_pinned=rest[1]) if kind == "pin" else calls[kind](rest[0]))


@pytest.mark.parametrize("devices", [1, 2, 64])
def test_numbers_tell_the_device(devices):
    from onecopy.pool.core.numbers import Numbers, device_of

    given_out = [(index, numbers.new()) for index in range(devices) for numbers in [Numbers(index, devices)]]
    assert all(device_of(number, devices) == index for index, number in given_out)
    assert min(number for _, number in given_out) >= 1
