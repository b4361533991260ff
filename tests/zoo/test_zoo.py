"""Whatever transformers builds computes in another process what it computes in this one, bit for bit.

The tables beside this file are a sample of its architectures, each very small and with random weights.
"""

from __future__ import annotations

import collections

import psutil
import pytest
import torch
from freezing import shared
from onecopy.pool import Model, Pool
from onecopy.protocol.frozen import freeze
from zoo.elsewhere import Elsewhere
from zoo.table import GROUPS, SPECIMENS, differences, show, weights_bytes

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the models say of themselves

#: How much of the smallest models is padding, of storages to lines and pages.
PADDING = 0.1


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over several threads may differ in their last bits; workers of these tests have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def elsewhere():
    process = Elsewhere()
    yield process
    process.close()


def test_every_specimen_has_a_name_of_its_own():
    counts = collections.Counter(specimen.name for specimen in SPECIMENS)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("group", GROUPS)
def test_thawed_models_give_the_same_bits_in_another_process(group: str, elsewhere: Elsewhere):
    failed: dict[str, list[str]] = {}
    for specimen in GROUPS[group]:
        shown = show(specimen)
        frozen = freeze(shown.exhibit)
        with shared(frozen) as regions:
            found = elsewhere.run(frozen, regions, shown.inputs)
        if differing := differences(found, shown.expected):
            failed[specimen.name] = differing
    assert failed == {}


@pytest.fixture(scope="module")
def shown():
    return {specimen.name: show(specimen) for specimen in SPECIMENS}


@pytest.mark.parametrize("slot", [0, "64KiB"], ids=["slots", "slots that are too small"])
def test_one_pool_serves_all_of_them(shown, slot):
    models = {name: Model(one.exhibit, repoint=False) for name, one in shown.items()}
    with Pool(models, workers=2, slots=2, threads=1, slot=slot) as pool:
        futures = {name: pool.submit(name, one.inputs) for name, one in shown.items()}
        failed = {name: differences(futures[name].result(), one.expected) for name, one in shown.items()}
        assert {name: said for name, said in failed.items() if said} == {}
        needed_bytes = sum(weights_bytes(one.exhibit) for one in shown.values())
        assert needed_bytes <= pool.memory().weights_bytes <= needed_bytes * (1 + PADDING)
        [ring] = pool.status().rings
        assert bool(ring.spills) == bool(slot)
        assert ring.stateful == [], "a model keeps something with every run"


def test_all_of_them_are_right_although_workers_are_killed_all_the_time(shown):
    models = {name: Model(one.exhibit, repoint=False) for name, one in shown.items()}
    with Pool(models, workers=2, slots=2, threads=1) as pool:
        while pool.status().retried < 5:
            futures = {name: pool.model(name, retries=100).submit(one.inputs) for name, one in shown.items()}
            left = len(futures)
            while unanswered := pool.status().unanswered:
                if unanswered <= left - 20:
                    kill_one_that_runs(pool)
                    left = unanswered
            failed = {name: differences(futures[name].result(), one.expected) for name, one in shown.items()}
            assert {name: said for name, said in failed.items() if said} == {}


def kill_one_that_runs(pool: Pool) -> None:
    """Kill a worker in the midst of a run: stopped first, it can end none before it is hit."""
    for worker in pool.status().workers:
        process = psutil.Process(worker.pid)
        process.suspend()
        if any(one.pid == worker.pid and one.state == "busy" for one in pool.status().workers):
            process.kill()
            return
        process.resume()
