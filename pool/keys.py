"""Keys that let clients in over tcp: who serves proves that it does, who asks proves who it is, all is encrypted.

CURVE, as ZeroMQ has it (its RFC 25 and 26). A server's folder::

    server.key_secret            the server's pair
    server.key                   its public half
    clients/NAME.key             the public half of a client that is let in; without this file it is not
    issued/NAME.key_secret       what that client gets: its own pair, and the public half of the server's

Files have the form of certificates that ``zmq.auth`` and czmq read and write, so pairs made by these will do. Only
the issued ones have a line more, ``server-key``; they can be moved to where their client is.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import zmq

from . import environment
from .checks import ConfigError, check_name

#: 32 bytes in Z85 (ZeroMQ's RFC 32), whose digits include neither quotes nor backslashes.
_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_LINE: Final = re.compile(r"\s*(public-key|secret-key|server-key)\s*=\s*[\"']([^\"']*)[\"']\s*")
#: No certificate is longer.
_MOST_BYTES: Final = 16384
#: File systems tell two changes apart by their time if there are some milliseconds between them; this is ample.
_SETTLED_NS: Final = 2_000_000_000
#: How often files are looked at that may have been edited: a thousand of them take some milliseconds.
_LOOK_S: Final = 1.0
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITTEN_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Keys:
    """What a certificate has, in Z85; empty what it has not."""

    public: str
    secret: str = ""
    server: str = ""

    def __repr__(self) -> str:
        return f"<Keys {self.public}>"


class _File(NamedTuple):
    """A file as it was at some time."""

    name: str
    changed_ns: int
    size_bytes: int


_Files: TypeAlias = frozenset[_File]


class KeyFolder:
    """A server's keys, and whom it lets in.

    Args:
        path: the folder.
        clock: tells seconds.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._pair = os.path.join(path, "server.key_secret")
        self._clients = os.path.join(path, "clients")
        self._known: frozenset[str] = frozenset()
        self._read_of: tuple[int, _Files] | None = None  # folder and files as they were then; None: read it anew
        self._files: _Files = frozenset()
        self._look_at = 0.0

    def server(self) -> Keys:
        """Return the server's pair.

        Raises:
            ConfigError: it is not there, cannot be read, or others can get at it; or others can let clients in.
        """
        for folder in (self.path, self._clients):
            _check_owned(folder)
        return read_secret(self._pair)

    def clients(self) -> dict[str, str]:
        """Return the public keys of those who are let in, by name.

        Raises:
            ConfigError: a file in the folder is no certificate.
        """
        with _named_errors(self._clients):
            names = sorted(_stem(name) for name in os.listdir(self._clients) if name.endswith(".key"))
        return {name: _read(self._public_file(name)).public for name in names}

    def known(self) -> frozenset[str]:
        """Return the same keys as of now, of edited files as of a second ago; what is no certificate is none.

        It is asked whenever somebody comes, strangers in numbers too: files are read when something has changed.
        """
        try:
            there = (os.stat(self._clients).st_mtime_ns, self._looked_at())
            if there != self._read_of:
                self._known = frozenset(self._certificates())
                changed_ns = max((there[0], *(one.changed_ns for one in there[1])))
                self._read_of = there if time.time_ns() - changed_ns > _SETTLED_NS else None
        except OSError:
            return frozenset()
        return self._known

    def make(self) -> bool:
        """Make the folder and the server's pair; return whether there was none.

        Raises:
            ConfigError: they cannot be made, or others can get at what is there.
        """
        with _named_errors(self.path):
            for folder in (self.path, self._clients, os.path.join(self.path, "issued")):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            if os.path.exists(self._pair):
                self.server()
                return False
            pair = _new_pair()
            _write(os.path.join(self.path, "server.key"), Keys(pair.public))
            _write(self._pair, pair)
        return True

    def issue(self, name: str) -> str:
        """Make a client's pair and let it in; return the file that it gets.

        Raises:
            ConfigError: there is one of that name.
        """
        if "/" in check_name("client", name):
            raise ConfigError(f"client {name!r}: its name becomes that of a file, so it has no '/'")
        path = self._issued_file(name)
        if os.path.exists(self._public_file(name)) or os.path.exists(path):
            raise ConfigError(f"{self.path} has keys of {name!r} already; revoke them first")
        pair = _new_pair()
        with _named_errors(path):
            _write(path, Keys(pair.public, pair.secret, self.server().public))
            _write(self._public_file(name), Keys(pair.public))
        return path

    def revoke(self, name: str) -> None:
        """Let a client in no more.

        Raises:
            ConfigError: it was not let in.
        """
        path = self._public_file(name)
        with _named_errors(path):
            os.unlink(path)
        with contextlib.suppress(FileNotFoundError):  # it was moved to where the client is
            os.unlink(self._issued_file(name))

    def _looked_at(self) -> _Files:
        """Return what tells that files are as they were; not added and removed ones, which the folder tells."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_S
            with os.scandir(self._clients) as found:
                looks = ((one.name, one.stat()) for one in found)
                self._files = frozenset(_File(name, one.st_mtime_ns, one.st_size) for name, one in looks)
        return self._files

    def _certificates(self) -> Iterator[str]:
        for name in os.listdir(self._clients):
            with contextlib.suppress(ConfigError):
                if name.endswith(".key"):
                    yield _read(os.path.join(self._clients, name)).public

    def _public_file(self, name: str) -> str:
        return os.path.join(self._clients, f"{name}.key")

    def _issued_file(self, name: str) -> str:
        return os.path.join(self.path, "issued", f"{name}.key_secret")


def key_folder(given: str, folder: str) -> str:
    """Return the folder that is meant by a path, or by a name: then it is among the user's settings.

    Raises:
        ConfigError: it is neither.
    """
    if os.sep in given:
        return os.path.normpath(os.path.join(folder, os.path.expanduser(given)))
    return os.path.join(environment.config_folder(), "keys", check_name("keys", given))


def read_secret(path: str, *, of_client: bool = False) -> Keys:
    """Return a pair; of a client with the key of its server.

    Raises:
        ConfigError: the file cannot be read, lacks one of them, or can be read by others.
    """
    _check_curve()
    path = os.path.expanduser(path)
    keys = _read(path)
    lacks = not keys.secret or (of_client and not keys.server)
    if lacks:
        what = "secret-key" if not keys.secret else "server-key"
        raise ConfigError(f"{path} has no {what}; `onecopy keys new` makes a file with all that a client needs")
    found = os.stat(path)
    # A container's mounted secrets belong to root: who reads them was decided by whoever mounted them.
    if found.st_uid == os.getuid() and found.st_mode & _OTHERS:
        raise ConfigError(
            f"{path} is a secret, and its mode {stat.S_IMODE(found.st_mode):04o} lets others at it; "
            "make that 0600, and new keys if anyone may have read it"
        )
    return keys


def _new_pair() -> Keys:
    _check_curve()
    public, secret = zmq.curve_keypair()
    return Keys(public.decode(), secret.decode())


def _check_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError("ZeroMQ was built without CURVE here; pyzmq as it comes from PyPI has it")


def _stem(name: str) -> str:
    return name.removesuffix(".key")


def _read(path: str) -> Keys:
    with _named_errors(path), open(path, "rb") as file:
        text = file.read(_MOST_BYTES).decode(errors="replace")
    matches = (_LINE.fullmatch(line) for line in text.splitlines())
    found = {match[1].partition("-")[0]: match[2] for match in matches if match}
    wrong = [name for name, key in found.items() if not _KEY.fullmatch(key)]
    if wrong or "public" not in found:
        what = f"its {wrong[0]}-key is not 40 characters of Z85" if wrong else "it has no public-key"
        raise ConfigError(f"{path} is no certificate: {what}")
    return Keys(**found)


def _write(path: str, keys: Keys) -> None:
    lines = ["#   ZeroMQ CURVE certificate" + (": keep it secret" if keys.secret else ""), "metadata", "curve"]
    lines.append(f'    public-key = "{keys.public}"')
    if keys.secret:
        lines.append(f'    secret-key = "{keys.secret}"')
    if keys.server:
        lines.append(f'    server-key = "{keys.server}"')
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    os.replace(f"{path}.new", path)  # whoever looks a key up reads it whole or not at all


def _check_owned(folder: str) -> None:
    """Refuse a folder into which others can put the keys of whomever they like."""
    with _named_errors(folder):
        found = os.stat(folder)
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & _WRITTEN_BY_OTHERS:
        raise ConfigError(
            f"{folder} must belong to uid {os.getuid()} or root and be written by nobody else; "
            f"it belongs to uid {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):04o}"
        )


@contextlib.contextmanager
def _named_errors(path: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}; `onecopy keys new` makes keys") from error
