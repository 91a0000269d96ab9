"""When a container is told that its lease comes to an end, by a Vault and a clock that the test moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.secrets import FileSecretStore, Secrets, room
from modal_nomad.dispatcher.secrets.leases import Leases
from modal_nomad.dispatcher.store.leases import LeaseRecord
from modal_nomad.hashicorp.vault import Lease, VaultUnavailable


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


class Book:
    """A store of leases that a killed dispatcher has left."""

    def __init__(self, *records: LeaseRecord) -> None:
        self.kept = {x.lease_id: x for x in records}

    async def leases(self) -> list[LeaseRecord]:
        return list(self.kept.values())

    async def put_lease(self, record: LeaseRecord) -> None:
        self.kept[record.lease_id] = record

    async def remove_leases(self, lease_ids: list[str]) -> None:
        for lease_id in lease_ids:
            self.kept.pop(lease_id, None)


class Revoking(Vault):
    """One that says what was revoked; it cannot be reached while ``away``."""

    def __init__(self) -> None:
        super().__init__(40, 100)
        self.revoked: list[str] = []
        self.away = False

    async def revoke(self, lease_id: str) -> None:
        if self.away:
            raise VaultUnavailable("away")
        self.revoked.append(lease_id)


@pytest.mark.parametrize(("delivers", "ended"), [(True, ["id/0", "id/9"]), (False, ["id/9"])])
async def test_the_next_dispatcher_revokes_what_is_nobodys(
    delivers: bool, ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "RETURN_SECONDS", 0.0)
    book = Book(LeaseRecord("id/0", "ta-0", "path"), LeaseRecord("id/9", "ta-9", "path"))
    vault = Revoking()
    leases = Leases(vault, book=book)  # type: ignore[arg-type]
    secrets = Secrets(FileSecretStore(tmp_path), tmp_path, delivers=delivers, leases=leases, vault=True)
    assert await leases.take("ta-1", "path") == {"a": "b"}
    assert book.kept["id/1"].container_id == "ta-1"
    await secrets.take_back({"ta-0", "ta-1"}.__contains__)
    assert sorted(vault.revoked) == ended
    assert sorted({"id/0", "id/1", "id/9"} - set(book.kept)) == ended
    # What belongs to a container that lives ends with it.
    await secrets.ended("ta-0")
    await secrets.ended("ta-1")
    assert sorted(vault.revoked) == ["id/0", "id/1", "id/9"] and not book.kept


async def test_what_cannot_be_revoked_now_is_left_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    book, vault = Book(), Revoking()
    leases = Leases(vault, book=book)  # type: ignore[arg-type]
    monkeypatch.setattr("modal_nomad.dispatcher.secrets.leases._REVOKE_TRIES", 1)
    await leases.take("ta-1", "path")
    vault.away = True
    await leases.end("ta-1")
    assert set(book.kept) == {"id/1"}
    vault.away = False
    other = Leases(vault, book=book)  # type: ignore[arg-type]
    assert await other.resume() == {"ta-1"}
    await other.end("ta-1")
    assert vault.revoked == ["id/1"] and not book.kept
