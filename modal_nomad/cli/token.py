"""``modal-nomad token``: the token that this user's commands and programs call with."""

from __future__ import annotations

import os
import sys
from getpass import getpass

import typer

from modal_nomad.cli._errors import UsageError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="The token that you call with.",
)


@app.callback()
def _token() -> None:
    pass


@app.command("set")
def set_token(
    token_id: str = typer.Option("", "--token-id", help="The token's id; '-' or nothing asks for it."),
    token_secret: str = typer.Option(
        "", "--token-secret", help="Its secret; '-' or nothing asks for it, unseen."
    ),
    server_url: str = typer.Option("", "--server-url", help="Store this dispatcher's address, too."),
    profile: str = typer.Option("", "--profile", help="Profile to write; by default the one in use."),
    activate: bool = typer.Option(True, "--activate/--no-activate", help="Make the profile the active one."),
    verify: bool = typer.Option(True, "--verify/--no-verify", help="Ask the server whether it takes it."),
) -> None:
    """Store a token in the configuration file.

    It comes from 'modal-nomad dispatcher token create' on the dispatcher's machine; with Nomad's ACLs the
    secret is a Nomad token and the id may be left empty.
    """
    from modal_nomad._config_file import write_profile
    from modal_nomad.config import config, config_path, config_profiles

    if token_id in ("", "-"):
        token_id = _ask("Token ID (empty for a Nomad ACL token): ", "--token-id", hidden=token_id == "-")
    if token_secret in ("", "-"):
        token_secret = _ask("Token secret: ", "--token-secret", hidden=True)
    if not token_secret:
        raise UsageError("a token needs its secret: give --token-secret.")
    name = profile or config.profile()
    known = name in config_profiles()
    url = server_url or os.environ.get("MODAL_SERVER_URL")
    if not url and known:
        url = config.get("server_url", profile=name)
    # The embedded dispatcher takes everybody who may open its socket: there is nothing to ask it.
    if verify and url:
        _verify(url, token_id, token_secret)
    values = {"token_id": token_id or None, "token_secret": token_secret}
    if server_url:
        values["server_url"] = server_url
    write_profile(name, values, activate=activate)
    typer.echo(f"Stored the token in profile {name} of {config_path()}.")


def _ask(question: str, flag: str, *, hidden: bool) -> str:
    if sys.stdin.isatty():
        return (getpass(question) if hidden else input(question)).strip()
    line = sys.stdin.readline()
    if not line:
        raise UsageError(f"there is no terminal to ask on: give {flag}, or its value on standard input.")
    return line.strip()


def _verify(url: str, token_id: str, token_secret: str) -> None:
    from modal_nomad.client import Client
    from modal_nomad.config import config
    from modal_nomad.exception import AuthError

    config.override_locally("server_url", url)
    try:
        Client.from_credentials(token_id, token_secret)
    except AuthError:
        raise AuthError(f"{url} does not take this token; nothing was stored") from None
