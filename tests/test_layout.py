"""What every file of the repository keeps to."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "pool", "workers")
MAX_LINES = 400


def tracked():
    """Every file that belongs to the repository, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def texts():
    for path in tracked():
        try:
            yield path.relative_to(ROOT), path.read_text()
        except UnicodeDecodeError:
            continue


def test_no_file_of_the_packages_is_longer_than_a_reader_can_hold():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_tells_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").read_bytes() == b""


def test_every_folder_with_modules_is_a_package_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    found = {"onecopy." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == found
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_nothing_is_left_for_later_without_being_said_in_words():
    marks = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")  # so written that it does not find itself
    assert [f"{name}:{match[0]}" for name, text in texts() for match in marks.finditer(text)] == []


def test_no_path_of_one_machine_is_written_down():
    paths = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|opt)/\w+")
    assert [f"{name}: {match[0]}" for name, text in texts() for match in paths.finditer(text)] == []


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
