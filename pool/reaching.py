"""The ways to a supervisor: over a unix socket on its own machine, or by ZeroMQ over tcp."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from ..protocol.errors import InvalidRequest, SupervisorLost
from .checks import ConfigError
from .control import ControlSocket, connect
from .environment import default_keys
from .keys import read_secret
from .link import Link
from .link_unix import UnixLink
from .link_zmq import ZmqLink

_CONNECT_S: Final = 10.0


class Way(NamedTuple):
    """A way to a supervisor.

    Attributes:
        directory: its runtime folder; empty: it is reached over tcp.
        link: for requests.
        control: for memory; None over tcp.
        token: what `Hello` shows it, to be let in.
    """

    directory: str
    link: Link
    control: ControlSocket | None
    token: bytes


def reach(endpoint: str, keys: str | None, may_spin: Callable[[], bool], is_receiving: Callable[[], bool]) -> Way:
    """Connect to a supervisor.

    Args:
        endpoint: ``ipc://FOLDER``, or ``tcp://HOST:PORT``.
        keys: over tcp, the file with this client's keys; default: ``$ONECOPY_KEYS``, or none.
        may_spin: as for `UnixLink`.
        is_receiving: as for `ZmqLink`.

    Raises:
        SupervisorLost: nobody serves there.
        ConfigError: the keys cannot be read, or there is no use for them.
        InvalidRequest: the endpoint is none.
    """
    if endpoint.startswith("ipc://"):
        if keys:
            raise ConfigError(f"keys are for tcp; {endpoint} knows its clients by their user")
        return _over_unix(endpoint.removeprefix("ipc://"), may_spin)
    if endpoint.startswith("tcp://"):
        file = keys or default_keys()
        own_keys = read_secret(file, of_client=True) if file else None
        _check_reachable(endpoint)
        return Way("", ZmqLink(endpoint, is_receiving, own_keys), None, b"")
    raise InvalidRequest(f"endpoint {endpoint!r}: it must start with ipc:// or tcp://")


def _over_unix(directory: str, may_spin: Callable[[], bool]) -> Way:
    control = ControlSocket(directory)
    token = control.admit()
    try:
        return Way(directory, UnixLink(connect(directory), may_spin), control, token)
    except BaseException:
        control.close()
        raise


def _check_reachable(endpoint: str) -> None:
    """Raise `SupervisorLost` at once if nobody listens; ZeroMQ itself would go on trying in silence."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except ValueError:
        raise InvalidRequest(f"endpoint {endpoint!r} is not of the form tcp://HOST:PORT") from None
    except OSError as error:
        raise SupervisorLost(f"nobody serves at {endpoint} ({error.strerror or error})") from None
