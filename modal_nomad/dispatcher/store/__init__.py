"""What the dispatcher must not forget: apps, Functions, durable calls, tokens.

``base.py`` is the contract; ``sqlite.py`` the embedded default.
"""

from modal_nomad.dispatcher.store.base import (
    AppRecord,
    CallRecord,
    FunctionRecord,
    PendingCall,
    Store,
    StoredInput,
    StoredOutput,
    StoreError,
    TokenRecord,
    VariantRecord,
    VersionRecord,
    hash_secret,
)
from modal_nomad.dispatcher.store.sqlite import SqliteStore

__all__ = [
    "AppRecord",
    "CallRecord",
    "FunctionRecord",
    "PendingCall",
    "SqliteStore",
    "Store",
    "StoreError",
    "StoredInput",
    "StoredOutput",
    "TokenRecord",
    "VariantRecord",
    "VersionRecord",
    "hash_secret",
]
