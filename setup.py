"""What pyproject.toml cannot say: what is built with the package, if there is a C compiler.

* A plain shared library, the allocator of the slots.
* In wheels, the modules that every request goes through, compiled by mypyc: the same sources, the same behaviour,
  and a fifth more requests per second. An editable install runs them as they stand.

Without a compiler, or with ``ONECOPY_COMPILE=0`` as far as the modules go, the package works all the same.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

LIBRARY = Extension(
    "onecopy.workers.libonecopy_arena",
    sources=[f"workers/arena{part}.c" for part in ("", "_blocks", "_device", "_heap", "_run", "_segments")],
    depends=[f"workers/arena_{part}.h" for part in ("blocks", "heap", "run", "segments")],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    optional=True,  # without it a pool works all the same; its workers say what they lack
)

#: By folder, the modules on the way of a request. Not among them: those with named tuples whose annotations are
#: read (`messages`); with classes that extend interpreted ones (`errors`, `futures`, `mailbox`): mypyc lays their
#: memory out wrongly without a word; with objects that are referred to weakly (`connection`); and those that look
#: at what somebody may have made up (`arrays`, `tensors`): compiled code refuses what is not as annotated before
#: ours can say what is wrong with it. `tests/test_compiled.py` looks after that.
COMPILED = {
    "protocol": ["channel", "frames", "items", "lists", "marks", "pieces", "states", "values"],
    "pool": [
        "division", "gathering", "link", "link_unix", "link_zmq", "packs", "parcels", "receiving", "spinning",
    ],
    "pool/core": [path.stem for path in sorted(Path("pool/core").glob("*.py")) if path.stem != "__init__"],
    "pool/supervisor": [
        "clients", "clients_unix", "clients_zmq", "inbound", "processes", "reactor", "recorder",
        "supervisor",
    ],
    "workers": ["calls", "held", "inbox", "mailboxes", "parts", "runs", "slot", "streams", "worker"],
}  # fmt: skip

#: What is not installed where the package is built, torch above all, is of any type: so it is with what is.
MYPY_OPTIONS = [
    "--namespace-packages", "--explicit-package-bases", "--no-site-packages", "--ignore-missing-imports",
    "--follow-imports=silent",
]  # fmt: skip


def compiled_modules(folder: Path) -> list[Extension]:
    """Translate modules to C below a folder; none if they are not wanted, or nothing could compile them."""
    compiler = os.environ.get("CC", "cc").split()[0]
    if os.environ.get("ONECOPY_COMPILE") == "0" or shutil.which(compiler) is None:
        return []
    from mypyc.build import mypycify

    # The package's folders under the names that they are installed with: modules are named by their paths.
    packages = folder / "named" / "onecopy"
    packages.mkdir(parents=True, exist_ok=True)
    for name in {path.partition("/")[0] for path in COMPILED}:
        (packages / name).unlink(missing_ok=True)
        (packages / name).symlink_to(Path(name).resolve())
    paths = [f"onecopy/{path}/{module}.py" for path, modules in COMPILED.items() for module in modules]
    before = Path.cwd()
    os.chdir(packages.parent)
    try:
        return mypycify(
            [*MYPY_OPTIONS, *paths],
            opt_level="2",
            debug_level="0",
            group_name="onecopy",
            multi_file=True,
            target_dir=str(folder / "c"),
        )
    finally:
        os.chdir(before)


class Build(build_ext):
    """Builds the library, which is preloaded and links to nothing of Python's; and for wheels, modules."""

    def run(self) -> None:
        """Build the modules, too, unless they are to be found in the tree."""
        if not (self.inplace or self.editable_mode):
            self.distribution.ext_modules += compiled_modules(Path(self.build_temp).resolve())
            self.distribution.reinitialize_command(self)  # it must look at all extensions again
            self.ensure_finalized()
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        """Return a plain file name for the library; it is the same for every Python."""
        if fullname.endswith("libonecopy_arena"):
            return f"{fullname.replace('.', '/')}.so"
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return what the library's sources do not mark as exported themselves: no ``PyInit``, nothing."""
        return ext.export_symbols if ext is LIBRARY else super().get_export_symbols(ext)

    def get_libraries(self, ext: Extension) -> list[str]:
        """Return what to link to: the library not to libpython."""
        return ext.libraries if ext is LIBRARY else super().get_libraries(ext)


class PlatformWheel(bdist_wheel):
    """A wheel for one kind of machine; without compiled modules, for any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its binary interface, and the platform."""
        tag = super().get_tag()
        return tag if len(self.distribution.ext_modules) > 1 else ("py3", "none", tag[2])


setup(ext_modules=[LIBRARY], cmdclass={"build_ext": Build, "bdist_wheel": PlatformWheel})
