"""When a container is told that its lease comes to an end, by a Vault and a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from modal_nomad.dispatcher.secrets.leases import Leases
from modal_nomad.hashicorp.vault import Lease


class Vault:
    """Grants leases of ``ttl`` seconds, and none that would last beyond ``longest``."""

    def __init__(self, ttl: float, longest: float, renewable: bool = True) -> None:
        self.ttl, self.longest, self.renewable = ttl, longest, renewable
        self.now = 0.0

    async def read(self, path: str) -> Any:
        return Lease("id/1", self.ttl, renewable=self.renewable, data={"a": "b"})

    async def renew(self, lease_id: str) -> Lease:
        return Lease(lease_id, min(self.ttl, self.longest - self.now), renewable=True)


@pytest.mark.parametrize(
    ("vault", "told_at"),
    [(Vault(40, 100), 80.0), (Vault(40, 1000), 980.0), (Vault(40, 40, renewable=False), 20.0)],
)
async def test_a_container_is_told_while_its_credentials_are_still_good(vault: Vault, told_at: float) -> None:
    leases = Leases(vault, clock=lambda: vault.now)  # type: ignore[arg-type]
    told: list[tuple[str, float]] = []
    leases.ending = lambda container_id: told.append((container_id, vault.now))
    assert await leases.take("ta-1", "path") == {"a": "b"}
    (held,) = leases._held.values()
    while held.due != float("inf"):
        vault.now = held.due
        await leases._renew(held)
    assert told == [("ta-1", told_at)]
    assert vault.longest - told_at >= 20
