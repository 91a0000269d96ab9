"""From a specification to the reference of a built image."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.images.settings import BuildSettings
from modal_nomad.dispatcher.images.steps import FunctionSteps
from modal_nomad.dispatcher.secrets import Secrets
from modal_nomad.dispatcher.store.images import ImageStore
from modal_nomad.exception import ImageBuildError, InvalidError
from modal_nomad.render.image import BuildLayer, render_image
from modal_nomad.render.image_settings import BUILDERS
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.mounts import SecretRef
from modal_nomad.wire.spec import FunctionSpec, ImageSpec

Follow = Callable[[int, str], None]


class Builder(Protocol):
    """What turns a plan into images."""

    local: bool
    """Whether an image is known by its id on this machine, and by no registry."""

    async def tool(self, step: str) -> str:
        """Return what builds: part of what an image is kept under. Raises ImageBuildError."""
        ...

    async def reads_secrets(self) -> bool:
        """Tell whether a build reads Secrets by itself, of which ``secrets`` of its plan says the places."""
        ...

    async def build(
        self, plan: dict[str, Any], say: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
    ) -> None:
        """Carry out a plan. Raises ImageBuildError."""
        ...


@dataclass(frozen=True)
class _Order:
    """What somebody asks for.

    Attributes:
        spec: the image.
        environment: where its functions run, and its Secrets are that name none.
        version: of the image builder; empty is the one configured.
        identity: who asks.
    """

    spec: ImageSpec
    environment: str
    version: str
    identity: Identity


class _Build:
    """A build under way: what it said so far, and who follows it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.followers: list[Follow] = []
        self.task: asyncio.Task[str] | None = None

    def line(self, text: str) -> None:
        self.lines.append(text)
        for follow in list(self.followers):
            follow(len(self.lines) - 1, text)


class Images:
    """The built images of one dispatcher.

    Args:
        store: keeps what was built.
        secrets: has what build steps see.
        settings: where images come from and go to.
        builder: builds them.
        runtime: SHA-256 of the runtime bundle, which has what puts their changes in place.
        mint: gives the token of a container: a build fetches what it copies as one.

    Attributes:
        steps: runs the functions among the steps.
        scopes: by the container's id that a build goes by, the environments that it may touch; empty for all.
    """

    steps: FunctionSteps

    def __init__(
        self,
        store: ImageStore,
        secrets: Secrets,
        settings: BuildSettings,
        builder: Builder,
        runtime: str,
        mint: Callable[[str], str],
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._settings = settings
        self._builder = builder
        self._runtime = runtime
        self._mint = mint
        self.scopes: dict[str, tuple[str, ...]] = {}
        self._building: dict[str, _Build] = {}
        self._ending: set[asyncio.Task[str]] = set()

    async def name_of(self, spec: ImageSpec, version: str) -> str:
        """Return the reference of an image; of one that was never built, the tag that it is going to have."""
        if spec.registry_tag:
            return spec.registry_tag
        key = self._layers(spec, version)[-1].key
        return await self._store.built_image(self._place(key)) or self._settings.rendering(version).tag(key)

    async def rebuild(
        self, spec: ImageSpec, environment: str, reference: str, scope: tuple[str, ...]
    ) -> None:
        """Build anew what was built once and is gone, under the same reference.

        Args:
            spec: the image.
            environment: where its Secrets are that name none.
            reference: what it was built as.
            scope: the environments that it may touch; empty for all.

        Raises:
            ImageBuildError: a step failed, or other settings hold by now and it would be another image.
        """
        for version in ("", *BUILDERS):
            layers = self._layers(spec, version)
            known = await self._store.built_image(self._place(layers[-1].key))
            if reference in (known, self._settings.rendering(version).tag(layers[-1].key)):
                break
        else:
            raise ImageBuildError("it was built by other settings: run or deploy the App again")
        order = _Order(spec, environment, version, Identity("an image that is gone", environments=scope))
        built = await self._built_by(layers, order, lambda number, line: None)
        if built != reference:
            raise ImageBuildError(f"it is called {built} by now: run or deploy the App again")

    async def ensure(
        self, spec: ImageSpec, environment: str, version: str, follow: Follow, identity: Identity
    ) -> str:
        """Return the reference of an image, built first where it is not known.

        Args:
            spec: the image.
            environment: where its Secrets are that name none.
            version: of the image builder; empty is the one configured.
            follow: takes each line of the build, with its number, from the first one on.
            identity: who asks for it; its functions are run by their right.

        Raises:
            ImageBuildError: a step failed, or nothing here can build; the text names the step.
            InvalidError: the specification cannot be rendered.
        """
        layers = self._layers(spec, version)
        found = await self._known(spec, layers)
        return found or await self._built_by(layers, _Order(spec, environment, version, identity), follow)

    async def known(self, spec: ImageSpec, version: str) -> str:
        """Return the reference of an image that was built; empty for others. Raises InvalidError."""
        return await self._known(spec, self._layers(spec, version))

    async def _known(self, spec: ImageSpec, layers: Sequence[BuildLayer]) -> str:
        return spec.registry_tag or await self._store.built_image(self._place(layers[-1].key)) or ""

    async def _built_by(self, layers: Sequence[BuildLayer], order: _Order, follow: Follow) -> str:
        """Join the build of an image that is under way, or begin one."""
        key = layers[-1].key
        build = self._building.get(key)
        if build is None:
            build = self._building[key] = _Build()
            build.task = asyncio.ensure_future(self._build(build, layers, order))
            begun = build
            build.task.add_done_callback(lambda done: self._ended(key, begun, done))
        for number, text in enumerate(build.lines):
            follow(number, text)
        build.followers.append(follow)
        assert build.task is not None
        try:
            # Shielded: an asker who goes must not take the image from the others.
            return await asyncio.shield(build.task)
        finally:
            build.followers.remove(follow)
            if not build.followers and not build.task.done():
                # Nobody wants it: a command that never ends would hold the machine, and whoever asks again.
                self._forget(key, build)
                self._ending.add(build.task)
                build.task.cancel()

    async def close(self) -> None:
        """End the builds under way."""
        tasks = [build.task for build in self._building.values() if build.task is not None]
        tasks += self._ending
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: str, build: _Build) -> None:
        if self._building.get(key) is build:
            del self._building[key]

    def _ended(self, key: str, build: _Build, done: asyncio.Task[str]) -> None:
        self._forget(key, build)
        self._ending.discard(done)
        if not done.cancelled():
            # Looked at, or the loop would complain when everybody who asked has gone.
            done.exception()

    def _layers(self, spec: ImageSpec, version: str) -> tuple[BuildLayer, ...]:
        try:
            return render_image(spec, self._settings.rendering(version))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidError(f"the image cannot be built: {error}") from None

    def _place(self, key: str) -> str:
        where = self._settings.repository or f"{self._settings.builder or 'this machine'}"
        return f"{where}:{key}"

    async def _build(self, build: _Build, layers: Sequence[BuildLayer], order: _Order) -> str:
        tool = await self._builder.tool(layers[0].step)
        last = max((x for x, layer in enumerate(layers) if layer.function), default=-1)
        if last >= 0 and await self._store.built_image(self._place(layers[last].key)) is None:
            if last == len(layers) - 1:
                await self._changes(build, layers, order)
            else:
                # A build of its own: another image that has this step waits for the same one.
                await self._part(build, layers[: last + 1], order)
        again: set[str] = set()
        while (needed := await self._carry_out(build, layers, order, tool)) is not None:
            if needed in again:
                raise ImageBuildError(
                    "what a function of this image changed is removed while it is built: give garbage_age in"
                    " the dispatcher's settings more seconds"
                )
            again.add(needed)
            # Its image was here, and somebody has removed it, and what it was made of is gone as well.
            place = next(x for x, layer in enumerate(layers) if layer.key == needed)
            await self._changes(build, layers[: place + 1], order)
        reference = await self._store.built_image(self._place(layers[-1].key))
        if reference is None:
            raise ImageBuildError(f"{layers[-1].step}: the builder ended without an image; try again")
        return reference

    async def _part(self, build: _Build, layers: Sequence[BuildLayer], order: _Order) -> str:
        """Return the reference of the first layers' image, built as one that is asked for."""
        known = await self._store.built_image(self._place(layers[-1].key))
        return known or await self._built_by(layers, order, lambda number, line: build.line(line))

    async def _changes(self, build: _Build, layers: Sequence[BuildLayer], order: _Order) -> None:
        """Run the function that makes the last of these layers, unless what it changes is kept still."""
        layer = layers[-1]
        if await self._kept(layer, order):
            return
        before = dataclasses.replace(
            order.spec, layers=order.spec.layers[: layer.function["before"]], env={}, workdir=None, files=()
        )
        reference = await self._part(build, layers[:-1], order)
        build.line(f"=> {layer.step}")
        changes = await self.steps.run(
            layer, before, reference, order.environment, order.identity, build.line
        )
        await self._store.put_built_image(_changes_of(layer), changes)

    async def _kept(self, layer: BuildLayer, order: _Order) -> str:
        """Return where the changes of a layer's function are kept; empty when they are not."""
        if not layer.function:
            return ""
        changes = await self._store.built_image(_changes_of(layer))
        if changes is None or not await self.steps.kept(changes, order.identity.environments):
            return ""
        return changes

    async def _carry_out(
        self, build: _Build, layers: Sequence[BuildLayer], order: _Order, tool: str
    ) -> str | None:
        """Have the builder build what is missing; returns the layer whose function has to run first."""
        rendering = self._settings.rendering(order.version)
        owner = new_id("ta")
        given = [(layer.secrets, layer.pull.get("secrets", ())) for layer in layers]
        refs = [_ref(x) for pair in given for some in pair for x in some]
        reads = bool(refs) and self._secrets.in_vault and await self._builder.reads_secrets()
        needed: list[str] = []

        async def say(event: dict[str, Any]) -> None:
            if "leases" in event:
                self._secrets.adopt(owner, refs, event["leases"])
            elif "line" in event:
                build.line(str(event["line"]))
            elif "step" in event:
                build.line(f"=> {event['step']}")
            elif "needs" in event:
                needed.append(str(event["needs"]))
            elif "layer" in event:
                await self._store.put_built_image(self._place(event["layer"]), str(event["reference"]))

        environment = order.environment
        self.scopes[owner] = order.identity.environments
        try:
            plan = {
                "tool": tool,
                "network": self._settings.network,
                "insecure": self._settings.insecure,
                "push": await self._push(),
                "runtime": self._runtime,
                "server": {"token": self._mint(owner)},
                "secrets": await self._secrets.places(refs, environment) if reads else [],
                "layers": [
                    {
                        **dataclasses.asdict(layer),
                        "tag": rendering.tag(layer.key),
                        "known": await self._store.built_image(self._place(layer.key)) is not None,
                        "changes": await self._kept(layer, order),
                        "values": {} if reads else await self._values(owner, used, environment),
                        "pull_values": {} if reads else await self._values(owner, pulled, environment),
                        # In the order of the places.
                        "reads": [[_fields(x) for x in some] for some in (used, pulled)] if reads else None,
                    }
                    for layer, (used, pulled) in zip(layers, given, strict=True)
                ],
            }
            await self._builder.build(plan, say)
        except ImageBuildError:
            if not needed:
                raise
        finally:
            del self.scopes[owner]
            await self._secrets.ended(owner)
        return needed[0] if needed else None

    async def _push(self) -> dict[str, str]:
        settings = self._settings
        if not settings.repository:
            return {}
        push = {"registry": settings.repository.partition("/")[0]}
        if settings.username:
            push["username"] = settings.username
            push["password"] = await asyncio.to_thread(_read, settings.password_file)
        return push

    async def _values(self, owner: str, refs: Sequence[Any], environment: str) -> dict[str, str]:
        if not refs:
            return {}
        return await self._secrets.build_variables(owner, [_ref(x) for x in refs], environment)


def secret_refs(spec: ImageSpec) -> list[SecretRef]:
    """Return every Secret that the build steps of an image see."""
    found = [_ref(x) for layer in spec.layers for x in layer.options.get("secrets") or ()]
    for layer in spec.layers:
        if layer.kind == "function":
            found += FunctionSpec.from_dict({"app": "", **layer.options["function"]}).secret_refs
    return found


def _changes_of(layer: BuildLayer) -> str:
    return f"changes:{layer.key}"


def _ref(data: Any) -> SecretRef:
    names = {f.name for f in dataclasses.fields(SecretRef)}
    known = {key: value for key, value in dict(data).items() if key in names}
    return SecretRef(**{**known, "required": tuple(known.get("required") or ())})


def _fields(data: Any) -> dict[str, Any]:
    ref = _ref(data)
    return {"keys": dict(ref.keys), "prefix": ref.prefix}


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        raise ImageBuildError(
            f"the registry's password cannot be read from {path}: {error.strerror}; see password_file under"
            " [images] in the dispatcher's settings"
        ) from None
