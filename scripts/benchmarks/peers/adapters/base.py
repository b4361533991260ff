"""What a peer has to offer to be measured."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from ..clients import Client
from ..workloads import WORKLOADS, Loading, Workload

#: The environment variables that tell a server its job, as JSON, and its port.
JOB_VARIABLE, PORT_VARIABLE = "PEERS_JOB", "PEERS_PORT"


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer shall serve.

    Attributes:
        workload: the name of a workload.
        workers: how many processes answer.
        weights: the folder of all weights.
        loading: how weights come into a worker.
        folder: for whatever the peer writes; gone afterwards.
        spare: how many workers more `grow` will ask for.
    """

    workload: str
    workers: int
    weights: str
    loading: Loading
    folder: str
    spare: int = 0

    @property
    def about(self) -> Workload:
        """What is asked."""
        return WORKLOADS[self.workload]

    @classmethod
    def of_environment(cls) -> Self:
        """Return the job that a server is started with."""
        return cls(**json.loads(os.environ[JOB_VARIABLE]))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON carries it."""
        return asdict(self)


class Adapter(ABC):
    """Starts a peer, is its client, and ends it. One is made for each start.

    Attributes:
        counts_client: whether the process that sends requests is a part of the peer, because it holds the model.
        can_grow: whether a peer that runs can be given another worker.
    """

    counts_client: ClassVar[bool] = False
    can_grow: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def start(self) -> Client:
        """Start the peer; return a client as soon as requests can be sent, answered or not."""

    def settle(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until its processes are those that will stay, if it exchanges them after the start."""

    def grow(self) -> Client:
        """Give it another worker; return the client to use from now on."""
        raise NotImplementedError

    @abstractmethod
    def stop(self) -> None:
        """End the peer as its documentation says; what is left of it then is killed."""
