"""What every GPU tells, and how it is asked: CUDA's driver and NVML, this machine's own or strict stand-ins."""

import json
import os
import subprocess
import sys

import pytest
from cuda_driver import build, build_nvml, load, load_nvml
from onecopy.pool import ConfigError
from onecopy.pool.memory.gpus import FakeGpu, GpuMachine, NvmlGpu, ordinal_of
from onecopy.protocol.cuda import GpuInfo

MIB = 1 << 20
FIRST, SECOND = "GPU-11111111-0000-4000-8000-000000000001", "GPU-22222222-0000-4000-8000-000000000002"
TWO = f"gpu {FIRST} 8000000000 1000000000 Stand-in One\ngpu {SECOND} 16000000000 2500000000 Stand-in Two\n"


# --- every GPU -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    load(folder)
    load_nvml(folder)
    NvmlGpu(0).available_bytes()  # a real NVML opens its descriptors once, and keeps them


@pytest.fixture(params=["here", "fake"])
def gpu(request) -> GpuMachine:
    if request.param == "fake":
        return FakeGpu(used_bytes=MIB, processes={77: MIB})
    request.getfixturevalue("libraries")
    return NvmlGpu(0)


def test_what_is_available_is_a_part_of_what_there_is(gpu):
    assert 0 <= gpu.available_bytes() <= gpu.total_bytes()
    assert gpu.total_bytes() > 0


def test_it_is_called_what_no_other_is(gpu):
    assert gpu.uuid.startswith("GPU-")
    assert len(gpu.uuid) == len(FIRST)
    assert gpu.name


def test_what_processes_take_is_told_by_their_ids(gpu):
    assert all(pid > 0 and size_bytes >= 0 for pid, size_bytes in gpu.private_bytes().items())


def test_there_is_nothing_to_complain_of_here(gpu):
    gpu.available_bytes()
    assert gpu.complaint == "" or os.readlink("/proc/self/ns/pid") != "pid:[4026531836]"


def test_a_fake_gpu_is_as_it_was_told():
    gpu = FakeGpu("GPU-7", "It", "nobody knows", 3 * MIB, MIB, {7: MIB})
    assert (gpu.uuid, gpu.name, gpu.complaint) == ("GPU-7", "It", "nobody knows")
    assert (gpu.total_bytes(), gpu.available_bytes(), gpu.private_bytes()) == (3 * MIB, 2 * MIB, {7: MIB})
    gpu.used_bytes = 4 * MIB
    assert gpu.available_bytes() == 0


def test_asking_makes_no_context(libraries):
    from cuda.bindings import driver

    driver.cuCtxSetCurrent(0)
    NvmlGpu(0).available_bytes()
    assert int(driver.cuCtxGetCurrent()[1]) == 0


# --- machines as a file tells --------------------------------------------------------------------------------

BEGINNING = """
import json, os, sys
from onecopy.pool.memory.gpus import ConfigError, NvmlGpu, visible
from onecopy.protocol import cuda
say = lambda *told: print(json.dumps(told))
taken = lambda: 300
"""
FIGURES = "say(gpu.uuid, gpu.total_bytes(), gpu.available_bytes(), gpu.private_bytes(), gpu.complaint)\n"
MADE = "gpu = NvmlGpu(0, taken, namespace='pid')\n"
ASKED = MADE + FIGURES


class Machine:
    """Runs programs on the stand-ins."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "gpus"
        self.environment = os.environ | {"STAND_IN_GPUS": str(self.file), "LD_LIBRARY_PATH": str(folder)}
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        self.file.write_text(TWO)
        self.is_in("pid:[4026531836]")

    def is_in(self, namespace):
        """Choose the namespace of process ids in which programs believe to be."""
        (self.folder / "pid").unlink(missing_ok=True)
        (self.folder / "pid").symlink_to(namespace)

    def run(self, program, **environment):
        """Return what a program says, a list for each time."""
        done = subprocess.run(
            [sys.executable, "-c", BEGINNING + program], env=self.environment | environment, cwd=self.folder,
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return build(folder), build_nvml(folder)


@pytest.fixture
def machine(built, tmp_path):
    for library in built:
        (tmp_path / library.name).symlink_to(library)
    return Machine(tmp_path)


@pytest.fixture
def without_nvml(machine):
    no_library(machine, "libnvidia-ml.so.1")
    return machine


def no_library(machine, name):
    """Let the first file of a library's name that is found be none."""
    (machine.folder / name).unlink()
    (machine.folder / name).write_text("no library")


def test_nvml_is_asked_about_the_gpu_that_cuda_shows_though_it_has_another_number_there(machine):
    (told,) = machine.run(ASKED, CUDA_VISIBLE_DEVICES="1,0")
    assert told == [SECOND, 16_000_000_000, 13_500_000_000, {}, ""]
    (told,) = machine.run(ASKED, CUDA_VISIBLE_DEVICES="GPU-11")
    assert told == [FIRST, 8_000_000_000, 7_000_000_000, {}, ""]


def test_clients_of_a_service_are_told_with_the_others_and_what_is_not_told_is_left_out(machine):
    machine.file.write_text(
        f"{TWO}process 0 70 500 compute\nprocess 0 71 - compute\nprocess 0 72 9 mps\nprocess 1 73 8 compute\n"
    )
    ((_, _, _, private, complaint),) = machine.run(ASKED)
    assert (private, complaint) == ({"70": 500, "72": 9}, "")


def test_in_a_container_process_ids_are_not_believed(machine):
    machine.file.write_text(f"{TWO}process 0 70 500 compute\n")
    machine.is_in("pid:[4026532758]")
    ((_, _, free_bytes, private, complaint),) = machine.run(ASKED)
    assert (free_bytes, private) == (7_000_000_000, {})
    assert complaint.startswith("NVML tells process ids of outside this container: what each process takes")


def test_without_nvml_what_was_handed_out_counts(without_nvml):
    ((_, total_bytes, free_bytes, private, complaint),) = without_nvml.run(ASKED)
    assert (total_bytes - free_bytes, private) == (300, {})
    assert complaint.startswith(
        "NVML cannot be asked (NVML Shared Library Not Found): what CUDA contexts and other"
    )


def test_without_its_binding_it_is_said_how_to_get_it(machine):
    ((_, total_bytes, free_bytes, _, complaint),) = machine.run(f"sys.modules['pynvml'] = None\n{ASKED}")
    assert total_bytes - free_bytes == 300
    assert "(nvidia-ml-py is not installed: pip install 'onecopy[gpu]')" in complaint


#: The driver has looked; NVML looks whenever it is asked.
LATER = "cuda.count()\nopen(os.environ['STAND_IN_GPUS'], 'w').write({text!r})\n"


def test_a_gpu_that_nvml_does_not_know_is_counted(machine):
    ((*_, complaint),) = machine.run(LATER.format(text=f"gpu {SECOND} 1 0 Other\n") + ASKED)
    assert f"it does not know {FIRST}" in complaint


def test_a_part_of_a_gpu_is_found(machine):
    text = f"gpu MIG-{FIRST.removeprefix('GPU-')} 4000 1000 Part\n"
    ((uuid, _, free_bytes, _, complaint),) = machine.run(LATER.format(text=text) + ASKED)
    assert (uuid, free_bytes, complaint) == (FIRST, 3000, "")


def test_while_nvml_does_not_answer_what_was_handed_out_counts(machine):
    lost = LATER.format(text=f"{TWO}lost 0\n")
    found = LATER.format(text=TWO)
    silent, answering = machine.run(MADE + lost + FIGURES + found + FIGURES)
    assert (silent[2], silent[3]) == (8_000_000_000 - 300, {})
    assert "NVML cannot be asked (GPU is lost)" in silent[4]
    assert (answering[2], answering[4]) == (7_000_000_000, "")


def test_neither_torch_nor_numpy_is_imported_for_it(machine):
    ((found,),) = machine.run(
        "NvmlGpu(0).available_bytes()\nsay([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    assert found == []


# --- which there are -----------------------------------------------------------------------------------------

VISIBLE = "say(*visible())\n"
REFUSED = "try:\n    visible()\nexcept ConfigError as error:\n    say(str(error))\n"


def test_gpus_are_told_in_the_order_in_which_cuda_shows_them(machine):
    first, second = ["Stand-in One", 8_000_000_000], ["Stand-in Two", 16_000_000_000]
    assert machine.run(VISIBLE) == [[[0, FIRST, *first, []], [1, SECOND, *second, []]]]
    chosen = machine.run(VISIBLE, CUDA_VISIBLE_DEVICES=f"{SECOND},0")
    assert chosen == [[[0, SECOND, *second, []], [1, FIRST, *first, []]]]


def test_of_each_it_is_told_whose_memory_it_can_use(machine):
    third = "gpu GPU-33333333-0000-4000-8000-000000000003 8000000000 0 Stand-in Three\n"
    machine.file.write_text(TWO + third + "peers 0 2\n")
    peers = "say([gpu.peers for gpu in visible()])\n"
    assert machine.run(peers) == [[[[2], [], [0]]]]
    assert machine.run(peers, CUDA_VISIBLE_DEVICES="2,1,0") == [[[[2], [], [0]]]]
    assert machine.run(peers, CUDA_VISIBLE_DEVICES="0,1") == [[[[], []]]]


def test_memory_of_another_is_mapped_only_where_it_can_be_used(machine):
    program = (
        "fd = cuda.create(2 << 20, 1)\n"
        "try:\n    say(len(cuda.DeviceMapping(fd, 2 << 20, 0, is_writable=True)))\n"
        "except cuda.CudaError as error:\n    say(str(error))\n"
    )
    assert machine.run(program) == [["cuMemSetAccess: CUDA_ERROR_INVALID_DEVICE"]]
    machine.file.write_text(TWO + "peers 0 1\n")
    assert machine.run(program) == [[2 << 20]]


def test_a_process_that_looks_which_there_are_may_fork_afterwards(machine):
    assert machine.run("visible()\nsay([name for name in sys.modules if name.startswith('cuda.')])") == [[[]]]


def test_that_there_is_none_is_said(machine):
    assert machine.run(REFUSED, CUDA_VISIBLE_DEVICES="") == [["no GPU can be used: cuInit: CUDA_ERROR_NO_DEVICE"]]


def test_that_there_is_no_driver_is_said(machine):
    no_library(machine, "libcuda.so.1")
    ((said,),) = machine.run(REFUSED)
    assert said.startswith("no GPU can be used: ")
    assert "driver" in said


def test_that_there_is_no_binding_is_said(machine):
    (machine.folder / "cuda").mkdir()
    (machine.folder / "cuda/__init__.py").write_text("")
    ((said,),) = machine.run(REFUSED, PYTHONPATH=str(machine.folder))
    assert said.startswith("no GPU can be used: cuda-bindings, which comes with CUDA builds of torch, cannot be")


GPUS = [GpuInfo(0, FIRST, "One", 8), GpuInfo(1, SECOND, "Two", 16)]


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [("cuda:0", 0), ("cuda:1", 1), ("cuda:GPU-2", 1), (f"cuda:{FIRST}", 0), ("cuda:gpu-11111111", 0)],
)
def test_a_device_is_named_by_its_number_or_by_the_beginning_of_its_uuid(name, ordinal):
    assert ordinal_of(name, GPUS) == ordinal


@pytest.mark.parametrize(
    ("name", "what"),
    [("cuda:2", "no GPU"), ("cuda:GPU-", "several GPUs"), ("cuda:GPU-3", "no GPU"), ("cuda:11", "no GPU")],
)
def test_a_name_that_does_not_mean_one_gpu_is_refused_with_those_that_there_are(name, what):
    with pytest.raises(ConfigError, match=f"'{name}' means {what}; there are: cuda:0 ") as caught:
        ordinal_of(name, GPUS)
    assert f"cuda:1 (Two, {SECOND})" in caught.value.message
    with pytest.raises(ConfigError, match="there are: none"):
        ordinal_of(name, [])
