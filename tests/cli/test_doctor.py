"""What `onecopy doctor` finds here, and what it says where something is not to be found."""

import json
import os
import resource
import subprocess
import sys
from functools import partial

import pytest
import torch
from cuda_driver import build, build_nvml
from onecopy.pool import abilities, gpu_abilities
from onecopy.pool.abilities import Missing, in_a_worker
from onecopy.pool.cli import app as command_line
from onecopy.pool.command import AsJson
from onecopy.pool.doctor import ABILITIES, Ability, Finding, examine, report
from onecopy.pool.supervisor.mps import CONTROL
from onecopy.protocol.cuda import GpuInfo
from typer import Typer
from typer.testing import CliRunner


def app():
    """The command line; while it has no such command, one with what the command does."""
    if any(command.callback.__name__ == "doctor" for command in command_line.registered_commands):
        return command_line
    own = Typer()
    own.callback()(lambda: None)

    @own.command("doctor")
    def _(as_json: AsJson = False):
        report(examine(), as_json=as_json)

    return own


# --- the command ---------------------------------------------------------------------------------------------


def test_here_everything_that_is_needed_is_found(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app(), ["doctor"])
    assert done.exit_code == 0, done.output
    assert done.output.endswith("everything that is needed is here\n")
    assert all(ability.name in done.output for ability in ABILITIES)


def test_as_json_it_is_a_list_of_all_abilities():
    done = CliRunner().invoke(app(), ["doctor", "--json"])
    assert done.exit_code == 0
    told = {one["name"]: one for one in json.loads(done.output)}
    assert told.keys() == {ability.name for ability in ABILITIES}
    assert all(one["is_there"] for one in told.values() if one["is_required"])
    assert told["torch"]["found"].startswith("2.")
    assert set(told["torch"]) == {"name", "use", "is_required", "is_there", "found", "without"}


def test_torch_is_imported_by_the_checks_alone_and_where_the_command_line_does_without_it():
    code = (
        "import sys\n"
        "from onecopy.pool.lines import do_without_torch\n"
        "from onecopy.pool import doctor\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)\n"
        "do_without_torch()\n"
        "assert all(one.is_there for one in doctor.examine() if one.is_required)\n"
        "assert sys.modules['torch'].__version__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_torch_that_cannot_be_imported_is_told():
    code = (
        "import sys, importlib.abc\n"
        "class Broken(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            raise OSError('libtorch.so: cannot open')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from onecopy.pool.doctor import examine, report\n"
        "report(examine(), as_json=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "torch cannot be imported: OSError: libtorch.so: cannot open" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("missing: torch, load_state_dict(assign=)")
    assert done.stderr == ""


def missing():
    raise Missing("nobody has it")


def test_only_what_is_required_makes_it_fail(capsys):
    optional = Ability("luck", "speed", missing, "it is slower")
    report(examine([optional]), as_json=False)
    shown = capsys.readouterr().out
    assert "nobody has it; without it it is slower" in shown
    assert "everything that is needed is here" in shown
    with pytest.raises(SystemExit, match="1"):
        report(examine([optional, Ability("air", "breathing", missing)]), as_json=False)
    shown = capsys.readouterr().out
    assert "MISSING" in shown
    assert shown.endswith("missing: air\n")


def test_an_error_of_the_system_is_an_absence_and_any_other_a_fault_of_ours():
    (found,) = examine([Ability("file", "reading", partial(abilities.line_of, "/no/such/file", "a"), "nothing")])
    assert found == Finding("file", "reading", False, False, "/no/such/file: No such file or directory", "nothing")
    with pytest.raises(ZeroDivisionError):
        examine([Ability("sum", "counting", lambda: str(1 // 0))])


# --- what is not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (partial(abilities.sealed_memory, 0), "sealed memory can be written"),
        (partial(abilities.line_of, "/proc/self/smaps", "Nothing:"), "/proc/self/smaps has no line 'Nothing:'"),
        (partial(abilities.descriptors, 10, lambda: (5, 9)), "9 at most, and 10 are good to have; .*ulimit -Hn"),
        (partial(abilities.spill_folder, "/dev/shm/not-there"), "/dev/shm/not-there is on tmpfs, which is memory"),
        (partial(abilities.symbol, "malloc_prune"), "this C library has no malloc_prune"),
        (partial(abilities.compiled_modules, "json"), "editable install, or was built without a C compiler"),
        (partial(abilities.package, "no-such-package"), "not installed; pip install no-such-package"),
        (partial(abilities.supported_version, "torch", ["torch<2.0,>=1.9"]), "tested is torch<2.0,>=1.9"),
        (partial(abilities.supported_version, "torch", ["torch<9.1,>=9.0; x"]), "and tested is torch<9.1,>=9.0$"),
        (partial(abilities.parameter, "torch:load", "nmap"), "torch:load takes no nmap"),
        (partial(abilities.parameter, "torch._C:_jit_init", "user_managed"), "takes no user_managed"),
        (partial(abilities.attribute, "torch.export:Nothing.at_all"), "there is no torch.export:Nothing.at_all"),
        (partial(abilities.attribute, "no_such_module:x"), "no_such_module cannot be imported: Module"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(check, said):
    with pytest.raises((Missing, OSError), match=said):
        check()


def test_few_mappings_are_said_with_how_to_have_more(tmp_path):
    (tmp_path / "count").write_text("1000\n")
    with pytest.raises(Missing, match=r"1,000 at most, and 65,530 are good to have; .*sysctl vm\.max_map_count"):
        abilities.mappings(65530, str(tmp_path / "count"))


@pytest.mark.parametrize(
    "check",
    [
        partial(abilities.peer_descriptor, 9999),
        partial(abilities.process_descriptor, -1),
        partial(abilities.signal_of_a_pipe, 9999),
        partial(abilities.executable_memory, 1 << 30),
        partial(abilities.sent_file, "/dev/null"),
        partial(abilities.sent_file, "/no/such/file"),
    ],
)
def test_what_the_kernel_refuses_is_missing(check):
    (found,) = examine([Ability("it", "something", check)])
    assert not found.is_there
    assert found.found


def test_limits_that_do_not_exist_are_no_lack():
    assert "any number if asked for" in abilities.descriptors(10, lambda: (5, resource.RLIM_INFINITY))


def test_the_limits_of_a_container_are_told_beside_what_the_machine_has(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    assert abilities.limits(str(tmp_path)).startswith("4.1 GB of memory, 3.1 GB available; ")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 20 0:26 / /groups rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups/memory.max").write_text("2000000000\n")
    said = abilities.limits(str(tmp_path))
    assert said.startswith(
        "2.0 GB of memory, 2.0 GB available (a control group's limit; the machine has 4.1 GB); "
    )


def test_what_can_be_evicted_to_a_disk_is_told(tmp_path):
    assert abilities.spill_folder(str(tmp_path / "cache")).startswith(f"{tmp_path}/cache: room for ")
    assert not (tmp_path / "cache").exists()


def test_a_version_inside_the_range_is_supported():
    assert abilities.supported_version("torch", ["torch-other>=9", "torch>=2.0,<9"]).startswith("2.")


def test_a_folder_for_sockets_that_cannot_be_written_to_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert abilities.socket_folder() == f"{tmp_path}/onecopy"
    monkeypatch.setattr(abilities.os, "access", lambda *_: False)
    with pytest.raises(Missing, match="cannot be written to; set XDG_RUNTIME_DIR"):
        abilities.socket_folder()


def test_a_zeromq_without_encryption_is_told(monkeypatch):
    assert abilities.encryption().startswith("ZeroMQ 4.")
    monkeypatch.setattr(abilities.zmq, "has", lambda _: False)
    with pytest.raises(Missing, match="was built without CURVE"):
        abilities.encryption()


# --- GPUs ----------------------------------------------------------------------------------------------------

UUID = "GPU-11111111-0000-4000-8000-000000000001"
GPU_ROWS = """
import json
from onecopy.pool.doctor import ABILITIES, examine
names = {"CUDA driver", "GPUs", "virtual memory management", "GPU memory as descriptors", "exported GPU memory",
         "GPUs that use each other's memory", "interprocess events", "NVML", "torch's CUDA",
         "Multi-Process Service"}
found = examine([one for one in ABILITIES if one.name in names])
print(json.dumps({one.name: [one.is_there, one.found] for one in found}))
"""


def gpu_rows(environment):
    done = subprocess.run(
        [sys.executable, "-c", GPU_ROWS], check=True, env=os.environ | environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_with_a_gpu_its_figures_are_told(tmp_path):
    build(tmp_path)
    build_nvml(tmp_path)
    (tmp_path / "gpus").write_text(f"gpu {UUID} 8000000000 1500000000 Stand-in\n")
    (tmp_path / CONTROL).write_text("")
    (tmp_path / CONTROL).chmod(0o755)
    found = gpu_rows(
        {"STAND_IN_GPUS": str(tmp_path / "gpus"), "LD_LIBRARY_PATH": str(tmp_path), "PATH": str(tmp_path)}
    )
    assert found.pop("CUDA driver") == [True, "CUDA 13.0"]
    assert found.pop("GPUs") == [True, f"cuda:0 is Stand-in, {UUID}, 8.0 GB, 6.5 GB free"]
    assert found.pop("exported GPU memory") == [True, "without a context"]
    assert found.pop("GPUs that use each other's memory") == [False, "there is one GPU"]
    assert found.pop("Multi-Process Service") == [True, str(tmp_path / CONTROL)]
    is_there, said = found.pop("NVML")
    assert is_there
    assert said.startswith("driver 580.00.00")
    if torch.version.cuda is None:
        assert found.pop("torch's CUDA") == [False, f"torch {torch.__version__} was built without CUDA"]
    else:
        found.pop("torch's CUDA")
    assert set(map(tuple, found.values())) == {(True, "every GPU can")}
    assert len(found) == 3


def test_without_a_driver_every_row_says_so(tmp_path):
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        (tmp_path / name).write_text("no library")
    found = gpu_rows({"LD_LIBRARY_PATH": str(tmp_path)})
    without_driver = [False, "the CUDA driver (libcuda.so.1) cannot be loaded"]
    assert [name for name, row in found.items() if row == without_driver] == [
        "CUDA driver", "GPUs", "virtual memory management", "GPU memory as descriptors", "exported GPU memory",
        "GPUs that use each other's memory", "interprocess events",
    ]  # fmt: skip
    assert found["NVML"] == [False, "NVML Shared Library Not Found"]


def test_a_gpu_that_lacks_something_is_named(monkeypatch):
    monkeypatch.setattr(gpu_abilities.cuda, "count", lambda: 3)
    monkeypatch.setattr(gpu_abilities.cuda, "attribute", lambda ordinal, name: ordinal % 2)
    with pytest.raises(Missing, match=r"^cuda:0, cuda:2 cannot$"):
        gpu_abilities.attribute("IPC_EVENT_SUPPORTED")


def test_which_gpus_use_each_others_memory_is_told(monkeypatch):
    peers = {0: (1, 2), 1: (0,), 2: (0,), 3: ()}
    monkeypatch.setattr(gpu_abilities.cuda, "count", lambda: len(peers))
    monkeypatch.setattr(
        gpu_abilities.cuda, "describe", lambda ordinal: GpuInfo(ordinal, "GPU-1", "One", 8, peers[ordinal])
    )
    assert gpu_abilities.peers() == "cuda:0 that of cuda:1, cuda:2; cuda:1 that of cuda:0; cuda:2 that of cuda:0"
    peers |= dict.fromkeys(peers, ())
    with pytest.raises(Missing, match=r"^no GPU can$"):
        gpu_abilities.peers()


def test_a_torch_that_finds_no_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Missing, match=r"torch, built with CUDA 13\.0, finds no GPU that it can use"):
        gpu_abilities.torch_on_gpus()


def test_what_a_worker_would_fail_at_is_missing():
    with pytest.raises(Missing, match=r"^RuntimeError: there is no library$"):
        in_a_worker("raise RuntimeError('there is no library')")
