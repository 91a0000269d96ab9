"""``modal-nomad app``: list, stop, logs, history."""

from __future__ import annotations

import datetime
import sys
import threading
from typing import Any

import typer

from modal_nomad.cli import _client
from modal_nomad.cli._table import print_table

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="See and govern apps.",
)

_ENVIRONMENT = typer.Option("", "--env", "-e", help="Environment to look in.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_APP = typer.Argument(..., metavar="APP", help="The App's id or name.")


@app.command("list")
def list_apps(environment: str = _ENVIRONMENT, as_json: bool = _JSON) -> None:
    """List apps that run, are deployed, or were stopped lately."""
    client = _client.connect()
    reply = _client.request(client, "app.list", {"environment": _client.environment(environment)})
    columns: tuple[str, ...] = (
        "App ID",
        "Description",
        "State",
        "Tasks",
        "Created at",
        "Stopped at",
        "Next run",
    )
    rows: list[tuple[str, ...]] = [
        (
            entry["app_id"],
            entry.get("name") or entry.get("description") or "",
            entry["state"],
            str(entry.get("tasks", 0)),
            _moment(entry.get("created_at")),
            _moment(entry.get("stopped_at")),
            _moment(entry.get("next_run")),
        )
        for entry in reply["apps"]
    ]
    if not as_json and not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows, as_json)


@app.command()
def history(reference: str = _APP, environment: str = _ENVIRONMENT, as_json: bool = _JSON) -> None:
    """List the deployments of an App, the newest first."""
    client = _client.connect()
    args = {"app": reference, "environment": _client.environment(environment)}
    versions = sorted(_client.request(client, "app.history", args)["versions"], key=lambda v: -v["version"])
    columns = ["Version", "Time deployed", "Client", "Deployed by"]
    rows = [
        [f"v{v['version']}", _moment(v["deployed_at"]), v.get("client") or "", v.get("deployed_by") or ""]
        for v in versions
    ]
    if any(v.get("tag") for v in versions):
        columns.append("Tag")
        for row, version in zip(rows, versions, strict=True):
            row.append(version.get("tag") or "")
    print_table(columns, rows, as_json)


@app.command()
def stop(reference: str = _APP, environment: str = _ENVIRONMENT) -> None:
    """Stop an App: its containers end, and its deployment is gone."""
    client = _client.connect()
    found = _resolve(client, reference, environment)
    _client.request(client, "app.stop", {"app_id": found["app_id"]})
    typer.echo(f"Stopped {found.get('name') or found['app_id']}.")


@app.command()
def logs(
    reference: str = _APP,
    environment: str = _ENVIRONMENT,
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what is logged from now on."),
) -> None:
    """Print what an App's containers logged."""
    client = _client.connect()
    follow_logs(_resolve(client, reference, environment)["app_id"], follow, client)


def follow_logs(app_id: str, follow: bool, client: Any | None = None) -> None:
    """Print an App's logs so far; with ``follow`` go on until it stops or Ctrl-C."""
    from modal_nomad._output import OutputManager

    client = client or _client.connect()
    printer = OutputManager(sys.stdout, sys.stderr, show_progress=False)
    ended = threading.Event()
    last = "app_stopped" if follow else "backlog_end"

    def on_event(event: dict[str, Any], payload: bytes) -> None:
        if event.get("t") == "ev" and event.get("e") == last:
            ended.set()
        else:
            printer.on_event(event, payload)

    client._subscribe(app_id, on_event)
    _client.request(client, "app.subscribe", {"app_id": app_id, "logs": True, "backlog": True})
    try:
        ended.wait()
    except KeyboardInterrupt:
        # Ctrl-C is how one stops following; the App is untouched.
        if not follow:
            raise
    finally:
        client._unsubscribe(app_id, on_event)
        printer.finished()


def _resolve(client: Any, reference: str, environment: str) -> dict[str, Any]:
    args = {"app": reference, "environment": _client.environment(environment)}
    return _client.request(client, "app.resolve", args)


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S%z")
