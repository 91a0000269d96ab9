"""What the groups of named objects share: their list, the question before something is gone."""

from __future__ import annotations

import datetime
from typing import Any

import typer

from modal_nomad.cli import _client
from modal_nomad.cli._table import print_table

ENVIRONMENT = typer.Option("", "--env", "-e", help="The environment.")
JSON = typer.Option(False, "--json", help="Print JSON.")
YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
NAME = typer.Argument(..., metavar="NAME", help="Its name.")


def moment(seconds: float) -> str:
    """Return a time as it is printed in listings."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S%z")


def printable(path: str) -> str:
    """Return a name that a terminal and JSON can take: what is no UTF-8 in it is shown by its bytes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def print_objects(kind: str, environment: str, as_json: bool) -> None:
    """Print the named objects of a kind, newest first."""
    request = {"kind": kind, "environment": _client.environment(environment)}
    found = _client.request(_client.connect(), "object.list", request)["objects"]
    rows = [(x["name"], moment(x["created_at"]), x["created_by"]) for x in found]
    print_table(("Name", "Created at", "Created by"), rows, as_json)


def create(kind: str, name: str, environment: str) -> None:
    """Create a named object; one that exists is an error."""
    request: dict[str, Any] = {"kind": kind, "name": name, "environment": _client.environment(environment)}
    made = _client.request(_client.connect(), "object.get_or_create", {**request, "create": "always"})
    typer.echo(f"Created {kind} {name!r} in environment {made['environment']!r}.")


def confirm(question: str, yes: bool) -> None:
    """Ask before something is gone; an answer other than yes ends the command."""
    if not yes:
        typer.confirm(question, default=False, abort=True)
