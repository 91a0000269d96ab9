"""Rows of a listing: JSON, a table on a terminal, tab-separated text in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import typer


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | bool]], as_json: bool) -> None:
    """Print rows: JSON objects keyed by column, a table on a terminal, tab-separated text in a pipe."""
    if as_json:
        typer.echo(
            json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2, ensure_ascii=False)
        )
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(_cell(cell)) for cell in row))
        Console().print(table)
    else:
        for row in (columns, *rows):
            typer.echo("\t".join(map(_cell, row)))


def _cell(value: str | bool) -> str:
    return value if isinstance(value, str) else "•" * value
