"""Building on a cluster: a Nomad batch job fetches the plan, carries it out and says how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from modal_nomad.dispatcher.images.settings import BuildSettings
from modal_nomad.engines.base import EngineError
from modal_nomad.exception import ImageBuildError, NotFoundError
from modal_nomad.wire.ids import new_id

logger = logging.getLogger("modal_nomad.dispatcher")

META = "modal_build"
SECRETS_META = "modal_secrets"
JOBSPEC = "jobspecs/image-builder.nomad.hcl"
_LOOK_SECONDS = 5.0


class Jobs(Protocol):
    """What an engine does with jobs that are no Functions."""

    async def dispatch_job(self, job_id: str, meta: dict[str, str], key: str) -> str:
        """Start a child of a parameterized job and return its id. Raises EngineError."""
        ...

    async def takes_meta(self, job_id: str, key: str) -> bool:
        """Tell whether a job may be given a key of meta."""
        ...

    async def stop_job(self, job_id: str) -> None:
        """End a child. Raises EngineError."""
        ...

    async def job_trouble(self, job_id: str) -> str | None:
        """Return in words why a child has ended or cannot be placed; None while all is well."""
        ...


@dataclass
class _Remote:
    """A build that a node carries out."""

    plan: dict[str, Any]
    child: str = ""
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    dispatched: asyncio.Event = field(default_factory=asyncio.Event)


class OnNomad:
    """Builds with a job of the operator's.

    Args:
        jobs: the engine.
        settings: which job, which program, which registry.
        url: where the build finds the dispatcher.
    """

    local = False

    def __init__(self, jobs: Jobs, settings: BuildSettings, url: str) -> None:
        self._jobs = jobs
        self._settings = settings
        self._url = url
        self._builds: dict[str, _Remote] = {}

    async def tool(self, step: str) -> str:
        """Return the program that nodes build with.

        Raises:
            ImageBuildError: there is no registry to push to; the text names the step that needs it.
        """
        if not self._settings.repository:
            raise ImageBuildError(
                f"{step} needs a registry that built images are pushed to: set repository under [images] in"
                f" the dispatcher's settings and register {JOBSPEC} (docs/images.md)"
            )
        return self._settings.builder or "docker"

    async def reads_secrets(self) -> bool:
        """Tell whether the job reads Secrets in Vault by itself: it was registered with a role for that."""
        return await self._jobs.takes_meta(self._settings.job, SECRETS_META)

    async def build(
        self, plan: dict[str, Any], say: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
    ) -> None:
        """Carry out a plan on some node.

        Raises:
            ImageBuildError: a step failed, or no node takes the job.
        """
        build_id = new_id("ib")
        build = self._builds[build_id] = _Remote({**plan, "server": {**plan["server"], "url": self._url}})
        meta = {META: build_id}
        if plan["secrets"]:
            # Where they are: Nomad's template in the job reads them before it starts.
            meta[SECRETS_META] = json.dumps(plan["secrets"])
        try:
            key = re.sub(r"[^a-z0-9]", "", build_id.lower())
            try:
                build.child = await self._jobs.dispatch_job(self._settings.job, meta, key)
            except EngineError as error:
                raise ImageBuildError(
                    f"the Nomad job {self._settings.job!r} cannot be started: {error}; register {JOBSPEC}"
                ) from None
            build.dispatched.set()
            await self._follow(build, say)
        except asyncio.CancelledError:
            if build.child:
                with contextlib.suppress(EngineError):
                    await self._jobs.stop_job(build.child)
            raise
        finally:
            del self._builds[build_id]

    async def _follow(
        self, build: _Remote, say: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
    ) -> None:
        told = ""
        while True:
            try:
                event = await asyncio.wait_for(build.events.get(), _LOOK_SECONDS)
            except asyncio.TimeoutError:
                trouble = await self._jobs.job_trouble(build.child)
                if trouble is None or not build.events.empty():
                    continue
                if not trouble.startswith("waiting"):
                    raise ImageBuildError(
                        f"the image builder's job {build.child} {trouble}; run or deploy again to build anew"
                    ) from None
                if trouble != told:
                    told = trouble
                    await say({"line": f"image builder: {trouble}"})
                continue
            if "end" in event:
                if event["end"]:
                    raise ImageBuildError(str(event["end"]))
                return
            await say(event)

    async def plan_of(self, build_id: str, launched: Callable[[], Awaitable[tuple[str, str]]]) -> bytes:
        """Return the plan of a build to the job that is for it.

        Args:
            build_id: the build.
            launched: says which job asks.

        Raises:
            NotFoundError: there is no such build for that job.
        """
        return json.dumps((await self._of(build_id, launched)).plan).encode()

    async def told(
        self, build_id: str, launched: Callable[[], Awaitable[tuple[str, str]]], body: bytes
    ) -> None:
        """Take what the job of a build says. Raises NotFoundError, ValueError."""
        build = await self._of(build_id, launched)
        for line in body.splitlines():
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("an event of a build is an object")
            build.events.put_nowait(event)

    async def _of(self, build_id: str, launched: Callable[[], Awaitable[tuple[str, str]]]) -> _Remote:
        job_id, _ = await launched()
        build = self._builds.get(build_id)
        if build is not None:
            # The job may be faster than Nomad's answer that has its name.
            await build.dispatched.wait()
        if build is None or build.child != job_id:
            raise NotFoundError(f"there is no image build {build_id} for the job {job_id!r}")
        return build
