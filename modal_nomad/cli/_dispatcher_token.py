"""``modal-nomad dispatcher token``: issue, list and revoke tokens, on the dispatcher's machine.

Whoever may write the dispatcher's store may issue tokens; no token is needed to make the first one.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from modal_nomad.cli._errors import CommandError, UsageError, config_files
from modal_nomad.cli._table import print_table

if TYPE_CHECKING:
    from modal_nomad.dispatcher.store import Store

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help='Tokens of a dispatcher that has auth = "token".',
)

_Config = Annotated[
    list[Path] | None, typer.Option("--config", help="The dispatcher's configuration file, or its files.")
]
_Home = Annotated[
    Path | None,
    typer.Option("--home", help="The dispatcher's home, instead of --config."),
]


@app.command()
def create(
    config: _Config = None,
    home: _Home = None,
    environment: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", help="An environment that it is for; repeatable. None: all of them."),
    ] = None,
    label: str = typer.Option("", "--label", help="Whose it is: shown in histories."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Issue a token. Its secret is shown once and kept hashed."""
    from modal_nomad.dispatcher.store.base import TokenRecord, hash_secret

    token_id, secret = f"ak-{secrets.token_hex(11)}", f"as-{secrets.token_urlsafe(32)}"
    environments = tuple(dict.fromkeys(environment or ()))
    record = TokenRecord(token_id, hash_secret(secret), environments, label, time.time())
    _with_store(config, home, lambda store: store.add_token(record))
    if as_json:
        typer.echo(json.dumps({"token_id": token_id, "token_secret": secret}, indent=2))
        return
    scope = f"the environments {', '.join(environments)}" if environments else "all environments"
    typer.echo(f"Token {token_id} for {scope}. The secret is shown this once; its holder says:\n")
    typer.echo(f"  modal-nomad token set --token-id {token_id} --token-secret {secret}")


@app.command("list")
def list_tokens(
    config: _Config = None,
    home: _Home = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the tokens, never their secrets."""
    records = _with_store(config, home, lambda store: store.tokens())
    rows = [
        (
            record.token_id,
            record.label,
            ", ".join(record.environments) or "all",
            datetime.datetime.fromtimestamp(record.created_at).astimezone().strftime("%Y-%m-%d %H:%M:%S%z"),
        )
        for record in records
        if not record.token_id.startswith("wk-")
    ]
    print_table(("Token ID", "Label", "Environments", "Created at"), rows, as_json)


@app.command()
def revoke(
    token_id: str = typer.Argument(..., metavar="TOKEN_ID", help="The token's id, ak-..."),
    config: _Config = None,
    home: _Home = None,
) -> None:
    """Revoke a token: within 30 seconds nobody connects with it any more."""

    async def remove(store: Store) -> bool:
        if await store.token(token_id) is None:
            return False
        await store.remove_token(token_id)
        return True

    if not _with_store(config, home, remove):
        raise CommandError(f"there is no token {token_id}: 'modal-nomad dispatcher token list' shows them.")
    typer.echo(f"Revoked {token_id}.")


def _with_store(config: list[Path] | None, home: Path | None, work: Callable[[Store], Awaitable[T]]) -> T:
    from modal_nomad.dispatcher.settings import Settings
    from modal_nomad.dispatcher.settings_files import SettingsError
    from modal_nomad.dispatcher.store.base import StoreError
    from modal_nomad.dispatcher.store.choice import choose_store

    if bool(config) == (home is not None):
        raise UsageError("say which dispatcher is meant: --config FILE or --home DIR.")
    try:
        files = config_files(config or [], "dispatcher")
        settings = Settings.load(*files) if home is None else Settings.for_home(home)
        folder = Path(settings.home)

        async def run() -> T:
            # The dispatcher may run: it reads each token from the store when it is used.
            store = choose_store(settings.store, folder, beside=True)
            await store.open()
            try:
                return await work(store)
            finally:
                await store.close()

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return asyncio.run(run())
    except (SettingsError, StoreError) as error:
        raise CommandError(f"{error}.") from None
