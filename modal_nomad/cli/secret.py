"""``modal-nomad secret``: the stored Secrets. Values go in and are never shown."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

import typer

from modal_nomad.cli._errors import UsageError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Stored Secrets: variables for containers.",
)

_PAIRS = typer.Argument(
    None, metavar="KEY=VALUE...", help="Its variables; KEY=- opens an editor for the value."
)
_ENVIRONMENT = typer.Option("", "--env", "-e", help="Environment, by default the configured one.")


@app.callback()
def _secret() -> None:
    pass


@app.command("create", no_args_is_help=True)
def create(
    name: str = typer.Argument(..., metavar="NAME", help="The Secret's name."),
    pairs: list[str] = _PAIRS,
    dotenv: str = typer.Option("", "--from-dotenv", metavar="FILE", help="Take variables from a .env file."),
    from_json: str = typer.Option(
        "", "--from-json", metavar="FILE", help="Take variables from a JSON object of strings."
    ),
    force: bool = typer.Option(False, "--force", help="Replace a Secret of that name."),
    environment: str = _ENVIRONMENT,
) -> None:
    """Store a Secret.

    What stands on a command line is in the shell's history and in the list of processes: KEY=- and the
    files are not.
    """
    from modal_nomad._bridge import run_blocking
    from modal_nomad.secret import store

    values = {
        **(_from_dotenv(Path(dotenv)) if dotenv else {}),
        **(_from_json(Path(from_json)) if from_json else {}),
        **_from_pairs(pairs or []),
    }
    if not values:
        raise UsageError("a Secret needs a variable: give KEY=VALUE, --from-dotenv FILE or --from-json FILE.")
    run_blocking(store(name, values, force=force, environment_name=environment or None))
    typer.echo(f"Stored Secret {name} with {', '.join(values)}. A Function gets it by")
    typer.echo(f'    @app.function(secrets=[modal.Secret.from_name("{name}")])')


@app.command("list")
def list_secrets(
    environment: str = _ENVIRONMENT,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the stored Secrets. Their values are not shown, here or anywhere."""
    from modal_nomad.cli._client import connect, request
    from modal_nomad.cli._client import environment as chosen
    from modal_nomad.cli._table import print_table

    found = request(connect(), "secret.list", {"environment": chosen(environment)})["secrets"]
    rows = [
        (x["name"], _moment(x["created_at"]), x["created_by"], x["environment"], x["secret_id"])
        for x in found
    ]
    print_table(("Name", "Created at", "Created by", "Environment", "Secret ID"), rows, as_json)


@app.command("delete", no_args_is_help=True)
def delete(
    name: str = typer.Argument(..., metavar="NAME", help="The Secret's name."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    allow_missing: bool = typer.Option(False, "--allow-missing", help="None of that name is no error."),
    environment: str = _ENVIRONMENT,
) -> None:
    """Delete a Secret for good. Containers that run keep their variables; new ones that need it fail."""
    from modal_nomad.secret import Secret

    if not yes:
        typer.confirm(f"Delete Secret {name} for good?", abort=True)
    Secret.objects.delete(name, allow_missing=allow_missing, environment_name=environment or None)
    typer.echo(f"Deleted Secret {name}.")


def _from_pairs(pairs: list[str]) -> dict[str, str]:
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            # Not the word itself: it may be a value whose name was forgotten.
            raise UsageError("each variable is given as KEY=VALUE, and one of these has no '=' or no name.")
        values[key] = _edited(key) if value == "-" else value
    return values


def _edited(key: str) -> str:
    import click

    note = f"# The value of {key}. Lines that begin with '#' are left out, as is the last line's end."
    text = click.edit(f"\n{note}\n", require_save=True)
    if text is None:
        raise UsageError(f"the editor was left without a value for {key}; nothing was stored.")
    lines = [line for line in text.split("\n") if not line.startswith("#")]
    return "\n".join(lines).rstrip("\n")


def _from_dotenv(path: Path) -> dict[str, str | None]:
    from dotenv import dotenv_values

    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    return dict(dotenv_values(path))


def _from_json(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no text"
        raise UsageError(f"{path} cannot be read: {reason}.") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: line {error.lineno}, column {error.colno}.") from None
    if not isinstance(values, dict):
        raise UsageError(f'{path} must hold a JSON object, as {{"KEY": "VALUE"}}.')
    wrong = [key for key, value in values.items() if not isinstance(value, (str, type(None)))]
    if wrong:
        raise UsageError(f"{path}: the value of {wrong[0]} is no string; quote it.")
    return values


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S%z")
