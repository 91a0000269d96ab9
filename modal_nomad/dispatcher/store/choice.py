"""Which store a dispatcher has, by its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modal_nomad.dispatcher.store.base import Store, StoreError
from modal_nomad.dispatcher.store.sqlite import SqliteStore


def choose_store(
    address: str,
    home: Path,
    *,
    beside: bool = False,
    durability: str = "power",
    superseded: Callable[[], None] = lambda: None,
) -> Store:
    """Return a store, not yet open.

    Args:
        address: ``postgresql://…``, or empty for a file of the dispatcher's home.
        home: the dispatcher's home.
        beside: open it while a dispatcher may have it, to read or write single rows.
        durability: what an acknowledged write outlives, ``power`` or ``process``; with a file alone.
        superseded: called once when another dispatcher took over; with PostgreSQL alone.

    Raises:
        StoreError: what the store needs is not installed.

    Example:
        >>> choose_store("", Path("/tmp")).path
        PosixPath('/tmp/store.db')
    """
    if not address:
        return SqliteStore(home / "store.db", beside=beside, durability=durability)
    try:
        # Loaded here alone: most have no PostgreSQL.
        import asyncpg  # noqa: F401
    except ImportError as missing:
        raise StoreError(
            "the store is PostgreSQL, but asyncpg is not installed: pip install 'modal-nomad[postgresql]'"
        ) from missing
    from modal_nomad.dispatcher.store.postgresql import PostgresqlStore

    return PostgresqlStore(address, beside=beside, superseded=superseded)
