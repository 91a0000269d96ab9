"""``modal-nomad queue``: create, list, look into, clear and delete Queues."""

from __future__ import annotations

import itertools
from typing import Any

import typer

from modal_nomad.cli import _objects

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Manage Queues.",
)

_PARTITION = typer.Option("", "--partition", "-p", help="The partition; without it the default one.")


@app.command()
def create(name: str = _objects.NAME, environment: str = _objects.ENVIRONMENT) -> None:
    """Create a Queue."""
    _objects.create("queue", name, environment)


@app.command("list")
def list_queues(environment: str = _objects.ENVIRONMENT, as_json: bool = _objects.JSON) -> None:
    """List the Queues of an environment, newest first."""
    _objects.print_objects("queue", environment, as_json)


@app.command()
def delete(
    name: str = _objects.NAME, yes: bool = _objects.YES, environment: str = _objects.ENVIRONMENT
) -> None:
    """Delete a Queue with all its items."""
    from modal_nomad.queue import Queue

    _named(name, environment).hydrate()
    _objects.confirm(f"Delete Queue {name!r} with all that is in it?", yes)
    Queue.delete(name, environment_name=environment or None)
    typer.echo(f"Deleted queue {name!r}.")


@app.command()
def clear(
    name: str = _objects.NAME,
    partition: str = _PARTITION,
    everything: bool = typer.Option(False, "--all", "-a", help="Clear all partitions."),
    yes: bool = _objects.YES,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Remove all items of a partition."""
    found = _named(name, environment)
    found.hydrate()
    what = "all partitions" if everything else f"partition {partition!r}" if partition else "the items"
    _objects.confirm(f"Remove {what} of Queue {name!r}?", yes)
    found.clear(partition=partition or None, all=everything)
    typer.echo(f"Cleared queue {name!r}.")


@app.command()
def peek(
    name: str = _objects.NAME,
    count: int = typer.Argument(1, metavar="N", min=0, help="How many items."),
    partition: str = _PARTITION,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Print the next items, which stay where they are."""
    items = _named(name, environment)._peek(partition or None, _objects.readable)
    for item in itertools.islice(items, count):
        typer.echo(item)


@app.command("len")
def length(
    name: str = _objects.NAME,
    partition: str = _PARTITION,
    total: bool = typer.Option(False, "--total", "-t", help="Count the items of all partitions."),
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Print how many items there are."""
    typer.echo(_named(name, environment).len(partition=partition or None, total=total))


def _named(name: str, environment: str) -> Any:
    from modal_nomad.queue import Queue

    return Queue.from_name(name, environment_name=environment or None)
