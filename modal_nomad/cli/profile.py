"""``modal-nomad profile``: which server and token are meant, by name."""

from __future__ import annotations

import typer

from modal_nomad.cli._table import print_table

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Profiles of the configuration file.",
)


@app.command()
def activate(profile: str = typer.Argument(..., metavar="NAME", help="The profile.")) -> None:
    """Make a profile the one that is used when MODAL_PROFILE names none."""
    from modal_nomad.config import config_set_active_profile

    config_set_active_profile(profile)
    typer.echo(f"Profile {profile} is active.")


@app.command()
def current() -> None:
    """Print the name of the profile in use."""
    from modal_nomad.config import config

    typer.echo(config.profile())


@app.command("list")
def list_profiles(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the profiles and the servers that they lead to."""
    from modal_nomad.config import config, config_profiles

    names = config_profiles()
    used = config.profile()
    rows = [
        (
            name == used,
            name,
            str(config.get("server_url", profile=name, use_env=False) or "this machine"),
            str(config.get("environment", profile=name, use_env=False) or ""),
        )
        for name in names
    ]
    print_table(("Active", "Profile", "Server", "Environment"), rows, as_json)
