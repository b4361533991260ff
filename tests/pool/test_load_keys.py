"""What tells a load before anything is built: the same each time, another for anything that is built otherwise."""

import functools
import subprocess
import sys
import threading

import pytest
import torch
from onecopy.pool import Model
from onecopy.pool.load_keys import load_key
from onecopy.pool.sources import load_by_factory, load_by_name

SCRIPT = """
import functools
from onecopy.pool import Model
from onecopy.pool.load_keys import load_key

class Net:
    def __init__(self, size=3, **options):
        self.size = size
    @classmethod
    def small(cls):
        return cls(1)

def make():
    return Net(4)

def sized(size):
    return lambda: [Net(size) for _ in range(size)]

several = [
    Net, make, sized(3), sized(4), lambda: Net(1), lambda: Net(2), functools.partial(Net, 5), Net.small,
    "torch.nn:Linear",
]
print([load_key(Model(one)) for one in several], load_key(Model(Net, args=(1, "a"), kwargs={"b": 1, "a": make})))
"""


def test_keys_are_the_same_in_every_process_and_all_different(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told = {subprocess.check_output([sys.executable, script], text=True) for _ in range(2)}
    assert len(told) == 1
    keys = told.pop().replace("'", " ").replace("[", " ").replace("]", " ").replace(",", " ").split()
    assert len(set(keys)) == len(keys) == 10
    (tmp_path / "other.py").write_text(SCRIPT)
    other = subprocess.check_output([sys.executable, tmp_path / "other.py"], text=True)
    assert keys[0] not in other, "both have a class of this name"


def make(size=3):
    return torch.nn.Linear(size, size)


@pytest.mark.parametrize(
    "changed",
    [
        {"args": (4,)}, {"kwargs": {"size": 3}}, {"dtype": "bfloat16"}, {"sharing": "private"}, {"prepare": make},
        {"weights": "/nowhere.safetensors"}, {"residency": "file"}, {"prepare": "module:name"},
    ],
)  # fmt: skip
def test_what_changes_the_weights_changes_the_key(changed):
    assert load_key(Model(make, **changed)) != load_key(Model(make))


@pytest.mark.parametrize("changed", [{"method": "forward"}, {"warm": True}, {"max_batch": 4}, {"pin": True}])
def test_what_changes_nothing_of_the_weights_does_not(changed):
    assert load_key(Model(make, **changed)) == load_key(Model(make))


def test_a_file_and_a_folder_are_known_by_size_and_time(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "a.safetensors"
    keys = [load_key(Model(folder))]
    for content in ("a", "ab"):
        file.write_text(content)
        keys += [load_key(Model(folder)), load_key(Model(make, weights=file))]
    assert len(set(keys)) == 5
    assert keys[-2:] == [load_key(Model(folder)), load_key(Model(make, weights=file))]


def test_what_cannot_be_told_has_none():
    def itself():
        return itself

    assert load_key(Model(torch.nn.Linear(2, 2))) == ""
    assert load_key(Model(make, args=(threading.Lock(),))) == ""
    assert load_key(Model(itself)) == ""


def test_orders_carry_it():
    model = Model("torch.nn:Linear", args=(2, 2))
    assert load_by_name("m", model, []).options["load_key"] == load_key(model)
    model = Model(functools.partial(make, 2))
    assert load_by_factory("m", model, eager=False).options["load_key"] == load_key(model)
    assert "load_key" not in load_by_factory("m", Model(itself_holder()), eager=False).options


def itself_holder():
    def itself():
        return itself

    return itself
