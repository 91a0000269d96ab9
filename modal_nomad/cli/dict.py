"""``modal-nomad dict``: create, list, read, clear and delete Dicts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import typer

from modal_nomad.cli import _objects
from modal_nomad.cli._errors import CommandError
from modal_nomad.cli._table import print_table

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Manage Dicts.",
)


@app.command()
def create(name: str = _objects.NAME, environment: str = _objects.ENVIRONMENT) -> None:
    """Create a Dict."""
    _objects.create("dict", name, environment)


@app.command("list")
def list_dicts(environment: str = _objects.ENVIRONMENT, as_json: bool = _objects.JSON) -> None:
    """List the Dicts of an environment, newest first."""
    _objects.print_objects("dict", environment, as_json)


@app.command()
def clear(
    name: str = _objects.NAME, yes: bool = _objects.YES, environment: str = _objects.ENVIRONMENT
) -> None:
    """Remove all entries of a Dict."""
    found = _named(name, environment)
    found.hydrate()
    _objects.confirm(f"Remove all entries of Dict {name!r}?", yes)
    found.clear()
    typer.echo(f"Cleared dict {name!r}.")


@app.command()
def delete(
    name: str = _objects.NAME, yes: bool = _objects.YES, environment: str = _objects.ENVIRONMENT
) -> None:
    """Delete a Dict with all its entries."""
    from modal_nomad.dict import Dict

    _named(name, environment).hydrate()
    _objects.confirm(f"Delete Dict {name!r} with all that is in it?", yes)
    Dict.delete(name, environment_name=environment or None)
    typer.echo(f"Deleted dict {name!r}.")


@app.command()
def get(
    name: str = _objects.NAME,
    key: str = typer.Argument(..., metavar="KEY", help="The key; text."),
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Print the value of a key."""
    found = _named(name, environment)
    try:
        typer.echo(found[key])
    except KeyError:
        raise CommandError(
            f"Dict {name!r} has no key {key!r}: `modal-nomad dict items {name}` shows some"
        ) from None


@app.command()
def items(
    name: str = _objects.NAME,
    count: int = typer.Argument(20, metavar="N", min=0, help="How many entries."),
    everything: bool = typer.Option(False, "--all", "-a", help="Print all entries."),
    as_repr: bool = typer.Option(False, "--repr", "-r", help="Print keys and values as Python writes them."),
    as_json: bool = _objects.JSON,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Print entries, in no particular order."""
    pairs = _named(name, environment)._items(_objects.readable)
    limit = None if everything else count
    found = list(itertools.islice(pairs, limit))
    more = limit is not None and next(iter(pairs), None) is not None
    if as_json:
        show = repr if as_repr else _plain
        typer.echo(json.dumps([{"Key": show(k), "Value": show(v)} for k, v in found], indent=2))
        return
    words = repr if as_repr else str
    rows = [(words(k), words(v)) for k, v in found]
    print_table(("Key", "Value"), [*rows, ("...", "...")] if more else rows, False)


def _named(name: str, environment: str) -> Any:
    from modal_nomad.dict import Dict

    return Dict.from_name(name, environment_name=environment or None)


def _plain(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value
