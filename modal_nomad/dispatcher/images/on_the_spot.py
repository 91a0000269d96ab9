"""Building on the dispatcher's own machine: a process that runs docker, podman or buildah."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from modal_nomad.dispatcher.images.settings import TOOLS
from modal_nomad.exception import ImageBuildError

_ANSWER_SECONDS = 30.0
_END_SECONDS = 30.0
_LONGEST_LINE = 1 << 20


class OnTheSpot:
    """Builds with what is on this machine.

    Args:
        builder: which of them; empty takes the first one that works.
        url: where the build finds the dispatcher.
    """

    local = True

    def __init__(self, builder: str, url: str) -> None:
        self._builder = builder
        self._url = url
        self._found = ""

    async def tool(self, step: str) -> str:
        """Return the program that builds.

        Raises:
            ImageBuildError: there is none; the text names the step that needs it.
        """
        if not self._found:
            self._found = await self._look(step)
        return self._found

    async def reads_secrets(self) -> bool:
        """Tell whether the build reads Secrets by itself: on this machine the dispatcher does."""
        return False

    async def _look(self, step: str) -> str:
        silent = []
        for name in (self._builder,) if self._builder else TOOLS:
            if shutil.which(name) is None:
                continue
            if name != "docker" or await _answers("docker", "version"):
                return name
            silent.append(name)
        if silent:
            raise ImageBuildError(
                f"{step} needs a container runtime, and docker's daemon does not answer: start it, or install"
                " podman or buildah"
            )
        raise ImageBuildError(
            f"{step} needs a container runtime: install {self._builder or 'docker, podman or buildah'} on"
            " this machine, or leave the step out and install on the machine itself what it gives"
        )

    async def build(
        self, plan: dict[str, Any], say: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
    ) -> None:
        """Carry out a plan.

        Raises:
            ImageBuildError: a step failed.
        """
        plan = {**plan, "server": {**plan["server"], "url": self._url}}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "modal_nomad.worker.image_builder"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        failed = ""
        try:
            # Values of Secrets go this way, which nobody else reads.
            process.stdin.write(json.dumps(plan).encode() + b"\n")
            said = asyncio.ensure_future(process.stderr.read())
            async for line in process.stdout:
                event = json.loads(line)
                failed = str(event.get("error") or failed)
                await say(event)
            code, trouble = await process.wait(), (await said).decode("utf-8", "replace")
        except BaseException:
            await _ended(process)
            raise
        finally:
            process.stdin.close()
        if failed:
            raise ImageBuildError(failed)
        if code != 0:
            raise ImageBuildError(f"the image builder ended with exit code {code}:\n{trouble[-2000:]}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a build that nobody wants: it is told so by the end of its input, and removes what it began."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), _END_SECONDS)
    except (asyncio.TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _answers(*command: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        return await asyncio.wait_for(process.wait(), _ANSWER_SECONDS) == 0
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        return False
