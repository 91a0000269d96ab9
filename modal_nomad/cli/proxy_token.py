"""``modal-nomad proxy-token``: the tokens that open endpoints with ``requires_proxy_auth``."""

from __future__ import annotations

import json

import typer

from modal_nomad.cli import _client
from modal_nomad.cli._objects import ENVIRONMENT, JSON, YES, confirm, moment
from modal_nomad.cli._table import print_table

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Tokens that open web endpoints with requires_proxy_auth.",
)


@app.command()
def create(
    environment: str = ENVIRONMENT,
    label: str = typer.Option("", "--label", help="What it is for."),
    as_json: bool = JSON,
) -> None:
    """Issue a token for the endpoints of an environment. Its secret is shown once and kept hashed."""
    request = {"environment": _client.environment(environment), "label": label}
    made = _client.request(_client.connect(), "proxy_token.create", request)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    typer.echo(
        f"A proxy auth token for environment {made['environment']!r}. The secret is shown this once; "
        "requests carry both:\n"
    )
    typer.echo(f"  Modal-Key: {made['token_id']}\n  Modal-Secret: {made['token_secret']}")


@app.command("list")
def list_tokens(environment: str = ENVIRONMENT, as_json: bool = JSON) -> None:
    """List the tokens of an environment, never their secrets."""
    request = {"environment": _client.environment(environment)}
    found = _client.request(_client.connect(), "proxy_token.list", request)["tokens"]
    rows = [(x["token_id"], x["label"], moment(x["created_at"])) for x in found]
    print_table(("Token ID", "Label", "Created at"), rows, as_json)


@app.command()
def delete(
    token_id: str = typer.Argument(..., metavar="TOKEN_ID", help="The token's id, wk-..."),
    environment: str = ENVIRONMENT,
    yes: bool = YES,
) -> None:
    """Delete a token: within 30 seconds it opens nothing any more."""
    confirm(f"Delete {token_id}? Whoever uses it is locked out.", yes)
    request = {"token_id": token_id, "environment": _client.environment(environment)}
    _client.request(_client.connect(), "proxy_token.delete", request)
    typer.echo(f"Deleted {token_id}.")
