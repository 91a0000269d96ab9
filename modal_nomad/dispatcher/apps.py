"""The registry of Apps: names and ids, versions, which Functions are there.

It answers the ``app.*`` and ``function.lookup`` requests over the store. It starts and stops nothing:
what to submit to the engine, and what to remove from it, is in what it returns.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modal_nomad.dispatcher.store.base import AppRecord, FunctionRecord, Store, VersionRecord
from modal_nomad.exception import InvalidError, NotFoundError
from modal_nomad.wire.ids import new_id

DEFAULT_ENVIRONMENT = "main"
_STATES = ("ephemeral", "detached", "deployed")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_APP_ID = re.compile(r"ap-[0-9A-Za-z]{22}")


@dataclass(frozen=True)
class Published:
    """What a publication did.

    Attributes:
        app: the App as it stands now.
        functions: its Functions, in the order of the request.
        removed: those of the version before that are no more; their jobs are to be stopped.
    """

    app: AppRecord
    functions: tuple[FunctionRecord, ...]
    removed: tuple[FunctionRecord, ...]

    def result(self, *, url: str = "", logs_url: str = "", warnings: Sequence[str] = ()) -> dict[str, Any]:
        """Return the answer to ``app.publish``."""
        return {
            "app_id": self.app.app_id,
            "version": self.app.version,
            "functions": {f.name: f.function_id for f in self.functions},
            "url": url,
            "logs_url": logs_url,
            "warnings": list(warnings),
        }


class AppRegistry:
    """Apps over a store.

    Args:
        store: an open store.
        tasks: says how many containers an App has, by its id.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        tasks: Callable[[str], int] = lambda app_id: 0,
        clock: Callable[[], float] = time.time,
        default_environment: str = DEFAULT_ENVIRONMENT,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._clock = clock
        self._default_environment = default_environment
        self._lock = asyncio.Lock()

    async def publish(self, args: Mapping[str, Any], *, deployed_by: str = "") -> Published:
        """Create or replace an App: ``app.publish``.

        Under one name in one environment a deployment keeps its App's id and its Functions' ids; what
        is no longer in it is removed. An ephemeral App that comes again with its ``app_id`` (its client
        reconnected) keeps both too.
        """
        state = args.get("state")
        if state not in _STATES:
            raise InvalidError(f"App state {state!r} is unknown: it is one of {', '.join(_STATES)}")
        name = args.get("name") or None
        if state == "deployed":
            _check_name(name)
        entries = _functions(args.get("functions"))
        async with self._lock:
            return await self._publish(args, state, name, entries, deployed_by)

    async def _publish(
        self,
        args: Mapping[str, Any],
        state: str,
        name: str | None,
        entries: Mapping[str, Mapping[str, Any]],
        deployed_by: str,
    ) -> Published:
        environment = self._environment(args.get("environment"))
        now = self._clock()
        before = await self._predecessor(args.get("app_id"), state, name, environment)
        old = {f.name: f for f in await self._store.functions(before.app_id)} if before else {}
        ids = {n: f.function_id for n, f in old.items()}
        if state == "deployed" and name is not None:
            ids.update(await self._store.function_ids(name, environment))
        app = AppRecord(
            app_id=before.app_id if before else new_id("ap"),
            name=name,
            description=args.get("description") or name or "",
            environment=environment,
            state=state,
            version=before.version + 1 if before else 1,
            created_at=before.created_at if before else now,
        )
        functions = tuple(
            FunctionRecord(
                function_id=ids.get(n) or new_id("fu"),
                app_id=app.app_id,
                name=n,
                environment=environment,
                version=app.version,
                spec=entry["spec"],
                job=entry["job"],
            )
            for n, entry in entries.items()
        )
        version = VersionRecord(
            app_id=app.app_id,
            version=app.version,
            deployed_at=now,
            client=str(args.get("client_version") or ""),
            deployed_by=deployed_by,
            tag=str(args.get("tag") or ""),
        )
        await self._store.publish(app, version, functions)
        return Published(app, functions, tuple(f for n, f in old.items() if n not in entries))

    async def _predecessor(
        self, app_id: str | None, state: str, name: str | None, environment: str
    ) -> AppRecord | None:
        if app_id:
            app = await self._store.app(app_id)
            if app is None:
                raise NotFoundError(f"App {app_id} is not known to this server: run or deploy it again")
            if app.state == "stopped":
                raise InvalidError(f"App {app_id} was stopped: run or deploy it again")
            if app.environment != environment:
                raise InvalidError(
                    f"App {app_id} is in environment {app.environment!r}, not {environment!r}: "
                    "publish it there"
                )
            if state != app.state:
                raise InvalidError(f"App {app_id} is {app.state}, not {state}: publish it without an id")
            return app
        if state != "deployed" or name is None:
            return None
        return await self._deployed(name, environment)

    async def resolve(self, app: str, environment: str | None = None) -> dict[str, Any]:
        """Find an App by id or name: ``app.resolve``."""
        found = await self.find(app, environment)
        return {"app_id": found.app_id, "name": found.name or found.description, "state": found.state}

    async def find(self, app: str, environment: str | None = None) -> AppRecord:
        """Return an App by id, or by name: the deployed one, else the newest running, else the newest.

        Raises:
            NotFoundError: there is none.
        """
        if _APP_ID.fullmatch(app):
            record = await self._store.app(app)
            if record is None:
                raise NotFoundError(
                    f"App {app} is not known to this server: `modal-nomad app list` shows the Apps"
                )
            return record
        environment = self._environment(environment)
        named = await self._store.apps_named(app, environment)
        rank = {"deployed": 0, "detached": 1, "ephemeral": 1}
        # min is stable: among equals the newest comes first.
        best = min(named, key=lambda x: rank.get(x.state, 2), default=None)
        if best is None:
            raise NotFoundError(
                f"no App {app!r} in environment {environment!r}: `modal-nomad app list` shows the Apps there"
            )
        return best

    async def list(self, environment: str | None = None) -> dict[str, Any]:
        """Return the Apps of an environment, newest first: ``app.list``."""
        apps = await self._store.apps(self._environment(environment))
        return {
            "apps": [
                {
                    "app_id": app.app_id,
                    "description": app.description,
                    "name": app.name,
                    "state": app.state,
                    "tasks": self._tasks(app.app_id),
                    "created_at": app.created_at,
                    "stopped_at": app.stopped_at,
                }
                for app in apps
            ]
        }

    async def history(self, app: str, environment: str | None = None) -> dict[str, Any]:
        """Return the versions of an App, newest first: ``app.history``."""
        found = await self.find(app, environment)
        return {
            "versions": [
                {
                    "version": v.version,
                    "deployed_at": v.deployed_at,
                    "client": v.client,
                    "deployed_by": v.deployed_by,
                    "tag": v.tag,
                }
                for v in await self._store.versions(found.app_id)
            ]
        }

    async def lookup(
        self, name: str, environment: str | None = None, create_if_missing: bool = False
    ) -> dict[str, Any]:
        """Return the id of a deployed App, making an empty one when asked to: ``app.lookup``."""
        _check_name(name)
        environment = self._environment(environment)
        async with self._lock:
            app = await self._deployed(name, environment)
            if app is None:
                if not create_if_missing:
                    raise NotFoundError(
                        f"no App {name!r} is deployed in environment {environment!r}: deploy it, or pass "
                        "create_if_missing=True"
                    )
                app = AppRecord(new_id("ap"), name, name, environment, "deployed", 0, self._clock())
                await self._store.publish(app, None, ())
        return {"app_id": app.app_id}

    async def stop(self, app_id: str) -> tuple[FunctionRecord, ...]:
        """Mark an App stopped: ``app.stop``. A stopped one stays so.

        Returns:
            The Functions whose jobs are to be stopped.
        """
        async with self._lock:
            app = await self.find(app_id)
            functions = tuple(await self._store.functions(app.app_id))
            if app.state != "stopped":
                await self._store.set_app_state(app.app_id, "stopped", self._clock())
        return functions

    async def function_lookup(self, app: str, name: str, environment: str | None = None) -> dict[str, Any]:
        """Find a Function of a deployed App: ``function.lookup``."""
        environment = self._environment(environment)
        record = await self._deployed(app, environment)
        if record is None:
            raise NotFoundError(
                f"no App {app!r} is deployed in environment {environment!r}: `modal-nomad deploy` it there"
            )
        functions = {f.name: f for f in await self._store.functions(record.app_id)}
        if name not in functions:
            raise NotFoundError(_not_there(app, name, functions))
        function = functions[name]
        return {
            "function_id": function.function_id,
            "is_generator": bool(function.spec.get("is_generator", False)),
            "spec": dict(function.spec),
        }

    async def active(self) -> Sequence[tuple[AppRecord, tuple[FunctionRecord, ...]]]:
        """Return every App that is not stopped with its Functions: what a restarted dispatcher resumes.

        Ephemeral ones are among them; who calls decides how long to wait for their clients.
        """
        by_app: dict[str, list[FunctionRecord]] = {}
        for function in await self._store.functions():
            by_app.setdefault(function.app_id, []).append(function)
        apps = [app for app in await self._store.apps() if app.state != "stopped"]
        return [(app, tuple(by_app.get(app.app_id, ()))) for app in apps]

    async def detach(self, app_id: str) -> None:
        """Let an ephemeral App outlive its client."""
        async with self._lock:
            app = await self.find(app_id)
            if app.state == "ephemeral":
                await self._store.set_app_state(app_id, "detached")

    async def deployed_id(self, name: str, environment: str | None = None) -> str | None:
        """Return the id of the App that is deployed under a name, if one is."""
        found = await self._deployed(name, self._environment(environment))
        return found.app_id if found is not None else None

    async def _deployed(self, name: str, environment: str) -> AppRecord | None:
        named = await self._store.apps_named(name, environment)
        return next((x for x in named if x.state == "deployed" and x.name == name), None)

    def _environment(self, environment: str | None) -> str:
        return environment or self._default_environment


def _not_there(app: str, name: str, functions: Iterable[str]) -> str:
    classes = [n[:-2] for n in functions if n.endswith(".*")]
    plain = [n for n in functions if not n.endswith(".*")]
    if name.endswith(".*"):
        return f"App {app!r} has no class {name[:-2]!r}: its classes are {', '.join(classes) or 'none'}"
    owner = name.partition(".")[0]
    if owner in classes:
        return f"{name!r} is part of a class of App {app!r}: use Cls.from_name({app!r}, {owner!r})"
    return f"App {app!r} has no Function {name!r}: its Functions are {', '.join(plain) or 'none'}"


def _check_name(name: str | None) -> None:
    if not name:
        raise InvalidError('a deployed App needs a name: App("my-app") or `modal-nomad deploy --name my-app`')
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _APP_ID.fullmatch(name):
        raise InvalidError(
            f"App name {name!r} is invalid: use 1 to 63 letters, digits, dashes, dots and underscores, "
            "and not the form of an App id"
        )


def _functions(entries: Any) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries or ():
        spec = entry.get("spec") if isinstance(entry, Mapping) else None
        if not isinstance(spec, Mapping) or not isinstance(entry.get("job"), Mapping) or not spec.get("name"):
            raise InvalidError(
                "each published Function needs a spec with a name, and a job: update the client"
            )
        if spec["name"] in found:
            raise InvalidError(f"the App has two Functions named {spec['name']!r}: rename one with name=")
        found[spec["name"]] = entry
    return found
