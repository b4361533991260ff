"""Lets tests run on the package as wheels have it: ``python -m pytest -p compiled`` where that is imported.

A test that replaces something inside of a compiled module would have no effect there, and is skipped.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from onecopy.pool.abilities import is_compiled
from onecopy.pool.core import core

_replace = pytest.MonkeyPatch.setattr


def pytest_report_header() -> str:
    if not is_compiled():
        raise pytest.UsageError(f"{core.__file__} is not compiled")
    return f"compiled: {core.__file__}"


def _is_compiled(target: Any) -> bool:
    """Whether a module is compiled, or what something was defined in."""
    if isinstance(target, str):  # a dotted name
        return any(_is_compiled(sys.modules.get(target.rsplit(".", count)[0])) for count in (1, 2))
    module = target if isinstance(target, ModuleType) else sys.modules.get(getattr(target, "__module__", ""))
    name = getattr(module, "__name__", "")
    return name.startswith("onecopy.") and not (getattr(module, "__file__", None) or ".py").endswith(".py")


def _replace_unless_compiled(self: pytest.MonkeyPatch, target: Any, *args: Any, **kwargs: Any) -> None:
    if _is_compiled(target):
        pytest.skip("replaces something inside of a compiled module")
    _replace(self, target, *args, **kwargs)


pytest.MonkeyPatch.setattr = _replace_unless_compiled
