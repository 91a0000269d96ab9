"""What has to be on this machine before a container can start: bundles laid out, an interpreter found."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from modal_nomad.engines._local_files import Unpack
from modal_nomad.engines._local_job import TaskPlan
from modal_nomad.engines._warm import WarmKey
from modal_nomad.engines.base import EngineError
from modal_nomad.wire.spec import ImageSpec

Build = Callable[[ImageSpec], "pathlib.Path | str"]

_REMOVED = ".removed-"


class Blobs(Protocol):
    """Where bundles are."""

    async def get(self, sha: str) -> bytes:
        """Return a blob's bytes. Raises KeyError."""
        ...


@dataclass(frozen=True)
class Prepared:
    """All there is to start a container with: its interpreter, and its bundles by name."""

    key: WarmKey
    bundles: Mapping[str, pathlib.Path]


class Ground:
    """Makes each bundle and each environment once, however many containers wait for it."""

    def __init__(self, home: pathlib.Path, blobs: Blobs, build: Build | None, unpack: Unpack) -> None:
        self._home = home
        self._blobs = blobs
        self._build = build
        self._unpack = unpack
        self._made: dict[str, pathlib.Path] = {}
        self._making: dict[str, asyncio.Future[pathlib.Path]] = {}

    @property
    def builds(self) -> bool:
        """True when image environments can be built."""
        return self._build is not None

    def prepared(self, plan: TaskPlan) -> Prepared | None:
        """Return what is there already; None when anything has to be made first. Never waits."""
        bundles: dict[str, pathlib.Path] = {}
        for artifact in plan.artifacts:
            path = self._made.get(f"{artifact.destination}/{artifact.sha}")
            if path is None:
                return None
            bundles[artifact.destination] = path
        if not plan.is_worker or plan.container is not None:
            return Prepared(WarmKey(sys.executable, None), bundles)
        python = local_python(plan.image, plan.command)
        packages = python is None
        if python is None and plan.image is not None:
            built = self._made.get(_environment(plan.image))
            python = str(built) if built is not None else None
        if python is None or "runtime" not in bundles:
            return None
        return Prepared(WarmKey(python, str(bundles["runtime"]), packages), bundles)

    async def prepare(self, plan: TaskPlan) -> Prepared:
        """Make what is missing. Raises EngineError, or what the builder of environments raises."""
        if plan.is_worker:
            if plan.container is None:
                await self._python(plan.image, plan.command)
            if plan.artifact("runtime") is None:
                raise EngineError("the job has no runtime artifact; publish the app again with this version")
        for artifact in plan.artifacts:
            await self._bundle(artifact.destination, artifact.sha)
        prepared = self.prepared(plan)
        if prepared is None:
            raise EngineError("the container's environment vanished while it was built; start it again")
        return prepared

    async def interpreter(self, runtime_sha: str, image: ImageSpec | None) -> WarmKey:
        """Return the warm interpreter of a runtime and an image, both made when missing."""
        python, packages = await self._python(image, sys.executable)
        return WarmKey(python, str(await self._bundle("runtime", runtime_sha)), packages)

    async def _bundle(self, kind: str, sha: str) -> pathlib.Path:
        target = self._home / (kind if kind in ("code", "runtime") else "artifacts") / sha

        async def lay_out() -> pathlib.Path:
            if not await asyncio.to_thread(target.is_dir):
                try:
                    data = await self._blobs.get(sha)
                except KeyError:
                    raise EngineError(
                        f"{kind} bundle {sha[:12]} is not stored; publish the app again"
                    ) from None
                await asyncio.to_thread(self._unpack, data, target)
            return target

        return await self._once(f"{kind}/{sha}", lay_out)

    async def collect(self, in_use: Callable[[], Collection[str]], older_than: float) -> int:
        """Remove old bundles that are not in use; gives how many.

        Args:
            in_use: asked on the loop, right before the removal: a job may have been submitted meanwhile.
            older_than: seconds.
        """
        old = await asyncio.to_thread(self._old, time.time() - older_than)
        used = in_use()
        removed: list[pathlib.Path] = []
        for path in old:
            if path.name in used or any(key.endswith(f"/{path.name}") for key in self._making):
                continue
            self._made = {key: made for key, made in self._made.items() if made != path}
            with contextlib.suppress(OSError):
                # At once: nobody finds half of it.
                removed.append(path.rename(path.with_name(f"{_REMOVED}{path.name}")))
        await asyncio.to_thread(_remove, removed)
        return len(removed)

    def _old(self, before: float) -> list[pathlib.Path]:
        found = []
        for kind in ("code", "runtime", "artifacts"):
            for path in (self._home / kind).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime >= before:
                        continue
                    if path.name.startswith("."):
                        # Left by a process that was killed while it laid one out or took one away.
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        found.append(path)
        return found

    async def _python(self, image: ImageSpec | None, command: str) -> tuple[str, bool]:
        python = local_python(image, command)
        if python is not None:
            return python, False
        assert image is not None
        build, wanted = self._build, image
        if build is None:
            raise EngineError(
                f"the image needs Python {image.python} or packages, and this engine builds no environments; "
                "use the Python version of this machine and no packages"
            )
        path = await self._once(
            _environment(wanted), lambda: asyncio.to_thread(lambda: pathlib.Path(build(wanted)))
        )
        return str(path), True

    async def _once(self, key: str, make: Callable[[], Awaitable[pathlib.Path]]) -> pathlib.Path:
        if key in self._made:
            return self._made[key]
        future = self._making.get(key)
        if future is None:
            future = asyncio.ensure_future(make())
            self._making[key] = future
            future.add_done_callback(lambda done: self._making.pop(key, None) and None)
            # Looked at, or the loop would complain when everybody who waited was stopped.
            future.add_done_callback(lambda done: None if done.cancelled() else _ignore(done.exception()))
        # Shielded: one container that is stopped must not take the build from the others.
        self._made[key] = await asyncio.shield(future)
        return self._made[key]


def local_python(image: ImageSpec | None, command: str) -> str | None:
    """Return an interpreter of this machine that fits; None when one has to be built."""
    if image is None:
        return command if "/" in command else sys.executable
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not image.layers and image.python in (None, mine, f"{mine}.{sys.version_info.micro}"):
        return sys.executable
    return None


def _remove(directories: Iterable[pathlib.Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _environment(image: ImageSpec) -> str:
    return f"environment/{image.environment_key}"


def _ignore(exception: BaseException | None) -> None:
    del exception
