"""What is shipped: built, looked into, and used in an environment that has never seen the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
VERSION = PROJECT["project"]["version"]

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]


def run(command, cwd, **variables):
    """Run a command that knows nothing of the repository; return what it printed."""
    # A Python of the test's own would be found through these.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_"))}
    environment |= variables
    done = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Built(NamedTuple):
    """The sdist, the wheel that was built from it, and what is new at the top of the repository since."""

    source: Path
    wheel: Path
    appeared: set[str]


def copy_of_tree(source):
    """Copy what is in the tree, and nothing that was built there; return where to."""
    for name in ("pool", "workers", "protocol", "tests", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """Distributions, built from a copy, so that nothing is left in the tree."""
    before = set(os.listdir(ROOT))
    source = copy_of_tree(tmp_path_factory.mktemp("source") / "tree")
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)], cwd=out)
    return Built(next(out.glob("*.tar.gz")), next(out.glob("*.whl")), set(os.listdir(ROOT)) - before)


def sources():
    """The path in the wheel of every file that has to be there."""
    expected = set()
    for package in PACKAGES:
        folder = ROOT.joinpath(*package.split(".")[1:])
        expected |= {f"{package.replace('.', '/')}/{path.name}" for path in folder.glob("*.py")}
    for package in ("protocol", "pool", "workers"):
        expected.add(f"onecopy/{package}/py.typed")
    return expected | {"onecopy/protocol/README.md"}


#: What compiled modules end with, and the library that they are all in.
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
GROUP = "onecopy__mypyc"
#: Not tied to a version of Python: it is preloaded, not imported.
LIBRARY = "onecopy/workers/libonecopy_arena.so"


def platform_tag():
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


with_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler"
)


@with_compiler
def test_the_wheel_holds_every_module_compiled_ones_twice_and_nothing_else(built):
    wheel = built.wheel
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name == f"onecopy-{VERSION}-{python}-{python}-{platform_tag()}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"onecopy-{VERSION}.dist-info/METADATA").decode()
    compiled = {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)} - {GROUP}
    assert {name for name in names if name.startswith("onecopy/")} == (
        sources() | {LIBRARY} | {f"{name}{SUFFIX}" for name in compiled}
    )
    assert {f"{name}.py" for name in compiled} <= sources()
    core = {name.removesuffix(".py") for name in sources() if name.startswith("onecopy/pool/core/")}
    assert core - {"onecopy/pool/core/__init__"} <= compiled
    assert {name.split("/")[0] for name in names} == {"onecopy", f"onecopy-{VERSION}.dist-info", GROUP + SUFFIX}
    assert f"onecopy-{VERSION}.dist-info/licenses/LICENSE" in names
    for line in (
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
        "Description-Content-Type: text/mark",
    ):
        assert line in metadata
    assert "one copy of the weights" in metadata.split("\n\n", 1)[1]  # the README


def test_the_source_distribution_holds_what_a_build_needs(built):
    with tarfile.open(built.source) as archive:
        names = {name.removeprefix(f"onecopy-{VERSION}/") for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert {name.removeprefix("onecopy/") for name in sources()} <= names
    assert {f"workers/{path.name}" for path in (ROOT / "workers").glob("arena*.[ch]")} <= names


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory: pytest.TempPathFactory):
    """The Python of an environment with the wheel in it; what that depends on is this environment's."""
    return install(built.wheel, tmp_path_factory.mktemp("environment"))


def install(wheel, home):
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip())
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], home)
    # A .pth adds a folder behind the wheel's, and its own .pth files, one of which is the editable onecopy,
    # are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


SCRIPT = """
import torch
from torch import nn
import onecopy.pool, onecopy.protocol.frames
from onecopy.pool import Pool

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x)
    def where(self):
        import sys
        import onecopy.workers, onecopy.protocol.frames, onecopy.workers.worker
        return [onecopy.workers.__file__, onecopy.protocol.frames.__file__, sys.executable]

if __name__ == "__main__":
    model = Model()
    expected = model(torch.ones(1, 4))
    with Pool({"m": model}, workers=2) as pool:
        assert torch.equal(pool.run("m", torch.ones(1, 4)), expected)
        assert pool.memory().weights_bytes > 0
        places = pool.model("m", method="where")()
    print(onecopy.pool.__file__, onecopy.protocol.frames.__file__, *places, sep="\\n")
"""


def test_the_installed_wheel_runs_a_pool_with_nothing_but_its_own_code(installed: Path, tmp_path: Path):
    script = tmp_path / "app.py"
    script.write_text(SCRIPT)
    places = run([str(installed), "-W", "error", str(script)], tmp_path).split()
    assert len(places) == 5
    for place in places:
        assert Path(place).is_relative_to(installed.parents[1]), place
    assert "site-packages/onecopy/pool/" in places[0]


def test_the_installed_command_tells_what_it_can_do(installed: Path, tmp_path: Path):
    command = installed.with_name("onecopy")
    printed = run([str(command), "--help"], tmp_path)
    assert "serve" in printed


#: What goes through the modules that are compiled: the core by itself, and pools of real processes.
OF_COMPILED = (
    "core/test_core_machine.py", "core/test_fairness.py", "protocol/test_frames.py", "pool/test_running.py",
    "pool/test_streams.py", "pool/test_deaths.py", "pool/test_mailboxes.py", "pool/test_hostile_peers.py",
    "pool/test_links.py",
)  # fmt: skip


@with_compiler
@pytest.mark.timeout(900)
def test_compiled_modules_do_as_their_sources_do(installed: Path, tmp_path: Path):
    tests = [str(ROOT / "tests" / path) for path in OF_COMPILED]
    plugins = ["-p", "compiled", "-p", "no:cacheprovider"]
    command = [str(installed), "-m", "pytest", *plugins, "--rootdir", str(ROOT), *tests]
    variables = {"PYTHONPATH": str(ROOT / "tests"), "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)}
    printed = run(command, ROOT, **variables)
    assert f"compiled: {installed.parents[1]}" in printed
    assert " passed" in printed


WITHOUT_LIBRARY = """
from onecopy.workers.arena import Arena, built
print(Arena.preloaded(), built())
"""


def test_without_a_compiler_it_is_built_all_the_same_and_says_what_it_lacks(tmp_path: Path):
    source = copy_of_tree(tmp_path / "tree")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(source)]
    run(build, tmp_path, CC="/nonexistent")
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name == f"onecopy-{VERSION}-py3-none-{platform_tag()}.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("onecopy/")} == sources()
    python = install(wheel, tmp_path / "environment")
    printed = run([str(python), "-W", "error", "-c", WITHOUT_LIBRARY], tmp_path)
    assert printed.startswith("None Built(path=None")
    assert "it was not built when onecopy was installed, which takes a C compiler" in printed
    script = tmp_path / "app.py"
    script.write_text(SCRIPT)
    run([str(python), "-W", "error", str(script)], tmp_path)


def test_building_leaves_nothing_in_the_repository(built):
    assert built.appeared == set()
