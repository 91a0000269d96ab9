"""``modal-nomad environment``: list, create, update and delete environments."""

from __future__ import annotations

import typer

from modal_nomad.cli import _client, _objects
from modal_nomad.cli._errors import UsageError
from modal_nomad.cli._table import print_table

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Manage environments.",
)


@app.command("list")
def list_environments(as_json: bool = _objects.JSON) -> None:
    """List the environments that were created or that something is in; the one in use is marked."""
    used = _client.environment("") or "main"
    found = _client.request(_client.connect(), "environment.list", {})["environments"]
    rows = [(x["name"], x["web_suffix"], x["name"] == used) for x in found]
    print_table(("name", "web suffix", "active"), rows, as_json)


@app.command()
def create(name: str = _objects.NAME) -> None:
    """Create an environment."""
    _client.request(_client.connect(), "environment.create", {"name": name})
    typer.echo(f"Created environment {name!r}.")


@app.command()
def delete(
    name: str = _objects.NAME,
    confirm: bool = typer.Option(False, "--confirm/--no-confirm", "--yes", "-y", help="Do not ask."),
) -> None:
    """Delete an environment: its Apps are stopped, its Dicts, Queues, Secrets and Volumes are gone."""
    client = _client.connect()
    _client.request(client, "environment.find", {"name": name})
    _objects.confirm(f"Stop every App in environment {name!r}, and delete all that is in it?", confirm)
    _client.request(client, "environment.delete", {"name": name})
    typer.echo(f"Deleted environment {name!r}.")


@app.command()
def update(
    name: str = _objects.NAME,
    new_name: str | None = typer.Option(None, "--set-name", help="Its new name; no App may be in it."),
    web_suffix: str | None = typer.Option(
        None, "--set-web-suffix", help="What the addresses of its web endpoints have in them; may be empty."
    ),
) -> None:
    """Change the name of an environment, or the suffix of its web endpoints."""
    if new_name is None and web_suffix is None:
        raise UsageError("nothing to change: give --set-name or --set-web-suffix")
    request = {"name": name, "new_name": new_name, "web_suffix": web_suffix}
    changed = _client.request(_client.connect(), "environment.update", request)
    typer.echo(f"Environment {changed['name']!r} is up to date.")
