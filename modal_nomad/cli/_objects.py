"""What the groups of named objects share: their list, the question before something is gone."""

from __future__ import annotations

import datetime
from typing import Any

import typer

from modal_nomad.cli import _client
from modal_nomad.cli._table import print_table
from modal_nomad.exception import DeserializationError
from modal_nomad.wire.serialization import loads

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


class Unreadable:
    """Stands for a value that cannot be loaded here; printing it says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __repr__(self) -> str:
        return f"<{self._reason}>"


def readable(data: bytes) -> Any:
    """Load a value to be printed; one whose class is not installed here hides no others."""
    try:
        return loads(data)
    except DeserializationError as error:
        return Unreadable(str(error))


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
