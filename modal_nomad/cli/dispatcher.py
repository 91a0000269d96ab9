"""``modal-nomad dispatcher``: serve one in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modal_nomad.cli import _dispatcher_token
from modal_nomad.cli._errors import UsageError, config_files

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(_dispatcher_token.app, name="token")


@app.callback(invoke_without_command=True)
def dispatcher(
    context: typer.Context,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            help="Configuration file of a cluster's dispatcher; repeatable, what later ones say counts.",
        ),
    ] = None,
    home: Annotated[
        Path | None, typer.Option("--home", help="Serve embedded, with its state in this directory.")
    ] = None,
    print_config: bool = typer.Option(
        False, "--print-config", help="Print the commented default configuration."
    ),
) -> None:
    """Serve a dispatcher in the foreground until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    chosen = [
        flag
        for flag, given in (("--config", config), ("--home", home), ("--print-config", print_config))
        if given
    ]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other.")
    files = config_files(config or [], "dispatcher")
    from modal_nomad.dispatcher import serve

    if files:
        argv = [word for file in files for word in ("--config", str(file))]
    elif print_config:
        argv = ["--print-config"]
    else:
        if home is None:
            from modal_nomad._home import home as default_home

            home = default_home()
        argv = ["--home", str(home)]
    raise typer.Exit(serve.main(argv) or 0)
