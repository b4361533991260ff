"""The command line: ``onecopy serve | status | models | run | batch | load | unload | evict | move | logs ...``.

Exit codes: 0 done, 1 failed, 2 wrong usage. An error is one line on standard error; what a model raised keeps
its remote traceback. Everything but the command line's grammar is imported by the command that needs it, so that
``onecopy status`` is there at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_ask import logs, memory, models, record, status, top
from .cli_keys import keys_app
from .cli_models import evict, load, move, pin, unload, unpin
from .cli_pool import doctor, plan, serve, stop
from .cli_run import batch, run
from .command import print_line

app = typer.Typer(
    name="onecopy",
    help="A pool of worker processes for PyTorch models with one copy of the weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Be the console script."""
    from .lines import do_without_torch

    do_without_torch()
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print_line(f"onecopy {importlib.metadata.version('onecopy')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A pool of worker processes for PyTorch models with one copy of the weights."""


for _command in (
    serve, plan, stop, doctor, logs, status, models, memory, top, record, run, batch, load, unload, pin, unpin,
    evict, move,
):  # fmt: skip
    app.command()(_command)
app.add_typer(keys_app)


if __name__ == "__main__":
    main()
