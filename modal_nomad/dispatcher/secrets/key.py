"""The key of a dispatcher's home, 0600, and what is made of it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

FILE = "secrets.key"
_BYTES = 32


def load_key(home: Path) -> bytes:
    """Return the key of a home, drawn on first use. Raises OSError."""
    path = home / FILE
    if not path.exists():
        temporary = home / f"{FILE}.{secrets.token_hex(4)}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # The first one counts: what another process drew meanwhile may be in use already.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    key = path.read_bytes()
    if len(key) != _BYTES:
        raise OSError(f"{path} is no key of {_BYTES} bytes")
    return key


def derive(key: bytes, purpose: str) -> bytes:
    """Return a key for one purpose."""
    return hmac.new(key, f"modal-nomad secrets: {purpose}".encode(), hashlib.sha256).digest()
