"""Apps, Functions, their variants and tokens, in SQL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from modal_nomad.dispatcher.store._sql import Connection, SqlPart, upsert
from modal_nomad.dispatcher.store.base import (
    AppRecord,
    FunctionRecord,
    TokenRecord,
    VariantRecord,
    VersionRecord,
)

_APP = "app_id, name, description, environment, state, version, created_at, stopped_at"
_VERSION = "app_id, version, deployed_at, client, deployed_by, tag"
_FUNCTION = "function_id, app_id, name, environment, version, spec, job, autoscaler"
_VARIANT = "function_id, parent_id, app_id, params, spec, job, autoscaler"
_TOKEN = "token_id, secret_hash, environments, label, created_at"


class SqlApps(SqlPart):
    """The part of a store that holds Apps and who may call them."""

    # Apps and Functions

    async def publish(
        self, app: AppRecord, version: VersionRecord | None, functions: Sequence[FunctionRecord]
    ) -> None:
        rows = [
            (
                f.function_id,
                f.app_id,
                f.name,
                f.environment,
                f.version,
                json.dumps(f.spec),
                json.dumps(f.job),
                json.dumps(dict(f.autoscaler)),
            )
            for f in functions
        ]

        def write(db: Connection) -> None:
            if app.state == "deployed":
                # One App is deployed under a name.
                db.execute(
                    "DELETE FROM apps WHERE environment = ? AND name = ? AND state = 'deployed'"
                    " AND app_id != ?",
                    (app.environment, app.name, app.app_id),
                )
            db.execute(upsert("apps", _APP, 1), dataclasses.astuple(app))
            if version is not None:
                db.execute(upsert("app_versions", _VERSION, 2), dataclasses.astuple(version))
            db.execute("DELETE FROM functions WHERE app_id = ?", (app.app_id,))
            db.executemany(upsert("functions", _FUNCTION, 1), rows)
            if app.state == "deployed" and app.name is not None:
                db.executemany(
                    upsert("function_ids", "environment, app_name, name, function_id", 3),
                    [(f.environment, app.name, f.name, f.function_id) for f in functions],
                )

        await self._write(write)

    async def set_app_state(self, app_id: str, state: str, stopped_at: float | None = None) -> None:
        await self._execute(
            "UPDATE apps SET state = ?, stopped_at = ? WHERE app_id = ?", (state, stopped_at, app_id)
        )

    async def app(self, app_id: str) -> AppRecord | None:
        rows = await self._rows(f"SELECT {_APP} FROM apps WHERE app_id = ?", (app_id,))
        return AppRecord(*rows[0]) if rows else None

    async def apps(self, environment: str | None = None) -> list[AppRecord]:
        rows = await self._rows(
            f"SELECT {_APP} FROM apps WHERE CAST(?1 AS TEXT) IS NULL OR environment = ?1"
            " ORDER BY created_at DESC, app_id",
            (environment,),
        )
        return [AppRecord(*row) for row in rows]

    async def apps_named(self, name: str, environment: str) -> list[AppRecord]:
        rows = await self._rows(
            f"SELECT {_APP} FROM apps WHERE environment = ?"
            " AND (name = ? OR (name IS NULL AND description = ?)) ORDER BY created_at DESC, app_id",
            (environment, name, name),
        )
        return [AppRecord(*row) for row in rows]

    async def versions(self, app_id: str) -> list[VersionRecord]:
        rows = await self._rows(
            f"SELECT {_VERSION} FROM app_versions WHERE app_id = ? ORDER BY version DESC", (app_id,)
        )
        return [VersionRecord(*row) for row in rows]

    async def functions(self, app_id: str | None = None) -> list[FunctionRecord]:
        rows = await self._rows(
            f"SELECT {_FUNCTION} FROM functions WHERE CASE WHEN CAST(?1 AS TEXT) IS NULL THEN app_id IN"
            " (SELECT app_id FROM apps WHERE state != 'stopped') ELSE app_id = ?1 END ORDER BY app_id, name",
            (app_id,),
        )
        return [_function(row) for row in rows]

    async def function(self, function_id: str) -> FunctionRecord | None:
        rows = await self._rows(f"SELECT {_FUNCTION} FROM functions WHERE function_id = ?", (function_id,))
        return _function(rows[0]) if rows else None

    async def set_autoscaler(self, function_id: str, settings: Mapping[str, Any]) -> None:
        row = (json.dumps(dict(settings)), function_id)

        def write(db: Connection) -> None:
            # An id is a Function's or a variant's.
            for table in ("functions", "variants"):
                db.execute(f"UPDATE {table} SET autoscaler = ? WHERE function_id = ?", row)

        await self._write(write)

    async def function_ids(self, app_name: str, environment: str) -> dict[str, str]:
        rows = await self._rows(
            "SELECT name, function_id FROM function_ids WHERE environment = ? AND app_name = ?",
            (environment, app_name),
        )
        return {row[0]: row[1] for row in rows}

    # Variants of Functions

    async def add_variant(self, variant: VariantRecord) -> None:
        await self._execute(
            f"INSERT INTO variants ({_VARIANT}) VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            (
                variant.function_id,
                variant.parent_id,
                variant.app_id,
                variant.params,
                None if variant.spec is None else json.dumps(variant.spec),
                None if variant.job is None else json.dumps(variant.job),
                json.dumps(dict(variant.autoscaler)),
            ),
        )

    async def variants(self) -> list[VariantRecord]:
        rows = await self._rows(f"SELECT {_VARIANT} FROM variants ORDER BY key")
        return [
            VariantRecord(*row[:4], *(None if text is None else json.loads(text) for text in row[4:]))
            for row in rows
        ]

    async def remove_variants(self, function_ids: Sequence[str]) -> None:
        rows = [(x,) for x in function_ids]
        await self._write(
            lambda db: db.executemany("DELETE FROM variants WHERE function_id = ?", rows) and None
        )

    # Tokens

    async def add_token(self, token: TokenRecord) -> None:
        await self._execute(
            upsert("tokens", _TOKEN, 1),
            (
                token.token_id,
                token.secret_hash,
                json.dumps(token.environments),
                token.label,
                token.created_at,
            ),
        )

    async def token(self, token_id: str) -> TokenRecord | None:
        rows = await self._rows(f"SELECT {_TOKEN} FROM tokens WHERE token_id = ?", (token_id,))
        return _token(rows[0]) if rows else None

    async def tokens(self) -> list[TokenRecord]:
        return [
            _token(row)
            for row in await self._rows(f"SELECT {_TOKEN} FROM tokens ORDER BY created_at, token_id")
        ]

    async def remove_token(self, token_id: str) -> None:
        await self._execute("DELETE FROM tokens WHERE token_id = ?", (token_id,))


def _function(row: tuple[Any, ...]) -> FunctionRecord:
    function_id, app_id, name, environment, version, *documents = row
    return FunctionRecord(function_id, app_id, name, environment, version, *map(json.loads, documents))


def _token(row: tuple[Any, ...]) -> TokenRecord:
    return TokenRecord(row[0], row[1], tuple(json.loads(row[2])), row[3], row[4])
