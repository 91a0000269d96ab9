"""The CLI's connection to the server, and one blocking call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modal_nomad.client import Client


def connect() -> Client:
    """Connect to the configured server, or to the embedded daemon (which starts when needed)."""
    from modal_nomad.client import Client

    return Client.from_env()


def request(client: Client, method: str, args: dict[str, Any]) -> dict[str, Any]:
    """Make one request and wait for its answer."""
    from modal_nomad._bridge import run_blocking

    async def body() -> dict[str, Any]:
        from modal_nomad._bridge import io

        return await io(client._request(method, args))

    answer: dict[str, Any] = run_blocking(body())
    return answer


def environment(chosen: str) -> str | None:
    """Return the environment a command means: its flag, else the configured one."""
    if chosen:
        return chosen
    from modal_nomad.config import config

    value = config.get("environment")
    return str(value) if value else None
