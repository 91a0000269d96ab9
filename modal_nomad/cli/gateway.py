"""``modal-nomad gateway``: serve web endpoints from processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modal_nomad.cli._errors import UsageError, config_files

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def gateway(
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config", help="The gateway's configuration file; repeatable, what later ones say counts."
        ),
    ] = None,
    print_config: bool = typer.Option(
        False, "--print-config", help="Print the commented default configuration."
    ),
) -> None:
    """Serve web endpoints in the foreground until Ctrl-C; any number of these may run."""
    files = config_files(config or [], "gateway")
    if bool(files) == print_config:
        raise UsageError("give --config FILE, or --print-config for one to start from.")
    from modal_nomad.dispatcher.gateway import process

    argv = [word for file in files for word in ("--config", str(file))]
    raise typer.Exit(process.main(argv or ["--print-config"]) or 0)
