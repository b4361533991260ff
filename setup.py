"""What pyproject.toml cannot say: a plain shared library is built with the package, if there is a compiler."""

from __future__ import annotations

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


class BuildLibrary(build_ext):
    """Builds what is no Python module: it is preloaded, and links to nothing of Python's."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return a plain file name; it is the same for every Python."""
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return what the sources do not mark as exported themselves: no ``PyInit``, nothing."""
        return ext.export_symbols

    def get_libraries(self, ext: Extension) -> list[str]:
        """Return what to link to: not libpython."""
        return ext.libraries


class PlatformWheel(bdist_wheel):
    """A wheel for any Python on one kind of machine."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its binary interface, and the platform."""
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[LIBRARY], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel})
