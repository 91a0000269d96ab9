"""Endpoints of the embedded dispatcher are given by the name that this machine's programs can resolve."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from modal_nomad import _web_names
from modal_nomad._web_names import by_path, usable

URLS = {"web": "http://shop-api-dev.localhost:8000", "other": "https://shop.example.com"}


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    _web_names._resolves.cache_clear()
    yield
    _web_names._resolves.cache_clear()


def resolver(monkeypatch: pytest.MonkeyPatch, *found: str) -> list[str]:
    asked: list[str] = []

    def getaddrinfo(host: str, *args: Any, **options: Any) -> list[Any]:
        asked.append(host)
        if not found:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (x, 0)) for x in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://shop-api.localhost:8000", "http://localhost:8000/shop-api"),
        ("https://shop-api.localhost", "https://localhost/shop-api"),
        ("http://localhost:8000/shop-api", "http://localhost:8000/shop-api"),
        # Paths lead somewhere under `localhost` alone.
        ("http://a.dev.localhost:8000", "http://a.dev.localhost:8000"),
        ("https://shop-api.example.com", "https://shop-api.example.com"),
    ],
)
def test_paths(url: str, found: str) -> None:
    assert by_path(url) == found


async def test_where_the_system_knows_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolver(monkeypatch, "::1", "127.0.0.1")
    assert await usable(URLS) == URLS
    assert await usable(URLS) == URLS
    assert len(asked) == 1


@pytest.mark.parametrize("found", [(), ("10.9.8.7",), ("127.0.0.1", "10.9.8.7")])
async def test_where_it_does_not(monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...]) -> None:
    resolver(monkeypatch, *found)
    assert await usable(URLS) == {
        "web": "http://localhost:8000/shop-api-dev",
        "other": "https://shop.example.com",
    }


async def test_nobody_is_asked_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolver(monkeypatch)
    assert await usable({"other": "https://shop.example.com"}) == {"other": "https://shop.example.com"}
    assert await usable({}) == {}
    assert not asked


async def test_a_name_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()

    def getaddrinfo(*args: Any, **options: Any) -> list[Any]:
        silent.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(_web_names, "_SECONDS", 0.01)
    try:
        assert (await usable(URLS))["web"] == "http://localhost:8000/shop-api-dev"
    finally:
        silent.set()
