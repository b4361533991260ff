"""Models that are moved to another device, while they are asked."""

from __future__ import annotations

import threading

import cuda_driver
import pytest
import torch
from device_models import Where
from gpu_models import WIDTH, Net
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, Model, ModelNotFound, OutOfBudget, Pool
from standalone import onecopy, standalone

MIB = 1 << 20
X = torch.ones(3)
TWO = {"cpu:0": {"budget": "1GiB"}, "cpu:1": {"budget": "1GiB"}}


def homes(pool, name):
    return [one.device for one in pool.models() if one.name == name]


def weights_bytes(pool):
    """What weights take, by device."""
    return {one.name: one.accounts["weights"] for one in pool.memory().devices}


class Asking:
    """Asks a model again and again, in a thread of its own; ``with`` it, and ``answers`` are what came."""

    def __init__(self, pool):
        self.answers = []
        self.error = None
        self._pool = pool
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self):
        try:
            while not self._is_over.is_set():
                self.answers.append(self._pool.run("m", X))
        except BaseException as error:
            self.error = error

    def wait_for_more(self):
        """Wait until the model has answered once more."""
        count = len(self.answers)
        assert wait_until(lambda: len(self.answers) > count or self.error)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()


def test_no_request_notices_that_its_model_moves():
    models = {"m": Model(Where, args=(1, 4 * MIB), device="cpu:0"), "object": Model(Where(2), device="cpu:0")}
    expected = Where(1, 4 * MIB)(X)
    with Pool(models, workers=2, devices=TWO) as pool:
        for name in models:
            pool.run(name, X)
        before = weights_bytes(pool)
        with Asking(pool) as one, Asking(pool) as other:
            for device in ("cpu:1", "cpu:0", "cpu:1", "cpu:1"):
                pool.move("m", device)
                assert homes(pool, "m") == [device]
                one.wait_for_more()
                other.wait_for_more()
        assert one.error is other.error is None
        assert all(torch.equal(answer, expected) for answer in (*one.answers, *other.answers))
        after = weights_bytes(pool)
        assert (before["cpu:1"], after["cpu:1"]) == (0, before["cpu:0"] - after["cpu:0"])
        for name, device, error, message in (
            ("nothing", "cpu:1", ModelNotFound, "no model 'nothing'"),
            ("m", "cpu:2", InvalidRequest, "no device 'cpu:2' in this pool; there are: cpu:0, cpu:1"),
            ("m", "gpu", ConfigError, "the name of a device must be"),
            ("object", "cpu:1", InvalidRequest, "was handed over as an object"),
        ):
            with pytest.raises(error, match=message):
                pool.move(name, device)


def test_what_has_no_room_there_stays_and_says_why():
    small = {"cpu:0": {"budget": "1GiB"}, "cpu:1": {"budget": "300MiB"}}
    with Pool(Model(Where, args=(1, 256 * MIB), device="cpu:0"), workers=1, devices=small) as pool:
        answer = pool.run("model", X)
        with pytest.raises(OutOfBudget, match="on cpu:1"):
            pool.move("model", "cpu:1")
        assert homes(pool, "model") == ["cpu:0"]
        assert torch.equal(pool.run("model", X), answer)


def test_from_a_gpu_to_the_processor_and_back(tmp_path):
    devices = {"cpu": {"budget": "2GiB"}, "cuda:0": {"budget": "1GiB", "reserve": 0}}
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    with cuda_driver.for_processes(tmp_path), Pool(Model(Net, args=(1,)), workers=1, devices=devices) as pool:
        answer = pool.run("model", x)
        assert homes(pool, "model") == ["cuda:0"]
        for device in ("cpu", "cuda:0"):
            pool.move("model", device)
            assert homes(pool, "model") == [device]
            taken = {name for name, size_bytes in weights_bytes(pool).items() if size_bytes}
            assert taken == {device}
            torch.testing.assert_close(pool.run("model", x), answer, rtol=0, atol=1e-4)


ON_TWO = """
workers = 1
[devices."cpu:0"]
[devices."cpu:1"]
[models.toys]
source = "toy_models:toys"
method = "square"
device = "cpu:0"
"""


def test_the_command_line_moves_models(tmp_path):
    with standalone(tmp_path, ON_TWO) as served:
        moved = onecopy("move", "toys", "cpu:1")
        assert moved.returncode == 0, moved.stderr
        with Pool.connect(served.endpoint) as pool:
            assert homes(pool, "toys") == ["cpu:1"]
            assert pool.run("toys", 5) == 25
        refused = onecopy("move", "toys", "cpu:2")
        assert refused.returncode == 1
        assert "no device 'cpu:2' in this pool; there are: cpu:0, cpu:1" in refused.stderr
        assert "the name of a device must be" in onecopy("move", "toys", "gpu").stderr
