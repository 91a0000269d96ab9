"""The dispatcher's configuration file: what is taken, what is refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from modal_nomad.dispatcher.settings import EXAMPLE, Settings, SettingsError


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
