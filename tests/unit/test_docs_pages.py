"""docs/cli.md and docs/configuration.md say what the code has, no less and no more."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from modal_nomad import config
from modal_nomad.cli._root import app
from modal_nomad.dispatcher.blobs.s3_settings import S3Settings
from modal_nomad.dispatcher.images.settings import BuildSettings
from modal_nomad.dispatcher.settings import WEB_TYPES, Settings
from modal_nomad.dispatcher.tunnels import TunnelSettings
from modal_nomad.hashicorp.nomad import NomadSettings
from modal_nomad.hashicorp.vault import VaultSettings
from modal_nomad.render import RenderSettings

ROOT = Path(__file__).resolve().parents[2]
CLI = (ROOT / "docs/cli.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()


def commands(name: str, command: Any, context: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    if hasattr(command, "list_commands"):
        for word in command.list_commands(context):
            yield from commands(f"{name} {word}", command.get_command(context, word), context)


ROOT_COMMAND = typer.main.get_command(app)
CONTEXT = ROOT_COMMAND.make_context("modal-nomad", ["--no-such"], resilient_parsing=True)
COMMANDS = dict(commands("modal-nomad", ROOT_COMMAND, CONTEXT))
SECTIONS = dict(
    part.split("\n", 1) for part in re.split(r"^#{2,3} ", CLI, flags=re.M) if part.startswith("modal-nomad")
)


def test_every_command_has_its_section() -> None:
    assert list(SECTIONS) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_said_where_it_belongs(name: str) -> None:
    rows = "\n".join(line.split(" | ")[0] for line in SECTIONS[name].splitlines() if line.startswith("| `"))
    said = set(re.findall(r"`(--?[a-z-]+)`", rows))
    parameters = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
    has = {flag for p in parameters for flag in (*p.opts, *p.secondary_opts)} - {"--help", "-h"}
    assert said == has


def test_every_setting_and_variable_is_said() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(MODAL_\w+)` \|", CONFIGURATION, flags=re.M))
    assert rows == {key: f"MODAL_{key.upper()}" for key in config._SETTINGS}
    used: set[str] = set()
    for path in (ROOT / "modal_nomad").rglob("*.py"):
        used |= set(re.findall(r"environ(?:\.get\(|\[)\s*\"(MODAL_\w+)\"", path.read_text()))
    # What the dispatcher and the job hand to the worker is no setting.
    internal = {
        "MODAL_BLOCK_NETWORK",
        "MODAL_CPU_LIMIT",
        "MODAL_MEMORY_LIMIT",
        "MODAL_I6PN",
        "MODAL_KILL_TIMEOUT",
        "MODAL_WORKER_TOKEN",
        "MODAL_WORKER_TOKEN_FILE",
        "MODAL_NFS_DIR",
        "MODAL_RUNTIME_DIR",
        "MODAL_WEB_DIR",
        "MODAL_SECRETS_FILE",
        "MODAL_SECRET_LEASES",
        "MODAL_SNAPSHOT",
        "MODAL_SNAPSHOT_SECONDS",
        "MODAL_CODE_DIR",
        "MODAL_CONTAINER_RUNTIME",
        "MODAL_IMAGE",
        "MODAL_IMAGE_DEFINITION",
        "MODAL_ENVIRONMENT_PYTHON",
    }
    assert {name for name in used - internal if f"`{name}`" not in CONFIGURATION} == set()


@pytest.mark.parametrize(
    "default", [key for key in config._SETTINGS if config._SETTINGS[key].default is not None]
)
def test_defaults_are_the_codes(default: str) -> None:
    value = config._SETTINGS[default].default
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    row = next(line for line in CONFIGURATION.splitlines() if line.startswith(f"| `{default}` |"))
    assert row.split(" | ")[2].strip("`").lower() == shown.lower()


def test_the_dispatchers_settings_are_said() -> None:
    for cls, besides in (
        (
            Settings,
            {"embedded", "images", "nfs", "nomad", "pki", "render", "s3", "tls", "tunnels", "vault", "web"},
        ),
        (VaultSettings, {"timeout"}),
        (S3Settings, set()),
        (TunnelSettings, set()),
        (NomadSettings, set()),
        (RenderSettings, {"server_url", "runtime_sha", "web_sha", "app_suffix", "deployer", "environment"}),
    ):
        for field in dataclasses.fields(cls):
            assert field.name in besides or f"`{field.name}`" in CONFIGURATION, field.name
    for field in dataclasses.fields(BuildSettings):
        assert f"`{field.name}`" in (ROOT / "docs/images.md").read_text(), field.name
    for name in WEB_TYPES:
        assert f"`{name}`" in CONFIGURATION.partition("### `[web]`")[2].partition("###")[0], name
