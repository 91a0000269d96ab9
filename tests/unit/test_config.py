"""Configuration: where a setting comes from, and what a bad file says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modal_nomad.config import Config, config_profiles, config_set_active_profile
from modal_nomad.exception import InvalidError, NotFoundError


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [n for n in os.environ if n.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "modal.toml"
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(path))
    return path


TWO = '# mine\n[a]\nenvironment = "dev"\nactive = true\n\n[b]\nenvironment = "prod"\n'


def test_defaults_without_a_file() -> None:
    values = Config().to_dict()
    assert (values["loglevel"], values["automount"], values["server_url"]) == ("WARNING", True, None)
    assert config_profiles() == []


def test_order_is_environment_then_file_then_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(TWO)
    config = Config()
    assert config["environment"] == "dev"
    assert config.get("environment", profile="b") == "prod"
    monkeypatch.setenv("MODAL_PROFILE", "b")
    assert config["environment"] == "prod"
    monkeypatch.setenv("MODAL_ENVIRONMENT", "x")
    assert config["environment"] == "x"
    assert config.get("environment", use_env=False) == "prod"


@pytest.mark.parametrize(
    ("key", "default", "written", "in_file", "from_environment"),
    [
        ("loglevel", "WARNING", '"info"', "INFO", ("debug", "DEBUG")),
        ("logs_timeout", 10, "3", 3.0, ("0.5", 0.5)),
        ("automount", True, "false", False, ("1", True)),
        ("force_build", False, "true", True, ("0", False)),
        ("traceback", False, "true", True, ("", False)),
        ("token_id", None, '"ak-1"', "ak-1", ("ak-2", "ak-2")),
        ("token_secret", None, '"as-1"', "as-1", ("as-2", "as-2")),
        ("environment", None, '"dev"', "dev", ("prod", "prod")),
        ("server_url", None, '"http://a:1"', "http://a:1", ("http://b:1", "http://b:1")),
    ],
)
def test_every_key_has_its_variable(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    default: object,
    written: str,
    in_file: object,
    from_environment: tuple[str, object],
) -> None:
    config = Config()
    assert config[key] == config.get(key) == config.to_dict()[key] == default
    file.write_text(f"[default]\n{key} = {written}\n")
    assert config[key] == in_file
    monkeypatch.setenv(f"MODAL_{key.upper()}", from_environment[0])
    assert config[key] == from_environment[1] and config.get(key, use_env=False) == in_file


def test_the_file_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODAL_CONFIG_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".modal.toml").write_text(TWO)
    assert config_profiles() == ["a", "b"] and Config()["environment"] == "dev"


def test_unknown_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_LOGLEVEL", "loud")
    with pytest.raises(InvalidError, match="MODAL_LOGLEVEL is 'loud'; give a value such as 'WARNING'"):
        Config()["loglevel"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("", False), ("0", False), ("FALSE", False), ("1", True), ("true", True), ("yes", True)],
)
def test_booleans(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_AUTOMOUNT", text)
    assert Config()["automount"] is value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nactive=true\n[b]\nactive=true\n", "More than one Modal profile is active"),
        ("[a]\n[b]\n", "No Modal profile is active"),
        ('token_id = "x"\n', "must contain table sections"),
        ("[a\n", "no valid TOML"),
        ('[a]\nlogs_timeout = "soon"\n[a.b]\n', "logs_timeout"),
    ],
)
def test_bad_files(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidError, match=message):
        Config().get("logs_timeout", profile="a" if "soon" in text else None)


def test_unknown_key() -> None:
    with pytest.raises(KeyError):
        Config()["nothing"]


def test_override_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_ENVIRONMENT", "before")
    monkeypatch.setenv("UNHEARD_OF", "before")
    config = Config()
    config.override_locally("environment", "here")
    config.override_locally("unheard_of", "there")
    assert config["environment"] == "here"
    assert os.environ["UNHEARD_OF"] == "there"


def test_repr_hides_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-hidden")
    assert "as-hidden" not in repr(Config())
    assert Config().to_dict()["token_secret"] == "as-hidden"


def test_set_active_profile_keeps_the_rest(file: Path) -> None:
    file.write_text(TWO)
    config_set_active_profile("b")
    assert config_profiles() == ["a", "b"]
    assert Config()["environment"] == "prod"
    assert file.read_text().startswith("# mine\n")
    assert file.read_text().count("active") == 1
    assert os.listdir(file.parent) == [file.name]


def test_set_active_profile_unknown(file: Path) -> None:
    file.write_text(TWO)
    with pytest.raises(KeyError):
        config_set_active_profile("c")
    with pytest.raises(NotFoundError, match="no profile 'c'"):
        config_set_active_profile("c")


def test_containers_leave_the_file_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(TWO)
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    assert Config()["environment"] is None
    with pytest.raises(InvalidError, match="inside a container"):
        config_set_active_profile("b")


def test_no_toml_library_without_a_file() -> None:
    code = "import sys; from modal_nomad.config import config; config.to_dict(); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'tomllib'" not in out and "'tomlkit'" not in out
