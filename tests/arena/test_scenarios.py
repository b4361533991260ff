"""The allocator by itself, in C programs: under sanitizers and valgrind, where a mistake does not go unseen."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

WORKERS = Path(__file__).parents[2] / "workers"
HERE = Path(__file__).parent
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread"]

SCENARIOS = (
    "random_blocks",
    "odd_requests",
    "states",
    "keep",
    "keep_while_written",
    "threads",
    "fork_inside",
    "fork_outside",
    "device_states",
    "device_spill",
    "device_random",
    "device_threads",
)
#: It cannot be asked for odd sizes, and threads it runs one at a time.
WITH_VALGRIND = ("states", "keep", "fork_inside", "fork_outside", "device_states", "device_spill")


@pytest.fixture(scope="module")
def libraries(compile_c, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the scenarios take for torch, and the part that must not be instrumented."""
    folder = tmp_path_factory.mktemp("scenarios")
    compile_c("-O1", "-g", "-shared", "-fPIC", HERE / "torch_stand_in.c", "-o", folder / "libc10.so")
    # `free` is called before a sanitizer is ready.
    compile_c("-O2", "-g", *STRICT, "-c", WORKERS / "arena.c", "-o", folder / "arena.o")
    return folder


@pytest.fixture(scope="module")
def build(compile_c, libraries: Path) -> Callable[..., Path]:
    """Build the scenarios with some flags; return the program."""

    def made(name: str, *flags: str) -> Path:
        sources = [*WORKERS.glob("arena_*.c"), *HERE.glob("*scenarios.c"), HERE / "harness.c"]
        linked = [libraries / "arena.o", libraries / "libc10.so", f"-Wl,-rpath,{libraries}"]
        compile_c("-O1", "-g", *STRICT, *flags, *sources, *linked, "-o", libraries / name)
        return libraries / name

    return made


@pytest.fixture(scope="module")
def plain(build) -> Path:
    return build("plain")


@pytest.fixture(scope="module")
def sanitized(build) -> Path:
    return build("sanitized", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run(*command, **variables: str) -> None:
    done = subprocess.run(
        [*map(str, command)], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario(plain: Path, scenario: str):
    run(plain, scenario)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_with_sanitizers(sanitized: Path, scenario: str):
    run(sanitized, scenario, ASAN_OPTIONS="allocator_may_return_null=1")


@pytest.mark.parametrize("scenario", WITH_VALGRIND)
def test_a_scenario_with_valgrind(plain: Path, scenario: str):
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not installed")
    # Or it would put its own `free` in the place of ours.
    options = ["--quiet", "--error-exitcode=9", "--soname-synonyms=somalloc=nouserintercepts"]
    run(valgrind, *options, plain, scenario)


def test_where_addresses_are_rationed_it_takes_a_part_of_them(plain: Path):
    run("prlimit", f"--as={4 << 30}", plain, "keep")
