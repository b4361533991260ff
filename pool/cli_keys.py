"""Commands about keys for tcp: ``onecopy keys new | list | revoke``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from .command import AsJson, print_line, reports_errors

if TYPE_CHECKING:
    from .keys import KeyFolder

keys_app = typer.Typer(name="keys", help="Keys that let clients in over tcp.", no_args_is_help=True)

Folder = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|NAME",
        help="Where the server's keys are: a path, one in this folder as ./name, or the name of one among your "
        "settings. pool.toml names it the same way: keys = 'NAME'.",
    ),
]


@keys_app.command()
@reports_errors
def new(
    folder: Folder,
    client: Annotated[list[str] | None, typer.Option(help="A client that is let in; may be given again.")] = None,
) -> None:
    """Make a server's keys, unless they are there, and the keys of clients.

    Each client gets the file that is printed with its name, by a way on which nobody reads along, such as scp. It
    says Pool.connect('tcp://HOST:PORT', keys='FILE'), or has ONECOPY_KEYS=FILE in its environment.
    """
    keys = _folder(folder)
    is_new = keys.make()
    for name in client or (["client"] if is_new else []):
        print_line(f"{name}: {keys.issue(name)}")
    if is_new:
        print_line(f"for pool.toml: keys = {json.dumps(keys.path)}")


@keys_app.command("list")
@reports_errors
def list_(folder: Folder, as_json: AsJson = False) -> None:
    """Show which clients are let in, and their public keys."""
    clients = _folder(folder).clients()
    if as_json:
        print_line(json.dumps(clients))
        return
    from . import tables

    tables.table(["client", "public key"], list(clients.items()))


@keys_app.command()
@reports_errors
def revoke(folder: Folder, client: Annotated[list[str], typer.Argument(help="Which clients.")]) -> None:
    """Let clients in no more: at once if they come, within seconds if they are connected."""
    keys = _folder(folder)
    for name in client:
        keys.revoke(name)


def _folder(given: str) -> KeyFolder:
    from .keys import KeyFolder, key_folder

    return KeyFolder(key_folder(given, os.getcwd()))
