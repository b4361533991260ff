"""Runs in slots, with real processes: where memory lies, what models keep, what happens to slots."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest
import torch
from leftovers import wait_until
from onecopy.pool import Model, Pool
from onecopy.pool.settings import Settings
from slot_models import MIB, Slotted, make_slotted
from standalone import standalone


def ring(pool: Pool, name: str = "device"):
    return next(one for one in pool.status().rings if one.name == name)


def private_bytes(pool: Pool) -> dict[int, int]:
    return {one.pid: one.private_bytes for one in pool.memory().processes if one.role == "worker"}


def test_what_a_run_allocates_lies_in_its_slot_and_weights_do_not():
    with Pool(Slotted()) as pool:
        small, large = torch.ones(10), torch.ones(MIB)
        _, _, *rest = pool.model("model", method="places")(small)
        assert rest == [True, False]
        _, is_input, *rest = pool.model("model", method="places")(large)
        assert (is_input, *rest) == (True, True, False), "a large input comes out of a mailbox, and is copied"
        assert torch.equal(pool.run("model", large), large * 2 + 1)


def test_all_workers_together_take_as_much_as_there_are_slots():
    with Pool(Slotted(), workers=4, slots=2) as pool:
        use = pool.model("model", method="use")
        use(40 * MIB)
        before = private_bytes(pool)
        pids = {pool.model("model", method="places")(torch.ones(3))[0]}
        for future in [use.submit(40 * MIB) for _ in range(40)]:
            assert future.result() == 14
        memory, status = pool.memory(), pool.status()
        assert 40 * MIB <= memory.slots_bytes <= 2 * 45 * MIB
        assert status.rings[0].slots == 2
        assert pids <= before.keys()
        for pid, taken in private_bytes(pool).items():
            assert taken - before[pid] < 20 * MIB, "activations are in private memory"
        assert memory.spilled_bytes == 0


def test_what_does_not_fit_is_spilled_once_and_then_the_slots_are_larger():
    with Pool(Slotted()) as pool:
        use = pool.model("model", method="use")
        assert use(100 * MIB) == 14
        assert (ring(pool).spills, ring(pool).spilled_bytes) == (1, 0)
        assert ring(pool).size_bytes >= 100 * MIB
        assert ring(pool).needs_bytes["model"] >= 100 * MIB
        assert use(100 * MIB) == 14
        assert ring(pool).spills == 1
        assert pool.memory().slots_bytes >= 100 * MIB


def test_a_slot_of_fixed_size_stays_as_it_is_and_results_are_right():
    with Pool(Slotted(), slot="1MiB") as pool:
        use = pool.model("model", method="use")
        assert [use(count * MIB) for count in (1, 10, 30, 2)] == [14] * 4
        assert ring(pool).size_bytes == MIB
        assert ring(pool).spilled_bytes >= 29 * MIB
        assert pool.memory().slots_bytes <= MIB


def test_a_strict_model_fails_by_name_instead_and_others_go_on():
    models = {"strict": Model(Slotted(), on_overflow="error"), "other": Slotted()}
    with Pool(models, slot="8MiB") as pool:
        use = pool.model("strict", method="use")
        assert use(4 * MIB) == 14
        with pytest.raises(Exception, match="needs at least") as caught:
            use(20 * MIB)
        assert type(caught.value).__name__ == "WorkspaceOverflow"
        assert caught.value.details["needed_bytes"] >= 20 * MIB
        assert caught.value.details["available_bytes"] == 8 * MIB
        assert use(4 * MIB) == 14
        assert pool.model("other", method="use")(20 * MIB) == 14


def test_what_a_model_keeps_is_right_for_ever_whoever_uses_the_slot_then():
    with Pool({"keeper": Slotted(), "other": Slotted()}, workers=3, slots=1) as pool:
        assert wait_until(lambda: [one.state for one in pool.status().workers] == ["idle"] * 3)
        keep, use = pool.model("keeper", method="keep"), pool.model("other", method="use")
        kept: dict[int, list[float]] = {}
        for value in range(12):
            kept.setdefault(keep(value), []).append(float(value))
            use(30 * MIB, 255)  # a pattern all over the slot
        seen = {}
        while seen.keys() != kept.keys():
            pid, values, shared = pool.model("keeper", method="kept_values")()
            assert not any(shared), "what was kept lies in memory that others write into"
            seen[pid] = values
            assert values == kept.get(pid, [])
        assert ring(pool).stateful == ["keeper"]
        assert any("keeper keeps tensors between its runs" in note for note in pool.status().notes)
        assert use(30 * MIB) == 14


def test_what_was_kept_and_is_given_up_again_leaves_nothing():
    with Pool(Slotted()) as pool:
        keep, let_go = pool.model("model", method="keep"), pool.model("model", method="let_go")
        keep(1, 5 * MIB)
        before = private_bytes(pool)
        let_go()
        pool.model("model", method="use")(MIB)
        pid = next(iter(before))
        assert wait_until(lambda: private_bytes(pool)[pid] < before[pid] - 15 * MIB)


def test_what_is_built_once_is_kept_and_the_model_stays_in_slots():
    with Pool(Slotted(), workers=2) as pool:
        with_table = pool.model("model", method="with_table")
        x = torch.arange(1000.0)
        for future in [with_table.submit(x) for _ in range(30)]:
            assert torch.equal(future.result(), x * 2)
        assert ring(pool).stateful == []
        assert pool.model("model", method="places")(torch.ones(3))[2]


def test_shapes_that_change_with_every_request_are_right_and_private_memory_does_not_grow():
    with Pool(Slotted()) as pool:
        shapes = pool.model("model", method="shapes")
        counts = [(7919 * number) % 60_000 + 1 for number in range(600)]

        def run(some: list[int]) -> None:
            for count, future in [(count, shapes.submit(count)) for count in some]:
                assert future.result() == pytest.approx(count * (count - 1) / 2 * 50, rel=1e-4)

        run(counts[:200])
        before = private_bytes(pool)
        run(counts[200:])
        for pid, taken in private_bytes(pool).items():
            assert taken < before[pid] + 8 * MIB
        assert pool.memory().slots_bytes <= 2 * 1.1 * 60_000 * 4 * 52


def test_a_retry_sees_the_inputs_as_they_were_sent(tmp_path):
    with Pool(Slotted(), workers=2) as pool:
        spoil = pool.model("model", method="spoil_and_die_once")
        for size, name in ((10, "small"), (MIB, "large")):
            assert spoil(torch.full((size,), 5.0), str(tmp_path / name)) == (5.0, 5.0)


def test_the_slot_of_a_killed_worker_is_replaced_and_its_memory_freed(tmp_path):
    with Pool(Slotted(), workers=2, slots=1) as pool:
        pool.model("model", method="use")(50 * MIB)
        future = pool.model("model", method="hold", retries=0).submit(
            str(tmp_path / "go"), str(tmp_path / "begun")
        )
        assert wait_until(lambda: os.path.exists(tmp_path / "begun"))
        [busy] = [one for one in pool.status().workers if one.state == "busy"]
        psutil.Process(busy.pid).kill()
        assert "SIGKILL" in str(future.exception())
        assert wait_until(lambda: pool.memory().slots_bytes < 10 * MIB)
        assert pool.model("model", method="places")(torch.ones(3))[2]


def test_a_model_that_forks_neither_shares_nor_corrupts_its_slot():
    with Pool(Slotted(), workers=2, slots=1, threads=1) as pool:  # OpenMP's threads do not survive a fork
        for _ in range(3):
            assert pool.model("model", method="fork")(torch.full((MIB,), 2.0)) == (7.0, 106.0)
        assert pool.model("model", method="places")(torch.ones(3))[2], "it is in the slot again"
        x = torch.arange(1000.0)
        assert pool.model("model", method="load_in_parallel")(x) == float((x * 2).sum())


def test_programs_that_a_model_starts_know_nothing_of_the_allocator():
    with Pool(Slotted()) as pool:
        assert pool.model("model", method="run_program")() == os.environ.get("LD_PRELOAD", "none")


def test_an_error_leaves_nothing_in_the_slot():
    with Pool(Slotted()) as pool:
        raising = pool.model("model", method="raising")
        for _ in range(5):
            with pytest.raises(Exception, match=r"no 4\.0"):
                raising(torch.full((MIB,), 2.0))
        assert ring(pool).stateful == []


def test_models_with_a_workspace_of_their_own_share_no_slot_with_others():
    models = {
        "a": Slotted(),
        "b": Model(Slotted(), workspace="speech"),
        "c": Model(Slotted(), workspace="private"),
    }
    with Pool(models) as pool:
        in_slot = {name: pool.model(name, method="places")(torch.ones(3))[2] for name in models}
        assert in_slot == {"a": True, "b": True, "c": False}
        assert sorted(one.name for one in pool.status().rings) == ["device", "speech"]
        pool.model("b", method="use")(30 * MIB)
        assert ring(pool, "speech").allocated_bytes >= 30 * MIB > ring(pool).allocated_bytes
        pool.unload("b")
        assert [one.name for one in pool.status().rings] == ["device"]
        assert pool.memory().slots_bytes < 30 * MIB


def test_slots_shrink_when_the_large_model_is_gone():
    with Pool({"large": Slotted(), "small": Slotted()}) as pool:
        pool.model("small", method="use")(10 * MIB)
        pool.model("large", method="use")(200 * MIB)
        pool.model("large", method="use")(200 * MIB)
        assert pool.memory().slots_bytes >= 200 * MIB
        pool.unload("large")
        assert wait_until(lambda: pool.memory().slots_bytes <= 20 * MIB)
        assert pool.model("small", method="use")(10 * MIB) == 14


def test_an_example_tells_what_is_needed_before_anybody_waits():
    model = Model(make_slotted, method="use", example=100 * MIB)
    with Pool({"m": model}) as pool:
        assert wait_until(lambda: pool.status().rings and ring(pool).needs_bytes.get("m", 0) >= 100 * MIB)
        assert pool.run("m", 100 * MIB) == 14
        assert ring(pool).spills == 1, "that of the example"


@pytest.mark.parametrize("example", [(MIB, 3), {"count_bytes": MIB, "value": 3}])
def test_an_example_is_one_argument_several_or_keywords(example):
    with Pool({"m": Model(Slotted(), method="use", example=example)}) as pool:
        assert wait_until(lambda: pool.models()[0].answered == 1)


@pytest.mark.parametrize("example", ["3.0", "{x = 3.0}"])
def test_an_example_of_a_pool_toml_is_run_before_anybody_asks(tmp_path, example):
    toml = f"workers = 1\n[models.m]\nsource = 'slot_models:make_slotted'\nexample = {example}\n"
    with standalone(tmp_path, toml) as served, Pool.connect(served.endpoint) as pool:
        assert wait_until(lambda: pool.models()[0].answered == 1), served.log.read_text()
        assert not any("its example failed" in note for note in pool.status().notes)


def test_an_example_that_fails_is_told_and_the_model_serves():
    with Pool({"m": Model(Slotted(), example="text")}) as pool:
        assert wait_until(lambda: any("its example failed" in note for note in pool.status().notes))
        assert torch.equal(pool.run("m", torch.ones(3)), torch.full((3,), 3.0))


def test_what_was_learned_is_there_for_the_next_pool():
    path = os.path.join(os.environ["ONECOPY_CACHE_DIR"], "needs.json")
    with Pool(Slotted()) as pool:
        pool.model("model", method="use")(100 * MIB)
    known = json.loads(Path(path).read_text())["needs"]
    [[signature]] = [list(one) for one in known.values()]
    assert signature == f"use(int {100 * MIB})"
    with Pool({"another": Slotted()}) as pool:
        assert pool.model("another", method="use")(100 * MIB) == 14
        assert ring(pool).spills == 0
        assert pool.status().notes == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 99}', b'{"version": 1, "needs": 3}', b"\xff" * 99]
)
def test_a_broken_history_is_told_and_replaced(content):
    path = os.path.join(os.environ["ONECOPY_CACHE_DIR"], "needs.json")
    with open(path, "wb") as file:
        file.write(content)
    with Pool(Slotted()) as pool:
        assert any("what earlier runs needed is not known" in note for note in pool.status().notes)
        pool.model("model", method="use")(100 * MIB)
    assert json.loads(Path(path).read_text())["version"] == 2


def test_threads_and_cores_of_slots_never_exceed_those_there_are():
    mine = sorted(os.sched_getaffinity(0))
    with Pool(Slotted(), workers=4, slots=len(mine)) as pool:
        cores = pool.model("model", method="cores")
        for threads, allowed in [future.result() for future in [cores.submit() for _ in range(20)]]:
            assert threads == 1
            assert all(len(one) == 1 and one[0] in mine for one in allowed), f"it is not pinned: {allowed}"
    with Pool(Slotted(), workers=1, slots=1) as pool:
        threads, allowed = pool.model("model", method="cores")()
        assert threads == len(mine)
        assert all(one == mine for one in allowed)


def test_seats_have_cores_of_their_own_where_there_are_enough():
    mine = sorted(os.sched_getaffinity(0))
    settings = Settings(workers=2 * len(mine), slots=len(mine), threads=1)
    assert settings.seat_cores == [[core] for core in mine]
    assert Settings(workers=4, slots=len(mine) + 1 if len(mine) < 4 else 4, threads=len(mine)).seat_cores == []
    assert Settings(workers=1, slots=1, pin=False).seat_cores == []
