"""The parent side: what an app imports, and what the supervisor process runs."""

import sys
from typing import TYPE_CHECKING

if sys.platform != "linux":
    raise ImportError("onecopy runs on Linux alone: it is built on memfd, pidfd and SCM_RIGHTS")

from ..protocol.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LoadFailed,
    ModelError,
    ModelNotFound,
    OutOfBudget,
    PoolBusy,
    PoolError,
    RequestCancelled,
    SupervisorLost,
    WorkerDied,
    WorkspaceOverflow,
)
from .checks import ConfigError
from .model import Model

if TYPE_CHECKING:
    from .client import Pool
    from .planning.plan import plan

__all__ = [
    "ConfigError",
    "DeadlineExceeded",
    "InvalidRequest",
    "LoadFailed",
    "Model",
    "ModelError",
    "ModelNotFound",
    "OutOfBudget",
    "Pool",
    "PoolBusy",
    "PoolError",
    "RequestCancelled",
    "SupervisorLost",
    "WorkerDied",
    "WorkspaceOverflow",
    "plan",
]


def __getattr__(name: str) -> object:
    """Import `Pool` and `plan` when they are asked for: the supervisor imports this package and needs neither."""
    if name == "Pool":
        from .client import Pool

        return Pool
    if name == "plan":
        from .planning.plan import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
