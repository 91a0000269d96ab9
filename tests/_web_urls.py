"""Where an endpoint of the embedded dispatcher is, in a form that everything can resolve."""

from __future__ import annotations

from urllib.parse import urlsplit

from modal_nomad._web_names import by_path


def at(url: object, path: str = "") -> str:
    """Return the URL that a user was given, of either form, as ``http://127.0.0.1:PORT/<label>``."""
    return by_path(str(url)).replace("//localhost:", "//127.0.0.1:") + path


def named(url: object) -> str:
    """Return the host and port that lead there by name."""
    parts = urlsplit(by_path(str(url)))
    return f"{parts.path[1:]}.localhost:{parts.port}"
