"""How much memory a pool may take: what may be said, what is meant where nothing is said, and what is refused."""

import os

import pytest
from onecopy.pool import ConfigError, Model, Pool, environment
from onecopy.pool.devices import DeviceSettings, read_devices
from onecopy.pool.memory.machine import FakeMachine
from onecopy.pool.settings import Settings
from onecopy.pool.toml import read_toml

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch):
    """A machine with 10 GiB and four cores' worth of time, of eight cores that the process may use."""
    machine = FakeMachine(memory_bytes=10 * GIB, core_count=4)
    monkeypatch.setattr(environment, "LinuxMachine", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return machine


def test_sizes_may_be_numbers_or_texts():
    devices = read_devices({"cpu": {"budget": "2GiB", "reserve": 512 * MIB}})
    assert devices == {"cpu": DeviceSettings(budget_bytes=2 * GIB, reserve_bytes=512 * MIB)}
    assert read_devices({"cpu": {"reserve": 0}})["cpu"].reserve_bytes == 0
    given = DeviceSettings(budget_bytes=GIB)
    assert read_devices({"cpu": given})["cpu"] is given


@pytest.mark.parametrize(
    ("memory_bytes", "reserve_bytes"), [(10 * GIB, GIB // 2), (64 * GIB, GIB), (GIB, GIB // 20)]
)
def test_a_twentieth_of_the_memory_stays_free_and_at_most_a_gibibyte(machine, memory_bytes, reserve_bytes):
    machine.memory_bytes = memory_bytes
    assert read_devices({}) == {"cpu": DeviceSettings(budget_bytes=0, reserve_bytes=reserve_bytes)}


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ({"gpu": {}}, "the name of a device must be 'cpu', .* or 'cuda:0' and so on, not 'gpu'"),
        ({7: {}}, "the name of a device must be 'cpu', .* or 'cuda:0' and so on, not 7"),
        ({"cpu": {}, "cpu:0": {}}, "'cpu' is the whole machine; name its parts 'cpu:0', 'cpu:1' and so on"),
        ({f"cpu:{index}": {} for index in range(65)}, "a pool may have 64 devices, not 65"),
        ({"cpu": {"cores": [0, 99]}}, r"devices.cpu: cores \[99\] are not among those that this process may use"),
        ({"cpu": {"cores": 3}}, "devices.cpu.cores must be a list of the numbers of cores, such as"),
        ({"cpu": {"workers": -1}}, "devices.cpu: workers must be a whole number from 0"),
        ({"cpu": {"budjet": 1}}, "a key of devices.cpu must be one of 'budget', 'reserve', .*, not 'budjet'"),
        ({"cpu": {"budget": "lots"}}, "devices.cpu.budget must be a number of bytes from 0, or a text such as"),
        ({"cpu": {"reserve": -1}}, "devices.cpu.reserve must be a number of bytes from 0"),
        ({"cpu": {"budget": 1 << 50}}, "devices.cpu: budget must be a whole number from 0"),
        (
            {"cpu": {"reserve": "10GiB"}},
            "devices.cpu: reserve must be less than the 10,737,418,240 bytes that this",
        ),
        ({"cpu": "2GiB"}, "devices.cpu must be a mapping with budget and reserve, not '2GiB'"),
        ("cpu", "devices must be 'cuda', 'numa' or a mapping such as .* not 'cpu'"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_what_cannot_be_is_refused_by_its_name(devices, said):
    with pytest.raises(ConfigError, match=said):
        read_devices(devices)


@pytest.mark.usefixtures("machine")
def test_settings_travel_and_follow_what_the_machine_and_the_budget_allow():
    plain = Settings(workers=6)
    assert (plain.slots, plain.threads) == (4, 1)
    assert plain.mailbox_total_bytes == 10 * GIB // 8
    settings = Settings(devices=read_devices({"cpu": {"budget": "2GiB"}}), max_private_bytes=300 * MIB)
    assert settings.mailbox_total_bytes == 2 * GIB // 8
    assert Settings.from_wire(settings.to_wire()) == settings
    assert Settings.from_wire({}).devices == read_devices({})


def test_where_a_group_limits_time_runs_are_not_bound_to_cores(machine):
    assert Settings(workers=2, slots=2, threads=1).seat_cores == []
    machine.core_count = 8
    assert Settings(workers=2, slots=2, threads=1).seat_cores == [[0], [1]]


@pytest.mark.usefixtures("machine")
def test_a_file_says_it_in_tables(tmp_path):
    config = tmp_path / "pool.toml"
    config.write_text(
        'workers = 2\nmax_private = "1GiB"\n[devices.cpu]\nbudget = "2GiB"\nreserve = 1000\n'
        '[models.m]\nsource = "torch.nn:Linear"\npin = true\n'
    )
    settings, models = read_toml(str(config))
    assert settings.devices == {"cpu": DeviceSettings(2 * GIB, 1000)}
    assert settings.max_private_bytes == GIB
    assert models["m"].options["pin"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[devices.gpu]\nbudget = 1",
            "the name of a device must be 'cpu', or 'cpu:0', 'cpu:1' and so on, or 'cuda:0' and so on, not 'gpu'",
        ),
        ("[devices.cpu]\nbudget = 'x'", "devices.cpu.budget must be a number of bytes"),
        ("devices = 3", "devices must be 'cuda', 'numa' or a mapping such as .*, not 3"),
        ("max_private = 'x'", "max_private must be a number of bytes"),
        ("[device.cpu]\nbudget = 1", "did you mean 'devices'"),
        ("[models.m]\nsource = 'a:b'\npin = 1", r"models\.m\.pin must be bool, not int: 1"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_what_cannot_be_in_a_file_is_refused_with_its_place(tmp_path, text, said):
    config = tmp_path / "pool.toml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_toml(str(config))
    assert str(caught.value).startswith(f"{config}: ")


def test_a_model_is_pinned_or_not():
    assert Model(dict, pin=True).options["pin"] is True
    assert "pin" not in Model(dict).options
    with pytest.raises(ConfigError, match="pin must be true or false, not 'yes'"):
        Model(dict, pin="yes")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"devices": {"cuda": {}}},
            "the name of a device must be 'cpu', or .*, not 'cuda'",
        ),
        ({"max_private": "much"}, "max_private must be a number of bytes from 0, or a text such as"),
    ],
)
def test_a_pool_that_cannot_be_is_not_started(options, said):
    with pytest.raises(ConfigError, match=said):
        Pool({"m": dict}, **options)


def test_a_machine_that_is_divided_is_divided_evenly(machine):
    devices = read_devices({"cpu:0": {}, "cpu:1": {"budget": "1GiB", "threads": 3}})
    limit_bytes = 10 * GIB - GIB // 2
    assert [one.budget_bytes for one in devices.values()] == [limit_bytes // 2, GIB]
    assert [one.cores for one in devices.values()] == [(), ()], "a group grants less time than the cores have"
    machine.core_count = 8
    devices = read_devices({"cpu:0": {}, "cpu:1": {}, "cpu:2": {"cores": [7]}})
    assert [one.cores for one in devices.values()] == [(0, 1), (2, 3, 4), (7,)]
    assert read_devices(devices) == devices


def test_each_device_has_settings_of_its_own(machine):
    machine.core_count = 8
    devices = read_devices({"cpu:0": {}, "cpu:1": {"workers": 1, "threads": 2}})
    settings = Settings(workers=4, least_workers=2, devices=devices)
    assert Settings.from_wire(settings.to_wire()) == settings
    first, second = (settings.on(name) for name in devices)
    assert (first.workers, first.least_workers, first.slots, first.threads) == (4, 2, 4, 1)
    assert first.seat_cores == [[0], [1], [2], [3]]
    assert (second.workers, second.least_workers, second.slots, second.threads) == (1, 1, 1, 2)
    assert second.seat_cores == [[4, 5]]
