"""Secrets: kept in a store of their own, checked when a Function is published, given to its containers."""

from __future__ import annotations

from modal_nomad.dispatcher.secrets.base import (
    SecretExists,
    SecretInfo,
    SecretKey,
    SecretStore,
    SecretStoreError,
    SecretStoreUnavailable,
)
from modal_nomad.dispatcher.secrets.file import FileSecretStore
from modal_nomad.dispatcher.secrets.room import PENDING_SECONDS, Secrets

__all__ = [
    "PENDING_SECONDS",
    "FileSecretStore",
    "SecretExists",
    "SecretInfo",
    "SecretKey",
    "SecretStore",
    "SecretStoreError",
    "SecretStoreUnavailable",
    "Secrets",
]
