"""``modal-nomad config``: see and change the settings of the profile in use."""

from __future__ import annotations

import json

import typer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Settings of the profile in use.",
)


@app.command()
def show(
    redact: bool = typer.Option(True, "--redact/--no-redact", help="Print the token's secret as ***."),
) -> None:
    """Print the settings in force, from the environment, the file and the defaults, as JSON."""
    from modal_nomad.config import SECRET_KEYS, config

    values = {
        key: "***" if redact and key in SECRET_KEYS and value else value
        for key, value in config.to_dict().items()
    }
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))


@app.command("set-environment")
def set_environment(
    environment: str = typer.Argument(..., metavar="NAME", help="The environment."),
) -> None:
    """Set the environment that commands and programs use when they name none."""
    from modal_nomad._config_file import write_profile
    from modal_nomad.config import config

    profile = config.profile()
    write_profile(profile, {"environment": environment})
    typer.echo(f"Profile {profile} uses the environment {environment}.")


@app.command("set")
def set_setting(
    key: str = typer.Argument(..., metavar="KEY", help="The setting, such as server_url."),
    value: str = typer.Argument(..., metavar="VALUE", help="Its value; an empty one takes it out."),
) -> None:
    """Set one setting in the profile in use."""
    from modal_nomad._config_file import write_profile
    from modal_nomad.config import config

    profile = config.profile()
    write_profile(profile, {key: value or None})
    typer.echo(f"Set {key} in profile {profile}.")
