"""Colour on the command line: on a terminal only, and never where NO_COLOR is set."""

from __future__ import annotations

import os

import typer


def style(text: str, colour: str | None) -> str:
    """Return coloured text; ``typer.echo`` takes the colour out again where it writes to no terminal."""
    if colour is None or os.environ.get("NO_COLOR"):
        return text
    return typer.style(text, fg=colour)


def say(text: str, colour: str | None = None, *, err: bool = False) -> None:
    """Print a line, coloured where it may be."""
    typer.echo(style(text, colour), err=err)
