"""Everything at once, in orders that nobody would think of; `invariants` says what must hold all the time."""

import signal

import hypothesis.strategies as st
import pytest
from core.mailing import BUDGET
from core.simulated import Habits, LoadPlan, RunPlan
from core.told import submit_of
from core.world import World
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from onecopy.pool.core import events
from onecopy.pool.core.position import Position
from onecopy.protocol.limits import MAX_CREDIT

CLIENTS = st.sampled_from(["ann", "bob"])
MODELS = st.sampled_from(["m1", "m2", "m3"])
MODULES = (
    st.sets(st.sampled_from(["good", "better", "threads", "deadly", "broken"]), max_size=3).map(sorted).map(tuple)
)
RUNS = st.builds(
    RunPlan,
    seconds=st.sampled_from([0.01, 0.0001, 0.0, 1.0, 6.0]),
    kills=st.sampled_from([0, 0, 0, 1, 2]),
    raises=st.sampled_from([False, False, True]),
    peak_bytes=st.sampled_from([0, 1 << 20, 100 << 20, 1 << 30]),
    escapes=st.sampled_from([False, False, True]),
    items=st.integers(0, 5),
)
#: What requests may ask for besides: most of them nothing.
WISHES = st.one_of(
    st.just({}),
    st.just({}),
    st.fixed_dictionaries({"priority": st.sampled_from([-100, -1, 0, 1, 100])}),
    st.fixed_dictionaries({"session": st.sampled_from(["s", "t"])}),
    st.fixed_dictionaries({"calls": st.integers(1, 6)}),
    st.fixed_dictionaries({"method": st.just("other")}),
    st.fixed_dictionaries({"credit": st.integers(1, 3)}),
)
TERMS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({
        "max_batch": st.sampled_from([1, 2, 8]), "max_wait_ms": st.sampled_from([0, 5, 1000]),
        "share": st.sampled_from([0.1, 1, 7.5]), "adaptive": st.booleans(), "max_queue": st.sampled_from([0, 30]),
        "min_workers": st.sampled_from([0, 0, 1, 2]), "max_workers": st.sampled_from([0, 0, 1, 2]),
    }),
)  # fmt: skip
DIGESTS = st.sampled_from([b"", b"a" * 16, b"b" * 16])
LOADS = st.builds(
    LoadPlan,
    outcome=st.sampled_from(["built", "built", "built", "fails", "dies", "refused"]),
    seconds=st.sampled_from([0.05, 0.0, 2.0]),
    modules=MODULES,
    wants=st.lists(st.tuples(st.sampled_from([100, 4096]), DIGESTS), max_size=3).map(tuple),
)
THAWS = st.sampled_from(["", "thread", "hangs", "zygote: thread", "zygote: hangs", "zygote: dies"])
PLACES = st.integers(0, 7)
#: In this time everything that can end has ended: the plans are finite, and so are the core's pauses.
_LONG_S = 300.0


class PoolMachine(RuleBasedStateMachine):
    """A pool to which anything may happen at any time."""

    @initialize(
        workers=st.integers(1, 4), slots=st.integers(1, 4), zygote_fails=st.sampled_from([0, 0, 1, 3]),
        least=st.sampled_from([0, 0, 1, 2]), is_cold=st.booleans(), first=LOADS, is_frozen=st.booleans(),
        is_gpu=st.booleans(), spare_cores=st.sampled_from([1, 2, 64]),
    )  # fmt: skip
    def start(self, workers, slots, zygote_fails, least, is_cold, first, is_frozen, is_gpu, spare_cores):
        modules = {"threads": "thread", "deadly": "dies", "broken": "raises"}
        habits = Habits(modules=modules, zygote_fails=zygote_fails)
        self.world = World(
            workers,
            min(slots, workers),
            habits,
            mailboxes=BUDGET,
            is_adaptive=True,
            least_workers=min(least, workers),
            position=Position(gpu=0 if is_gpu else -1, spare_cores=spare_cores),
        )
        self.submitted = []
        self.attached = []
        for client in ("ann", "bob"):
            self.world.join(client)
            self.world.mailing.want(client, 4096)
        self.world.load("m1", frozen=is_frozen, plan=first)
        self.world.load("m2", eager=False, max_batch=4, max_wait_ms=2)
        if not is_cold:
            self.world.pass_time(3.0)

    # --- requests -------------------------------------------------------------------------------------------

    @rule(
        client=CLIENTS, model=MODELS, plan=RUNS, retries=st.integers(0, 2),
        timeout_s=st.sampled_from([0.0, 0.0, 0.005, 0.1, 2.0]), has_arrays=st.booleans(), wishes=WISHES,
    )  # fmt: skip
    def submit(self, client, model, plan, retries, timeout_s, has_arrays, wishes):
        number = self.world.submit(
            model, client, timeout_s=timeout_s, retries=retries, plan=plan,
            has_arrays=has_arrays and "credit" not in wishes, **wishes,
        )  # fmt: skip
        self.submitted.append((client, number))

    @rule(
        model=MODELS, count=st.integers(2, 50), seconds=st.sampled_from([0.0001, 0.0, 0.01]),
        has_arrays=st.booleans(), client=CLIENTS, wishes=WISHES,
    )  # fmt: skip
    def submit_many(self, model, count, seconds, has_arrays, client, wishes):
        for _ in range(count):
            plan = RunPlan(seconds)
            arrays = has_arrays and "credit" not in wishes
            number = self.world.submit(model, client, plan=plan, retries=1, has_arrays=arrays, **wishes)
            self.submitted.append((client, number))

    @rule(client=CLIENTS, size_bytes=st.sampled_from([1, 4096, 4097, 8 * 4096, 17 * 4096, 0, -1]))
    def want_mailbox(self, client, size_bytes):
        self.world.mailing.want(client, size_bytes)

    @rule(client=CLIENTS)
    def return_mailbox(self, client):
        self.world.mailing.give_back(client)

    @precondition(lambda self: self.submitted)
    @rule(place=PLACES, how=st.sampled_from(["cancel", "kill", "again", "read", "read", "read too much"]))
    def act_on_what_was_submitted(self, place, how):
        client, number = self.submitted[-1 - place % len(self.submitted)]
        if how in ("cancel", "kill"):
            self.world.feed(events.Cancelled(client, number, kill=how == "kill"))
        elif how == "read":
            self.world.feed(events.Continued(client, number, 2))
        elif how == "read too much":
            self.world.feed(events.Continued(client, number, MAX_CREDIT))
        elif self.world.core.requests.find(client, number) is not None:
            self.world.feed(events.Submitted(client, submit_of(number, "m1", body=b"again"), []))

    @rule(
        client=CLIENTS, model=MODELS, gives_up=st.sampled_from(["cancel", "deadline", "death"]), dies=st.booleans()
    )  # fmt: skip
    def give_up_what_runs(self, client, model, gives_up, dies):
        """What a worker has in its hands; or it dies with that."""
        timeout_s = 0.02 if gives_up == "deadline" else 0.0
        plan = RunPlan(0.1)
        number = self.world.submit(model, client, timeout_s=timeout_s, retries=1, plan=plan, has_arrays=True)
        self.world.pass_time(0.03)
        if gives_up == "cancel":
            self.world.feed(events.Cancelled(client, number))
        elif gives_up == "death":
            self.world.feed(events.ClientLeft(client))
            self.world.mailing.ends(client)
            self.world.join(client)
            self.world.mailing.want(client, 4096)
        for worker in self.world.workers() if dies else ():
            worker.die("SIGKILL")

    @rule(client=CLIENTS, dies=st.booleans(), comes_back=st.booleans())
    def leave(self, client, dies, comes_back):
        self.world.feed(events.ClientLeft(client))
        if dies or comes_back:
            self.world.mailing.ends(client)
        if comes_back:
            self.world.join(client)

    # --- models ---------------------------------------------------------------------------------------------

    @rule(
        model=MODELS, plan=LOADS, eager=st.booleans(), warm=st.booleans(), frozen=st.booleans(),
        workspace=st.sampled_from(["device", "device", "own", "private"]), terms=TERMS,
    )  # fmt: skip
    def load(self, model, plan, eager, warm, frozen, workspace, terms):
        self.world.load(model, eager=eager, warm=warm, frozen=frozen, workspace=workspace, plan=plan, **terms)

    @rule(model=MODELS, is_pinned=st.booleans())
    def pin(self, model, is_pinned):
        self.world.pin(model, is_pinned=is_pinned)

    @rule(model=MODELS)
    def evict(self, model):
        self.world.evict(model)

    @rule(room_bytes=st.sampled_from([2500, 4500, 8500, 12_500, 1 << 40]), fat=st.sampled_from([0, 0, 100, 5000]))
    def measure_memory(self, room_bytes, fat):
        """There is room for a few regions besides slots, or for any number; some worker has much for itself."""
        workers = {worker.number: fat for worker in self.world.workers()[:1]}
        total_bytes = room_bytes + fat + self.world.core.workspace.needed_bytes
        self.world.measure(total_bytes, workers=workers)

    @rule(uses=st.sampled_from([set(), set(), {"slot"}, {"mailbox"}, {"disk"}, {"memory"}]))
    def run_out_of_memory(self, uses):
        self.world.habits.refused_uses = uses

    @rule(model=MODELS, comes_back=st.booleans())
    def unload(self, model, comes_back):
        self.world.unload(model)
        if comes_back:
            self.world.load(model)

    @rule(model=MODELS)
    def attach(self, model):
        self.attached.append(self.world.attach(model))

    @precondition(lambda self: self.attached)
    @rule(place=PLACES)
    def detach(self, place):
        self.world.detach(self.attached.pop(place % len(self.attached)))

    @rule(model=MODELS, habit=THAWS)
    def change_thaws(self, model, habit):
        self.world.habits.thaws[model] = habit

    @rule(habit=st.sampled_from(["thaw_kills", "thaw_fails", "clings"]), model=MODELS, has=st.booleans())
    def change_habits(self, habit, model, has):
        names = getattr(self.world.habits, habit)
        (names.add if has else names.discard)(model)

    # --- time and death -------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.01, 0.0, 0.0001, 0.0105, 0.1]))
    def pass_a_moment(self, seconds):
        self.world.pass_time(seconds)

    @rule(seconds=st.sampled_from([0.6, 3.0]))
    def pass_time(self, seconds):
        self.world.pass_time(seconds)

    @rule(model=MODELS, count=st.integers(2, 40), moment_s=st.sampled_from([0.0, 0.0003, 0.0012]))
    def kill_worker_in_the_midst_of_many(self, model, count, moment_s):
        """Of short requests, which are handed ahead once their length is known."""
        for pause_s in (0.1, moment_s):
            for _ in range(count):
                self.submitted.append(("ann", self.world.submit(model, plan=RunPlan(0.0001), retries=1)))
            self.world.pass_time(pause_s)
        workers = self.world.workers()
        if workers:
            max(workers, key=lambda worker: len(worker.inbox)).die("SIGKILL")
            self.world.pass_time(0.0)

    @rule(place=PLACES, told_in_s=st.sampled_from([0.0, 0.002, 0.5]))
    def kill_worker(self, place, told_in_s):
        workers = self.world.workers()
        if workers:
            workers[place % len(workers)].die("SIGKILL", told_in_s=told_in_s)

    @rule(place=PLACES, whom=st.sampled_from(["loader", "zygote"]))
    def kill_another(self, place, whom):
        loaders = self.world.loaders()
        if whom == "zygote":
            self.world.zygote_dies("SIGKILL")
        elif loaders:
            loaders[place % len(loaders)].die("SIGKILL")

    @precondition(lambda self: len(self.submitted) > 10)
    @rule(
        drain=st.booleans(), stubborn=st.sampled_from([set(), {signal.SIGTERM}, {signal.SIGTERM, signal.SIGKILL}])
    )
    def stop(self, drain, stubborn):
        self.world.habits.stubborn = stubborn
        self.world.feed(events.StopAsked(drain))

    # --- the end --------------------------------------------------------------------------------------------

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        for client, number in list(world.checked.books.asked):
            world.feed(events.Continued(client, number, 10))  # or each stream is waited for a minute
        if not world.core.stopping:
            self._unload_everything()
        world.feed(events.StopAsked(drain=True))
        world.pass_time(_LONG_S)
        assert world.is_finished, "\n".join(world.checked.story)
        assert world.checked.books.finished == 1

    def _unload_everything(self):
        """Everything is answered and every region freed once nobody wants anything any more."""
        world = self.world
        world.habits.refused_uses = set()
        world.pass_time(_LONG_S)
        assert not world.checked.books.asked, "\n".join(world.checked.story)
        for name in list(world.core.library.models):
            world.unload(name)
        world.pass_time(_LONG_S)
        for caller in self.attached:
            world.detach(caller)
        assert not world.checked.lent.keys, "something is lent for ever"
        for client in ("ann", "bob"):
            world.mailing.ends(client)
        assert not world.core.mailboxes.granted_bytes
        assert not world.core.library.holdings.sets, "\n".join(world.checked.story)
        assert not world.store.open_fds
        assert "" not in world.checked.books.callers.values(), "a caller was never answered"
        assert len(world.workers()) == world.core.fleet.workers.wanted


PoolMachine.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
# What was found is made small first, which takes longer than the other tests may.
TestPool = pytest.mark.timeout(600)(PoolMachine.TestCase)
