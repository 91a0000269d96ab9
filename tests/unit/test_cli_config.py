"""The commands that read and write the configuration file: token, profile, config, --profile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from modal_nomad.cli._root import app


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [n for n in os.environ if n.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODAL_PROFILE", "")
    path = tmp_path / "modal.toml"
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(path))
    return path


def cli(*words: str, code: int = 0, given: str | None = None) -> Result:
    result = CliRunner().invoke(app, words, input=given)
    assert result.exit_code == code, result.output
    return result


def shown() -> dict[str, object]:
    return dict(json.loads(cli("config", "show", "--no-redact").stdout))


def test_a_token_makes_a_private_file_and_a_profile(file: Path) -> None:
    cli("token", "set", "--token-id", "ak-1", "--token-secret", "as-1")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (shown()["token_id"], shown()["token_secret"]) == ("ak-1", "as-1")
    assert json.loads(cli("config", "show").stdout)["token_secret"] == "***"


def test_a_token_is_read_from_standard_input(file: Path) -> None:
    cli("token", "set", "--token-id", "-", "--token-secret", "-", given="ak-2\nas-2\n")
    assert (shown()["token_id"], shown()["token_secret"]) == ("ak-2", "as-2")
    assert "--token-secret" in cli("token", "set", "--token-id", "x", code=2, given="").output


def test_profiles_are_listed_activated_and_chosen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("config", "set-environment", "dev")
    words = ["--no-verify", "--no-activate", "--server-url", "https://m.example.org"]
    cli("profile", "activate", "default")
    cli("token", "set", "--profile", "cluster", "--token-id", "a", "--token-secret", "b", *words)
    assert cli("profile", "current").stdout == "default\n"
    listed = json.loads(cli("profile", "list", "--json").stdout)
    assert listed == [
        {"Active": True, "Profile": "default", "Server": "this machine", "Environment": "dev"},
        {"Active": False, "Profile": "cluster", "Server": "https://m.example.org", "Environment": ""},
    ]
    assert cli("--profile", "cluster", "profile", "current").stdout == "cluster\n"
    monkeypatch.setenv("MODAL_PROFILE", "")
    cli("profile", "activate", "cluster")
    assert cli("profile", "current").stdout == "cluster\n"
    assert shown()["server_url"] == "https://m.example.org"
    assert "nope" in cli("profile", "activate", "nope", code=1).output


def test_a_misspelt_profile_does_not_run_on_this_machine(file: Path) -> None:
    file.write_text("[cluster]\nserver_url = 'https://m.example.org'\n")
    assert "no profile 'clutser'" in cli("--profile", "clutser", "app", "list", code=1).output


def test_settings_are_set_and_taken_out_and_comments_stay(file: Path) -> None:
    file.write_text("# mine\n[default]\nloglevel = 'INFO' # loud\n")
    cli("config", "set", "server_url", "https://m.example.org")
    assert file.read_text().startswith("# mine\n[default]\nloglevel = 'INFO' # loud\n")
    assert shown()["server_url"] == "https://m.example.org"
    cli("config", "set", "server_url", "")
    assert shown()["server_url"] is None
    assert "known are" in cli("config", "set", "nothing", "1", code=1).output
