"""The contract of a secret store: where the values of Secrets are, and nowhere else."""

from __future__ import annotations

import abc
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from modal_nomad.exception import InvalidError
from modal_nomad.wire.ids import id_from

_PART = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class SecretStoreError(Exception):
    """The store cannot be used; the text is one line that names the remedy, and no value."""


class SecretStoreUnavailable(SecretStoreError):
    """The store cannot be reached now; the same may succeed later."""


class SecretExists(SecretStoreError):
    """There is a Secret of that name."""


@dataclass(frozen=True)
class SecretKey:
    """Which Secret.

    Attributes:
        environment: where it is.
        name: its name there.
        ephemeral: it was made of values in a program and lives with its App; nobody else finds it.
    """

    environment: str
    name: str
    ephemeral: bool = False

    def __post_init__(self) -> None:
        for part in (self.environment, self.name):
            # Both become parts of a path in Vault.
            if not _PART.fullmatch(part) or part.strip(".") == "":
                raise InvalidError(
                    f"Invalid Secret name {part!r}; use letters, digits, '-', '_' and '.', as in 'my-secret'"
                )


@dataclass(frozen=True)
class SecretInfo:
    """What may be told of a Secret.

    Attributes:
        key: which one.
        created_at: seconds since 1970.
        created_by: who made it, as far as the store knows.
    """

    key: SecretKey
    created_at: float
    created_by: str = ""

    @property
    def secret_id(self) -> str:
        """The id ``st-…``: another one when it was deleted and created again."""
        text = "\0".join((self.key.environment, self.key.name, repr(self.created_at)))
        return id_from("st", hashlib.sha256(text.encode()).digest())


class SecretStore(abc.ABC):
    """Values of Secrets at rest. All methods raise SecretStoreError when the medium fails them."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Check that the store can be used."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Release everything. Closing twice is no error."""

    @abc.abstractmethod
    async def put(
        self, key: SecretKey, values: Mapping[str, str], *, replace: bool = False, created_by: str = ""
    ) -> SecretInfo:
        """Keep a Secret with these values and no others. Raises SecretExists unless ``replace``."""

    @abc.abstractmethod
    async def merge(self, key: SecretKey, values: Mapping[str, str]) -> bool:
        """Add values to a Secret, or change them; False where there is none of that name."""

    @abc.abstractmethod
    async def info(self, key: SecretKey) -> SecretInfo | None:
        """Return what may be told of a Secret, or None."""

    @abc.abstractmethod
    async def fields(self, key: SecretKey) -> set[str] | None:
        """Return the names of a Secret's values, or None where there is no such Secret."""

    @abc.abstractmethod
    async def values(self, key: SecretKey) -> dict[str, str] | None:
        """Return a Secret's values, or None where there is no such Secret."""

    def place(self, key: SecretKey) -> str:
        """Return the path in Vault that a Secret is read at; empty where it stands elsewhere."""
        return ""

    @abc.abstractmethod
    async def named(self, environment: str) -> list[SecretInfo]:
        """Return the named Secrets of an environment, by name."""

    @abc.abstractmethod
    async def ephemerals(self) -> list[SecretInfo]:
        """Return the ephemeral Secrets of every environment."""

    @abc.abstractmethod
    async def delete(self, key: SecretKey) -> bool:
        """Remove a Secret for good; False where there was none."""
