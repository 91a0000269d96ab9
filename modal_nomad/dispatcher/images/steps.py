"""The steps of an Image that are functions: each is run as a Function, in an ephemeral App of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._codec import decode
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.blob_rights import BlobRights, Scope
from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.blobs.base import BlobMissing
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.engines.base import EngineError
from modal_nomad.exception import ImageBuildError
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.render.image import BuildLayer
from modal_nomad.wire.frames import FLAG_BLOB
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.serialization import dumps, exception_text, loads_plain
from modal_nomad.wire.spec import FunctionSpec, ImageSpec

logger = logging.getLogger("modal_nomad.dispatcher")

_MODULE = "modal_nomad.worker.image_step"
_QUALNAME = "run"
_LAST_LINES = 20
SENDING_SECONDS = 3600.0
"""What a function has changed is sent after its own time, and may take this long."""


class Apps(Protocol):
    """Where Apps are published."""

    async def publish(self, args: dict[str, Any], session: Any) -> dict[str, Any]:
        """Submit an App's jobs and make its Functions callable."""
        ...

    async def stop(self, app_id: str, token: str | None = None) -> None:
        """Stop an App."""
        ...


@dataclass(frozen=True)
class _Publisher:
    """Whose right a step is run by, and the name of its run."""

    identity: Identity
    owner: str


def is_step(spec: FunctionSpec) -> bool:
    """Tell whether a Function is a step of an Image."""
    return spec.module == _MODULE


def step_spec(layer: BuildLayer, before: ImageSpec, reference: str) -> FunctionSpec:
    """Return the Function that makes a layer.

    Args:
        layer: the layer.
        before: the image so far.
        reference: what its containers are started from.
    """
    spec = FunctionSpec.from_dict({"app": "", **layer.function["function"]})
    return dataclasses.replace(
        spec,
        app=f"image-{layer.key[:12]}",
        module=_MODULE,
        qualname=_QUALNAME,
        file=None,
        serialized=False,
        function_blob=None,
        image=before,
        container_image=reference,
        timeout=spec.timeout + SENDING_SECONDS,
        max_containers=1,
        # What one run has changed is of no use to another.
        single_use_containers=True,
    )


class FunctionSteps:
    """Runs functions in the image so far, and keeps what they change.

    Args:
        apps: where they are published.
        handle: gives the call engine an event.
        takers: by the call, who gets its outputs.
        hub: has what they print.
        blobs: gets what they change.
        rights: says who may read that.
        render: how jobs are rendered.
    """

    def __init__(
        self,
        apps: Apps,
        handle: Callable[[ev.Event], None],
        takers: dict[str, Callable[[ev.Deliver], None]],
        hub: LogHub,
        blobs: BlobStore,
        rights: BlobRights,
        render: Mapping[str, Any],
    ) -> None:
        self._apps = apps
        self._handle = handle
        self._takers = takers
        self._hub = hub
        self._blobs = blobs
        self._rights = rights
        self._render = render

    async def kept(self, changes: str, scope: Scope) -> bool:
        """Tell whether all of what a function has changed is still here, for a build to read.

        Args:
            changes: the name of the blob that says what it is.
            scope: the environments of who builds; empty for all.
        """
        try:
            told = json.loads(await self._blobs.get(changes))
        except BlobMissing:
            return False
        names = [changes, *told["chunks"]]
        if await self._blobs.missing(names):
            return False
        # Another token's function may have made them: by the layer's key, they are the same.
        await self._rights.show(scope, names)
        return True

    async def run(
        self,
        layer: BuildLayer,
        before: ImageSpec,
        reference: str,
        environment: str,
        identity: Identity,
        say: Callable[[str], None],
    ) -> str:
        """Run the function of a layer, and return the name of the blob that says what it has changed.

        Args:
            layer: the layer.
            before: the image so far.
            reference: what its containers are started from.
            environment: where it runs.
            identity: whose right it has.
            say: takes each line of what it prints.

        Raises:
            ImageBuildError: it failed, or cannot be placed at all.
        """
        spec = step_spec(layer, before, reference)
        given = {**self._render, "app_suffix": os.urandom(4).hex(), "deployer": identity.name}
        settings = RenderSettings.from_dict(given).placed(environment)
        if spec.network_file_systems and not (settings.nfs_directory or settings.nfs_volume):
            raise ImageBuildError(
                f"{layer.step} failed:\nthis cluster has no shared directory for NetworkFileSystems: name one"
                " under [nfs] in the dispatcher's settings, or use a modal.Volume"
            )
        try:
            job = render_function(spec, settings)
        except ValueError as error:
            raise ImageBuildError(f"{layer.step} failed:\n{error}") from None
        publisher = _Publisher(identity, new_id("ib"))
        publication = {
            "state": "ephemeral",
            "description": f"{layer.step[:100]} of an Image",
            "environment": environment,
            "functions": [{"spec": json.loads(json.dumps(spec.to_dict())), "job": job}],
        }
        try:
            published = await self._apps.publish(publication, publisher)
        except EngineError as error:
            raise ImageBuildError(f"{layer.step} cannot be run: {error}") from None
        (function_id,) = published["functions"].values()
        lines = _Lines(say)
        self._hub.follow(published["app_id"], lines.take, backlog=True)
        try:
            status, payload, flags = await self._called(function_id, layer, publisher.owner)
        finally:
            self._hub.unfollow(lines.take)
            lines.close()
            await self._stop(published["app_id"], identity)
        if status == ev.SUCCESS:
            return str(loads_plain(payload))
        said = "\n".join([*lines.last, _reason(status, payload, flags)])
        raise ImageBuildError(f"{layer.step} failed:\n{said}")

    async def _called(self, function_id: str, layer: BuildLayer, owner: str) -> tuple[int, bytes, int]:
        """Call a step's Function; returns the status of its output, the payload and its flags."""
        call_id = new_id("fc")
        output: asyncio.Future[tuple[int, bytes, int]] = asyncio.get_running_loop().create_future()

        def take(command: ev.Deliver) -> None:
            if not output.done():
                _, status, payload, flags = command.outputs[0]
                output.set_result((status, payload, flags))

        arguments = dumps(((_told(layer),), {}))
        self._takers[call_id] = take
        try:
            self._handle(ev.InputsSubmitted(call_id, function_id, False, owner, [(0, arguments, 0)]))
            return await output
        finally:
            del self._takers[call_id]
            self._handle(ev.CallClosed(call_id))

    async def _stop(self, app_id: str, identity: Identity) -> None:
        try:
            await self._apps.stop(app_id, identity.token)
        except EngineError as error:
            logger.warning("the App %s of an image's step cannot be stopped: %s", app_id, error)


def _told(layer: BuildLayer) -> dict[str, Any]:
    """Return what the Function of a layer is called with."""
    function = dict(layer.function["function"])
    spec = FunctionSpec.from_dict({"app": "", **function})
    groups = (spec.volumes, spec.network_file_systems, spec.buckets)
    names = ("name", "module", "qualname", "file", "serialized", "function_blob")
    return {
        "function": {"app": "", **{name: function[name] for name in names if name in function}},
        "arguments": layer.function["arguments"],
        "timeout": spec.timeout,
        "shown": [mount.path for group in groups for mount in group],
    }


def _reason(status: int, payload: bytes, flags: int) -> str:
    """Return why a call failed, in words."""
    if status not in (ev.FAILURE, ev.INIT_FAILURE):
        return payload.decode("utf-8", "replace")
    if flags & FLAG_BLOB:
        return "it raised an exception that is too large to be shown"
    try:
        return exception_text(payload).rstrip("\n")
    except ValueError as error:
        return str(error)


class _Lines:
    """The output of a step's containers, line by line, and why they wait.

    Args:
        say: takes each line.

    Attributes:
        last: the last ones that they printed.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.last: list[str] = []
        self._say = say
        self._open: dict[tuple[str, int], bytes] = {}
        self._told = ""

    def take(self, frame: bytes) -> None:
        """Take a frame of the hub's."""
        header, payloads = decode(frame)
        if header["t"] == "log":
            source = (str(header["k"]), int(header["s"]))
            *whole, rest = (self._open.get(source, b"") + b"".join(payloads)).split(b"\n")
            self._open[source] = rest
            for line in whole:
                self._print(line)
        elif header["r"] and header["e"] in ("pending", "ended") and header["r"] != self._told:
            self._told = header["r"]
            self._say(f"{header['f']}: {header['r']}")

    def close(self) -> None:
        """Say what is left without the end of its line."""
        for rest in self._open.values():
            self._print(rest)

    def _print(self, line: bytes) -> None:
        # A progress bar's last state is what counts.
        text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
        if text:
            self._say(text)
            self.last = [*self.last[1 - _LAST_LINES :], text]
