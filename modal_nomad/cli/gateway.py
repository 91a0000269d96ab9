"""``modal-nomad gateway``: serve web endpoints from processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modal_nomad.cli._errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def gateway(
    config: Annotated[Path | None, typer.Option("--config", help="The gateway's configuration file.")] = None,
    print_config: bool = typer.Option(
        False, "--print-config", help="Print the commented default configuration."
    ),
) -> None:
    """Serve web endpoints in the foreground until Ctrl-C; any number of these may run."""
    if (config is None) != print_config:
        raise UsageError("give --config FILE, or --print-config for one to start from.")
    if config is not None and not config.is_file():
        raise UsageError(
            f"{config}: no such file. 'modal-nomad gateway --print-config' prints one to start from."
        )
    from modal_nomad.dispatcher.gateway import process

    raise typer.Exit(process.main(["--print-config"] if config is None else ["--config", str(config)]) or 0)
