"""What the commands of `cli` have in common: options, errors as exit codes, endpoints, JSON given as options."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from .client import Pool
    from .control import ControlSocket

_P = ParamSpec("_P")
_R = TypeVar("_R")

Endpoint = Annotated[
    str | None,
    typer.Option(
        help="ipc://FOLDER, tcp://HOST:PORT, or the name of a pool of yours; "
        "default: $ONECOPY_ENDPOINT, or the pool named 'default'."
    ),
]
Keys = Annotated[
    str | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        callback=lambda given: _use_keys(given),
        help="Over tcp: your keys, from whoever serves; default: $ONECOPY_KEYS.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Method = Annotated[str, typer.Option(help="Method to call; default: the one the model was declared with.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds after which a request fails.")]
Retries = Annotated[int, typer.Option(help="How many deaths of a worker a request survives.")]
Priority = Annotated[
    int, typer.Option(help="From -100 to 100: of what waits, the higher goes first; a level is worth a second.")
]
ArgJson = Annotated[list[str] | None, typer.Option("--arg", metavar="JSON", help="A positional argument.")]
KwargJson = Annotated[list[str] | None, typer.Option("--kwarg", metavar="KEY=JSON", help="A keyword argument.")]

# What `load` takes besides, as `model.Model` has it.
Source = Annotated[
    str,
    typer.Argument(
        help="A factory: package.module:name, found from here. A path, one in this folder as ./name: a folder of "
        "transformers or sentence-transformers, an exported program or compiled package (.pt2), a saved module "
        "(.pt, .pth). Or owner/model, from the local cache of the Hugging Face hub."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="The weights of the nn.Module that a factory builds: a safetensors file, an index of several, a "
        "folder with either, or a state dict (.pt).",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="bfloat16, float16 or float32: what floating-point weights are cast to once loaded."),
]
Task = Annotated[
    str | None, typer.Option(help="What the pipeline of a folder is for, such as text-classification.")
]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Load a saved module: a pickle, which runs whatever code it holds.")
]
Residency = Annotated[
    str,
    typer.Option(help="memory; or file: workers map a weights file itself where it has them as they are used."),
]
Sharing = Annotated[
    str, typer.Option(help="shared: equal weights of several models are stored once; or private: not of this one.")
]
MaxBatch = Annotated[int, typer.Option(help="How many calls a worker may run as one, concatenated.")]
MaxWait = Annotated[
    float, typer.Option("--max-wait-ms", help="How long a call may wait for others while all workers are busy.")
]
Share = Annotated[
    float, typer.Option(help="Its part of the workers' time when there is not enough, relative to the others'.")
]
MaxQueue = Annotated[
    int, typer.Option(help="How many of its requests may wait; what comes then fails. 0: no bound of its own.")
]


def reports_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn the errors of a command into a line on standard error and an exit code."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        from ..protocol.errors import PoolError
        from .checks import ConfigError

        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except (PoolError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # whoever read our output has gone: say nothing
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                raise typer.Exit(1) from None
            print(f"onecopy: {error}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
        except KeyboardInterrupt:
            print("onecopy: interrupted", file=sys.stderr)  # noqa: T201
            raise typer.Exit(1) from None

    return run


def _use_keys(given: str | None) -> None:
    """Have this process connect with these keys."""
    if given:
        from .environment import use_keys

        use_keys(given)


def full_endpoint(given: str | None) -> str:
    """Return the endpoint that an option stands for: a name of a pool, an endpoint, or nothing."""
    from .checks import check_name
    from .environment import default_directory, default_endpoint

    if not given:
        return default_endpoint()
    return given if "://" in given else f"ipc://{default_directory(check_name('pool', given))}"


def connect(endpoint: str | None) -> Pool:
    """Return a connection for requests and queries; the caller closes it."""
    from .client import Pool

    return Pool.connect(full_endpoint(endpoint))


def connect_control(endpoint: str | None) -> ControlSocket:
    """Return a connection to the supervisor's unix socket; the caller closes it.

    Raises:
        InvalidRequest: the endpoint is tcp, over which neither code nor control may travel.
    """
    from ..protocol.errors import InvalidRequest
    from .control import ControlSocket

    address = full_endpoint(endpoint)
    if not address.startswith("ipc://"):
        raise InvalidRequest(
            f"{address}: code and control never travel over tcp; ask on the supervisor's machine, as its user, "
            "over ipc://"
        )
    return ControlSocket(address.removeprefix("ipc://"))


@contextlib.contextmanager
def process_at(control: ControlSocket) -> Generator[select.poll]:
    """Yield a poll that returns when the process that listens at the other end has ended."""
    from .peers import peer_pidfd

    pidfd = peer_pidfd(control._channel.socket)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        yield poll
    finally:
        os.close(pidfd)


def print_line(text: str) -> None:
    """Print a line as UTF-8, whatever the locale is."""
    from .lines import to_bytes

    sys.stdout.buffer.write(to_bytes(text))


def json_option(option: str, text: str) -> Any:
    """Return the value of an option that is JSON; wrong usage if it is not."""
    from ..protocol.errors import InvalidRequest
    from .lines import read_json

    try:
        return read_json(text)
    except InvalidRequest as error:
        raise typer.BadParameter(f"{option} {text}: {error}; a text is written '\"in quotes\"'") from None


def json_arguments(arg: list[str] | None, kwarg: list[str] | None) -> dict[str, Any]:
    """Return the ``args`` and ``kwargs`` that these options give."""
    kwargs: dict[str, Any] = {}
    for pair in kwarg or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--kwarg {pair}: it must be KEY=JSON")
        kwargs[key] = json_option("--kwarg", text)
    return {"args": [json_option("--arg", text) for text in arg or ()], "kwargs": kwargs}


def json_input(given: str) -> tuple[str, Any]:
    """Return the folder where relative paths begin, and the document that ``--input`` stands for."""
    if given == "-":
        return os.getcwd(), json_option("--input", sys.stdin.read())
    if os.path.isfile(given):
        with open(given, encoding="utf-8-sig") as file:
            return os.path.dirname(os.path.abspath(given)), json_option("--input", file.read())
    return os.getcwd(), json_option("--input", given)
