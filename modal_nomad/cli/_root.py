"""The root command: global flags, and the table of groups, each imported on first use."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from modal_nomad.cli import _errors

# Command name -> module of this package whose ``app`` is the command or the group.
COMMANDS = {
    "run": "run",
    "deploy": "deploy",
    "serve": "serve",
    "render": "render",
    "secret": "secret",
    "app": "app",
    "dict": "dict",
    "queue": "queue",
    "volume": "volume",
    "nfs": "nfs",
    "environment": "environment",
    "local": "local",
    "dispatcher": "dispatcher",
    "gateway": "gateway",
    "token": "token",
    "proxy-token": "proxy_token",
    "profile": "profile",
    "config": "config",
}


class RootGroup(TyperGroup):
    """Loads a command's module when it is asked for, and says every error in one place."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the module of one command and return the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"modal_nomad.cli.{COMMANDS[cmd_name]}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; an exception becomes a line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as exc:
            if _errors.belongs_to_typer(exc):
                raise
            raise typer.Exit(_errors.report(exc)) from None


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"modal-nomad {version('modal-nomad')}")
        raise typer.Exit


app = typer.Typer(
    name="modal-nomad",
    cls=RootGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
    profile: str = typer.Option("", "--profile", help="Profile to use, as MODAL_PROFILE."),
) -> None:
    """Run and deploy Modal apps on your own Nomad cluster, or on this machine."""
    if profile:
        os.environ["MODAL_PROFILE"] = profile


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends by ``SystemExit``."""
    app(args=None if argv is None else list(argv), prog_name="modal-nomad")
