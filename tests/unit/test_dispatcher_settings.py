"""The dispatcher's configuration file: what is taken, what is refused with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.gateway import process_settings
from modal_nomad.dispatcher.gateway.process_settings import GatewayProcessSettings
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_example import EXAMPLE
from modal_nomad.dispatcher.settings_files import SettingsError


def test_the_printed_example_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.toml"
    file.write_text(EXAMPLE)
    loaded = Settings.load(file)
    assert {k: getattr(loaded, k) for k in ("listen", "tls_cert", "tls_key", "default_max_containers")} == {
        "listen": Settings().listen,
        "tls_cert": "",
        "tls_key": "",
        "default_max_containers": 0,
    }


@pytest.mark.parametrize(
    "given",
    [
        {"listen": "https://127.0.0.1:1"},
        {"tls_cert": "c", "tls_key": "k"},
        {"listen": "https://127.0.0.1:1", "tls_cert": "c"},
        {"tls_key": "k"},
    ],
)
def test_half_of_tls_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="belong together"):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"buckets": "x"}, "no setting 'buckets'"),
        ({"bucket": 1}, "bucket must be a str"),
        ({"bucket": "x", "redirect": "yes"}, "redirect must be a bool"),
        ({"bucket": "x", "access_key_id": "a"}, "belong together"),
        ({"endpoint": "http://127.0.0.1:1"}, "names no bucket"),
        ({"bucket": "x", "endpoint": "127.0.0.1:1"}, "give a URL"),
    ],
)
def test_a_bucket_that_cannot_be_meant_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings(s3=given)


def test_the_keys_of_a_bucket_are_never_shown() -> None:
    keys = {"bucket": "x", "access_key_id": "a", "secret_access_key": "do-not-show"}
    assert "do-not-show" not in repr(Settings(s3=keys))


@pytest.mark.parametrize(
    ("given", "place", "nodes"),
    [
        ({"engine": "local", "home": "/h"}, "/h/nfs", "/h/nfs"),
        ({"engine": "local", "nfs": {"directory": "/n"}}, "/n", "/n"),
        ({"nfs": {}}, None, ""),
        ({"nfs": {"directory": "/n"}}, "/n", "/n"),
        ({"nfs": {"directory": "/n", "node_directory": "/m"}}, "/n", "/m"),
        ({"nfs": {"node_directory": "/m"}}, None, "/m"),
    ],
)
def test_where_network_file_systems_are(given: dict[str, Any], place: str | None, nodes: str) -> None:
    settings = Settings(**given)
    assert settings.nfs_place == (None if place is None else Path(place))
    assert settings.render_dict("")["nfs_directory"] == nodes


@pytest.mark.parametrize(
    ("nfs", "text"),
    [
        ({"dir": "/n"}, r"\[nfs\] has no setting 'dir'"),
        ({"directory": 1}, r"\[nfs\]: directory must be a string"),
        ({"directory": "n"}, "give an absolute path"),
        ({"volume": "files"}, "raw_exec mounts no volumes"),
    ],
)
def test_what_cannot_be_under_nfs(nfs: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        Settings(nfs=nfs)


def test_the_embedded_dispatcher_takes_what_its_home_says_of_vault(tmp_path: Path) -> None:
    assert Settings.for_home(tmp_path).vault_settings() is None
    file = tmp_path / "local.toml"
    file.write_text(
        'result_days = 1\n[vault]\naddress = "http://127.0.0.1:1"\ntoken_file = "~/.vault-token"\n'
    )
    settings = Settings.for_home(tmp_path)
    assert (settings.result_days, settings.engine, settings.embedded) == (1.0, "local", True)
    vault = settings.vault_settings()
    assert vault is not None and vault.address == "http://127.0.0.1:1"
    assert vault.token_file == str(Path("~/.vault-token").expanduser())
    file.write_text('listen = "http://0.0.0.0:1"\n')
    with pytest.raises(SettingsError, match=r"local\.toml: unknown setting 'listen'; known are .*vault"):
        Settings.for_home(tmp_path)


def test_the_web_gateway_s_settings_are_checked(tmp_path: Path) -> None:
    for web, words in (
        ({"listen": "https://0.0.0.0:443"}, "needs a certificate"),
        ({"consul": "yes"}, "of type bool"),
        ({"max_waiting": True}, "of type int"),
        ({"consul_check": "udp"}, "http or tcp"),
    ):
        with pytest.raises(SettingsError, match=words):
            Settings(web=web)
    with pytest.raises(SettingsError, match="shorter than 16"):
        Settings(web={"gateway_token": "short"}).gateway_token()
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings(web={"gateway_token_file": str(tmp_path / "none")}).gateway_token()
    file = tmp_path / "token"
    file.write_text("a token that is long enough\n")
    assert Settings(web={"gateway_token_file": str(file)}).gateway_token() == "a token that is long enough"


def test_the_settings_of_a_gateway_process_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    for text, words in (
        ("", "gateway_token is empty"),
        ("listen = 5", "must be a str"),
        ("lisen = ''", "known are"),
        ('listen = "https://127.0.0.1:1"', "belong together"),
        ('listen = "unix:///x.sock"', "an address such as"),
        ("dispatchers = []", "at least one"),
        ("processes = 0", "1 or more"),
        ("[consul]\nadress = 'x'", "known are address"),
        ("[tunnels]\nports = 'x'", "known are inside_host"),
        ("[tunnels]\ntls_port = 70000", "give a port"),
        ("[tunnels]\nlisten = '0.0.0.0'", "needs a certificate"),
        ("[tunnels]\ninside_listen = 'x'", "inside_listen"),
        ("processes = 2\n[tunnels]\ninside_listen = 'http://h:1'", "port 0 with several"),
        ("this is no TOML", "is not TOML"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=words):
            GatewayProcessSettings.load(file).token()
    file.write_text(process_settings.EXAMPLE)
    assert GatewayProcessSettings.load(file) == GatewayProcessSettings(
        consul={"address": "", "token": "", "ca_file": "", "datacenter": "", "register": ""},
        tls={"certificates": [], "interval": 5.0},
        pki={
            "address": "", "token": "", "token_file": "", "namespace": "", "ca_file": "", "mount": "pki",
            "role": "", "names": [], "custom_domains": False, "ttl": "",
        },
        tunnels={
            "listen": "", "tls_port": 0, "inside_listen": "http://127.0.0.1:0", "inside_host": "",
            "max_handshakes": 1000,
        },
    )  # fmt: skip


def test_what_later_files_say_counts_table_by_table(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text('home = "/a"\nauth = "none"\n[web]\ndomain = "a.example.com"\nconsul = true\n')
    second.write_text('home = "/b"\n[web]\ndomain = "b.example.com"\n[vault]\naddress = "http://v"\n')
    settings = Settings.load(first, second)
    assert (settings.home, settings.auth) == ("/b", "none")
    assert settings.web == {"domain": "b.example.com", "consul": True}
    assert settings.vault == {"address": "http://v"}
    second.write_text("hom = 1")
    with pytest.raises(SettingsError, match=r"second\.toml: unknown setting 'hom'"):
        Settings.load(first, second)
