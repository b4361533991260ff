"""What loads took is kept in a file, and the next pool expects it."""

import json
import os
from pathlib import Path

import pytest
import torch
from leftovers import wait_until
from onecopy.pool import Model, Pool, plan
from onecopy.pool.core.instructions import Remember, RememberLoad
from onecopy.pool.core.predictions import MAX_LOADS
from onecopy.pool.core.seen import Seen
from onecopy.pool.environment import history_path
from onecopy.pool.planning.show import show_plan
from onecopy.pool.supervisor.history import History
from onecopy.pool.tables import show_models
from onecopy.pool.views import LoadInfo, ModelInfo

MIB = 1 << 20
SIZE = 64 * MIB
SEEN = Seen(weights_bytes=3, loader_bytes=5, load_s=0.5, private_bytes=0, need_bytes=None, return_s=2)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "folder" / "needs.json")


class Opened(History):
    """A history that is written when the test says so."""

    def __init__(self, path):
        self.notes, self.timers = [], []
        super().__init__(path, lambda _, call: self.timers.append(call), self.notes.append)


# --- the file ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(path):
    first = Opened(path)
    assert (first.known, first.complaint) == (({}, {}), "")
    first.remember_load(RememberLoad("k", SEEN))
    first.remember(Remember("identity", "x", 7))
    first.remember_load(RememberLoad("k", Seen(loader_bytes=4, load_s=0.25)))
    assert len(first.timers) == 1, "both are written at once"
    first.timers[0]()
    assert Opened(path).known == ({"identity": {"x": 7}}, {"k": SEEN._replace(load_s=0.25)})
    assert json.loads(Path(path).read_text())["version"] == 2


def test_two_pools_at_once_keep_what_both_have_learned(path):
    one, other = Opened(path), Opened(path)
    one.remember_load(RememberLoad("a", SEEN))
    one.remember_load(RememberLoad("both", Seen(loader_bytes=9, load_s=1.0)))
    other.remember_load(RememberLoad("b", SEEN))
    other.remember_load(RememberLoad("both", Seen(loader_bytes=8, load_s=2.0)))
    one.write()
    other.write()
    known = Opened(path).known.loads
    assert known == {"a": SEEN, "b": SEEN, "both": Seen(loader_bytes=9, load_s=2.0)}
    os.remove(path)
    one.remember_load(RememberLoad("a", SEEN))
    one.write()
    assert Opened(path).known.loads == {"a": SEEN}


def test_a_file_of_the_first_version_has_needs_and_no_loads(path):
    os.mkdir(os.path.dirname(path))
    Path(path).write_text('{"version": 1, "needs": {"identity": {"x": 7}}}')
    old = Opened(path)
    assert (old.known, old.complaint) == (({"identity": {"x": 7}}, {}), "")
    old.remember_load(RememberLoad("k", SEEN))
    old.write()
    assert Opened(path).known == ({"identity": {"x": 7}}, {"k": SEEN})


@pytest.mark.parametrize(
    "loads",
    [
        "3", "[]", '{"k": 3}', '{"k": {"weights_bytes": -1}}', '{"k": {"weights_bytes": 1.5}}',
        '{"k": {"weights_bytes": null}}', '{"k": {"weights_bytes": true}}', '{"k": {"load_s": -0.1}}',
        '{"k": {"load_s": Infinity}}', '{"k": {"load_s": NaN}}', '{"k": {"load_s": "1"}}',
        '{"k": {"loader_bytes": 281474976710656}}',
    ],
)  # fmt: skip
def test_a_broken_file_is_told_and_replaced(path, loads):
    os.mkdir(os.path.dirname(path))
    Path(path).write_text(f'{{"version": 2, "needs": {{}}, "loads": {loads}}}')
    broken = Opened(path)
    assert broken.known == ({}, {})
    assert "what earlier runs needed is not known" in broken.complaint
    broken.remember_load(RememberLoad("k", SEEN))
    broken.write()
    assert Opened(path).known.loads == {"k": SEEN}
    assert not broken.notes


def test_figures_that_a_newer_version_adds_are_left_out(path):
    os.mkdir(os.path.dirname(path))
    loads = {"k": {"weights_bytes": 3, "watts": "many"}, "x" * 65: {"weights_bytes": 3}}
    Path(path).write_text(json.dumps({"version": 2, "needs": {}, "loads": loads}))
    assert Opened(path).known.loads == {"k": Seen(weights_bytes=3)}


def test_the_loads_that_were_learned_of_last_are_kept(path):
    history = Opened(path)
    for number in range(MAX_LOADS + 1):
        history.remember_load(RememberLoad(f"k{number}", SEEN))
    history.write()
    history.remember_load(RememberLoad("k1", SEEN))
    history.remember_load(RememberLoad("new", SEEN))
    history.write()
    known = Opened(path).known.loads
    assert len(known) == MAX_LOADS
    assert {"k1", "new"} <= known.keys()
    assert not {"k0", "k2"} & known.keys()


# --- pools ---------------------------------------------------------------------------------------------------


class Built(torch.nn.Linear):
    """A model of `SIZE` bytes that is there only once something was read from a file."""

    def __init__(self, path):
        super().__init__(4096, SIZE // 4 // 4096, bias=False)
        self.weight.data.fill_(1.0)
        with open(path, "rb") as file:
            file.read()


def model_of(pool):
    [one] = pool.models()
    return one


def loader_bytes(pool):
    return sum(one.private_bytes for one in pool.memory().processes if one.role == "loader")


def test_a_second_pool_expects_what_the_first_has_measured(tmp_path, capsys):
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    model = Model(Built, args=(gate,))
    x = torch.ones(4096)
    with Pool({"m": model}, workers=1) as pool:
        assert model_of(pool).predicted == LoadInfo()
        future = pool.submit("m", x)
        assert wait_until(lambda: loader_bytes(pool) >= SIZE)
        Path(gate).write_bytes(b"")  # it waits for whoever reads
        assert future.result()[0] == 4096
        first = model_of(pool)
        assert first.actual.weights_bytes == first.weights_bytes == SIZE
        assert "predicted" not in str(first)
    os.remove(gate)
    Path(gate).touch()

    with Pool({"another": model}, workers=1) as pool:
        declared = model_of(pool)
        assert (declared.state, declared.actual) == ("declared", LoadInfo())
        assert declared.predicted == first.actual
        assert declared.predicted.load_s > 0
        assert SIZE <= declared.predicted.loader_bytes < 3 * SIZE
        assert pool.run("another", x)[0] == 4096
        second = model_of(pool)
        assert second.predicted == first.actual
        assert second.actual.weights_bytes == SIZE
        assert second.actual.load_s > 0
        assert "took (predicted): weights 67.1 MB (67.1 MB), " in str(pool.status())
        told = second.to_dict()
        assert told.pop("predicted")["weights_bytes"] == told.pop("actual")["weights_bytes"] == SIZE
        assert ModelInfo.from_wire(told).actual == LoadInfo(), "as an older supervisor tells it"
        show_models(pool.models())
        beside = pool.plan({"another": model})
    shown = capsys.readouterr().out
    assert "67.1 MB (67.1 MB)" in shown
    assert "took (predicted)" in shown

    [told] = beside.models
    assert told.actual_load_s == second.actual.load_s
    planned = plan({"m": model}, workers=1)
    [told] = planned.models
    assert (told.load_s, told.actual_load_s) == (second.actual.load_s, None)
    assert f"loaded in {told.load_s:.1f} s" in str(told)
    show_plan(planned)
    assert f" {told.load_s:.1f} s" in capsys.readouterr().out


def test_a_load_whose_file_has_changed_is_another(tmp_path):
    path = tmp_path / "model.pt"
    for features in (8, 64):
        torch.save(torch.nn.Linear(features, features), path)
        with Pool({"m": Model(path, trusted=True)}, workers=1) as pool:
            assert model_of(pool).predicted == LoadInfo()
            pool.run("m", torch.ones(features))
    with Pool({"m": Model(path, trusted=True)}, workers=1) as pool:
        pool.run("m", torch.ones(64))
        one = model_of(pool)
        assert one.predicted.weights_bytes == one.actual.weights_bytes > 0


def test_what_is_handed_over_is_not_kept_and_a_pool_without_a_history_works():
    with Pool({"m": torch.nn.Linear(8, 8)}, workers=1) as pool:
        pool.run("m", torch.ones(8))
        one = model_of(pool)
        assert one.predicted == LoadInfo()
        assert one.actual.weights_bytes == one.weights_bytes > 0
        assert one.actual.load_s is None
    loads = json.loads(Path(history_path()).read_text())["loads"] if os.path.exists(history_path()) else {}
    assert loads == {}
