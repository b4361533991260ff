"""What a pool does in a second-best way stands in its status, with the reason, as long as it does so."""

from __future__ import annotations

import numpy as np
import pool_models
import torch
from leftovers import wait_until
from onecopy.pool import Model, Pool
from onecopy.pool.core import events
from onecopy.pool.core.devices import Devices
from onecopy.pool.core.rings import Ring
from onecopy.pool.settings import Settings
from onecopy.pool.supervisor.cores import make_cores
from onecopy.pool.supervisor.fallbacks import fallbacks_of
from onecopy.pool.supervisor.history import Known
from slot_models import Slotted


def _devices(workers=1):
    return Devices(make_cores(Settings(workers=workers), [1 << 34], {"cpu": ()}, Known({}, {}), 1))


def test_a_model_that_each_worker_builds_anew_is_named_until_it_is_unloaded():
    with Pool({"scale": pool_models.Scale(3.0)}, workers=1) as pool:
        pool.run("scale", torch.ones(1))
        assert pool.status().fallbacks == []
        pool.load("locked", Model(pool_models.Locked))
        (told,) = pool.status().fallbacks
        assert told.startswith("locked: each worker builds it anew around the one copy, because ")
        pool.unload("locked")
        assert pool.status().fallbacks == []


def test_a_model_that_keeps_tensors_is_named():
    with Pool({"keeper": Slotted()}, workers=1) as pool:
        keep = pool.model("keeper", method="keep")
        assert wait_until(lambda: [keep(1.0)] and pool.status().rings[0].stateful == ["keeper"])
        assert (
            "keeper: it runs outside of slots, because it keeps tensors between its runs"
            in pool.status().fallbacks
        )


def test_a_model_whose_calls_are_recorded_on_gpus_only_is_named_elsewhere():
    with Pool({"scale": Model(pool_models.Scale(3.0), cuda_graph=True)}, workers=1) as pool:
        assert torch.equal(pool.run("scale", torch.ones(2)), torch.full((2,), 3.0))
        assert pool.status().fallbacks == [
            "scale: its calls are not recorded: CUDA graphs are for models on a GPU"
        ]


def test_mailboxes_that_were_refused_are_told_by_the_pool_and_by_the_client():
    with Pool({"echo": pool_models.Trouble()}, workers=1, mailbox="1MiB") as pool:
        x = np.zeros(1 << 20)
        assert np.array_equal(pool.run("echo", x), x)
        ours, theirs = sorted(pool.status().fallbacks)
        assert ours.startswith("large arrays of this client travel through sockets: a mailbox of ")
        assert theirs == "mailboxes: 1 were refused, and large arrays travelled through sockets instead"


def test_a_zygote_that_cannot_give_slots_is_told_with_its_reason():
    devices = _devices()
    assert fallbacks_of(devices) == ["slots: runs take private memory: the zygote is not up yet"]
    devices.handle(events.ZygoteReady("there is no compiler"), 1.0)
    assert fallbacks_of(devices) == ["slots: runs take private memory: there is no compiler"]


def test_a_slot_that_cannot_be_made_is_told():
    devices = _devices()
    devices.handle(events.ZygoteReady(), 1.0)
    ring = devices.host.workspace.rings["device"] = Ring("device", 0)
    ring.refusal = "no memory"
    (told,) = fallbacks_of(devices)
    assert told == "workspace device: runs take private memory where slots do not suffice: no memory"
