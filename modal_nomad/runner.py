"""Publishing an App: from its definition to specifications and Nomad jobs on the server."""

from __future__ import annotations

import getpass
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import _automount
from ._bridge import blocking_function, io
from ._image_publish import PublishedImage, built, check_built, image_of, resolved
from ._options import FunctionOptions, check_object_name
from ._publishing import publishing
from ._secret_refs import reference_of
from ._uploads import upload_missing
from ._volume_mounts import buckets_in, check_once, volumes_in
from ._web_names import usable
from .config import config
from .exception import InvalidError
from .image import DEFINITION_VARIABLE, Image
from .wire.mounts import NfsMount, SecretRef
from .wire.spec import FunctionSpec, ImageSpec

if TYPE_CHECKING:
    from .app import App
    from .client import Client
    from .cloud_bucket_mount import CloudBucketMount
    from .functions import Function
    from .mount import Mount
    from .secret import Secret
    from .volume import Volume

RECOMMENDED_PICKLE_BYTES = 256 * 1024
MAX_PICKLE_BYTES = 16 * 1024 * 1024
DEV_SUFFIX = "dev"
"""What the label of a web endpoint ends with while its App is not deployed."""


@dataclass(frozen=True)
class DeployResult:
    """What a deployment gave.

    Attributes:
        app_id: the App's id; the same at every deployment under one name.
        app_page_url: where to look at the App.
        app_logs_url: where its logs are.
        warnings: what the server has to say about it.
        web_urls: where its web endpoints are served, by ``function`` or ``Class.method``.
    """

    app_id: str
    app_page_url: str
    app_logs_url: str
    warnings: list[str] = field(default_factory=list)
    web_urls: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication:
    """An App ready to be sent.

    Attributes:
        args: the arguments of the ``app.publish`` and ``app.plan`` requests.
        contents: what the server must have before: SHA-256 to bytes, or to the file that holds them.
    """

    args: Mapping[str, Any]
    contents: Mapping[str, bytes | os.PathLike[str]]


def environment_of(environment_name: str | None) -> str | None:
    """Return the environment to use: the argument, else the configured one; None is the server's."""
    return environment_name or config["environment"] or None


def prepare(
    app: App,
    render: Mapping[str, Any],
    *,
    state: str,
    name: str | None,
    environment: str | None,
    tag: str = "",
    secrets: Mapping[Secret, SecretRef] | None = None,
    replacing: str | None = None,
    suffix: str | None = None,
    images: Mapping[Image, PublishedImage] | None = None,
) -> Publication:
    """Build every Function's specification and job. Reads local files; talks to no server.

    Args:
        app: what to publish.
        render: the server's settings for rendering jobs.
        state: ``ephemeral``, ``detached`` or ``deployed``.
        name: the name to deploy under, or None.
        environment: the environment, or None for the server's.
        tag: a word for the deployment's history.
        secrets: where each Secret is; None knows those alone that the server has anyway.
        replacing: the id of a running App that this is a new version of.
        suffix: tells the jobs of an App that is not deployed from those of others; the same in each of its
            versions. By default one of its own.
        images: the Images as they were built; None knows those alone that need no build.

    Raises:
        InvalidError: a Secret's values would have to be sent, or an Image be built, and there is no server;
            the cluster has no place such as a Function asks for.
    """
    from . import __version__
    from .render import RenderSettings, render_function  # type: ignore[attr-defined, unused-ignore]

    suffix = "" if state == "deployed" else suffix or new_suffix()
    extras: dict[str, Any] = {"app_suffix": suffix, "deployer": _deployer()}
    settings = RenderSettings.from_dict({**render, **extras})
    settings = settings.placed(environment or settings.environment)
    dev_suffix = "" if state == "deployed" else DEV_SUFFIX
    specs, contents = function_specs(app, _app_name(app, name), secrets, images, dev_suffix=dev_suffix)
    if any(spec.network_file_systems for spec in specs) and not (
        settings.nfs_directory or settings.nfs_volume
    ):
        raise InvalidError(
            "this cluster has no shared directory for NetworkFileSystems: name one under [nfs] in the"
            " dispatcher's settings, or use a modal.Volume"
        )
    try:
        jobs = [render_function(spec, settings) for spec in specs]
    except ValueError as error:
        raise InvalidError(str(error)) from None
    args = {
        "state": state,
        "name": name,
        "description": app.description or "",
        "environment": environment,
        "tag": tag,
        "functions": [{"spec": spec.to_dict(), "job": job} for spec, job in zip(specs, jobs, strict=True)],
        "client_version": __version__,
        "app_id": replacing,
    }
    return Publication(args, contents)


def new_suffix() -> str:
    """Return what tells the jobs of an App that is not deployed from those of all others."""
    return os.urandom(4).hex()


def secrets_of(app: App) -> list[Secret]:
    """Return every Secret that an App's Functions use."""
    found: dict[Secret, None] = {}
    for function in app.registered_functions.values():
        found.update(dict.fromkeys((*function.app._secrets, *_options(function).secrets)))
        found.update(dict.fromkeys(image_of(function)._secrets()))
        of_buckets = (bucket.secret for bucket in buckets_in(_mounts_of(function)).values())
        found.update(dict.fromkeys(secret for secret in of_buckets if secret is not None))
    return list(found)


async def secret_references(
    client: Client, app: App, name: str | None, environment: str | None, *, dry: bool = False
) -> Mapping[Secret, SecretRef]:
    """Send the values of the Secrets that live with an App, and return where each Secret is.

    Args:
        client: the client to use.
        app: what is to be published.
        name: the name to deploy under, or None.
        environment: the environment, or None for the server's.
        dry: let the server keep nothing.
    """
    used = secrets_of(app)
    if not used:
        return {}
    from .secret import references

    return await references(client, used, _app_name(app, name), environment, dry=dry)


def _app_name(app: App, name: str | None) -> str:
    return name or app.description or "app"


def function_specs(
    app: App,
    app_name: str,
    secrets: Mapping[Secret, SecretRef] | None = None,
    images: Mapping[Image, PublishedImage] | None = None,
    *,
    dev_suffix: str = "",
) -> tuple[list[FunctionSpec], dict[str, bytes | os.PathLike[str]]]:
    """Return the specification of every Function of an App, and the contents that they refer to.

    Args:
        app: the App.
        app_name: its name on the server.
        secrets: where each Secret is; None knows those alone that the server has anyway.
        images: the Images as they were built; None knows those alone that need no build.
        dev_suffix: what the labels of its web endpoints end with.

    Raises:
        InvalidError: when a pickled function is too large to travel.
        FileNotFoundError: when a file that an Image adds is not there.
    """
    contents: dict[str, bytes | os.PathLike[str]] = {}
    published = resolved(app, secrets) if images is None else images
    functions = list(app.registered_functions.values())
    shipped = [f.info for f in functions if _options(f).include_source]
    bundle = _automount.bundle(shipped, config["automount"]) if shipped else None
    if bundle is not None:
        contents[bundle.sha256] = bundle.data
    specs = []
    for function in functions:
        info, options = function.info, _options(function)
        image = image_of(function)
        check_built(image, published[image])
        contents.update(published[image].contents)
        image._object_id = published[image].spec.image_id
        spec, mounted = _with_mounts(published[image].spec, (*function.app._mounts, *options.mounts))
        contents.update(mounted)
        code = bundle if options.include_source else None
        blob = None
        if info.serialized:
            with publishing(app.registered_functions):
                data = _pickled(info.name, info.raw_f)
            blob = hashlib.sha256(data).hexdigest()
            contents[blob] = data
        specs.append(
            FunctionSpec(
                app=app_name,
                name=info.name,
                module=info.module,
                qualname=info.qualname,
                file=code.file_of(info.module) if code is not None and info.module else None,
                serialized=info.serialized,
                function_blob=blob,
                code_bundle=code.sha256 if code is not None else None,
                is_generator=info.is_generator,
                is_async=info.is_async,
                image=spec,
                container_image=published[image].reference,
                env={
                    **options.env,
                    "MODAL_IMAGE_ID": image._object_id,
                    DEFINITION_VARIABLE: image._definition,
                },
                cpu=options.cpu,
                memory=options.memory,
                ephemeral_disk=options.ephemeral_disk,
                gpu=options.gpu,
                timeout=options.timeout,
                startup_timeout=options.startup_timeout,
                retries=options.retries,
                min_containers=options.min_containers,
                max_containers=options.max_containers,
                buffer_containers=options.buffer_containers,
                scaledown_window=options.scaledown_window,
                single_use_containers=options.single_use_containers,
                region=options.region,
                cloud=options.cloud,
                nonpreemptible=options.nonpreemptible,
                block_network=options.block_network,
                i6pn=options.i6pn,
                scheduler=options.scheduler,
                nomad=options.nomad,
                proxy=options.proxy.name or "" if options.proxy is not None else "",
                secrets=tuple(
                    reference_of(secret, secrets) for secret in (*function.app._secrets, *options.secrets)
                ),
                max_concurrent_inputs=options.max_concurrent_inputs,
                target_concurrent_inputs=options.target_concurrent_inputs,
                batch_max_size=options.batch_max_size,
                batch_wait_ms=options.batch_wait_ms,
                volumes=tuple(
                    volume._mount(path) for path, volume in volumes_in(_mounts_of(function)).items()
                ),
                buckets=tuple(
                    bucket._mount(path, reference_of(bucket.secret, secrets) if bucket.secret else None)
                    for path, bucket in buckets_in(_mounts_of(function)).items()
                ),
                network_file_systems=tuple(
                    NfsMount(path, nfs._object_id or "") for path, nfs in options.network_file_systems.items()
                ),
                enable_memory_snapshot=options.enable_memory_snapshot,
                restrict_modal_access=options.restrict_modal_access,
                schedule=options.schedule,
                web=replace(options.web, dev_suffix=dev_suffix) if options.web is not None else None,
                **_of_class(app, info.name, dev_suffix),
            )
        )
    return specs, contents


def _with_mounts(image: ImageSpec, mounts: Sequence[Mount]) -> tuple[ImageSpec, dict[str, os.PathLike[str]]]:
    if not mounts:
        return image, {}
    from .mount import with_mounts

    files, contents = with_mounts(image.files, mounts)
    return replace(image, files=files), contents


async def hydrate_storage(app: App, client: Client, environment: str | None) -> None:
    """Find what an App's Functions have mounted on the server; what names no environment in the App's own."""
    for function in app.registered_functions.values():
        for volume in volumes_in(_mounts_of(function)).values():
            await volume._hydrate_in(client, environment)
        for nfs in _options(function).network_file_systems.values():
            await nfs._hydrate_in(client, environment)
        for storage in image_of(function)._storage():
            await storage._hydrate_in(client, environment)
        proxy = _options(function).proxy
        if proxy is not None:
            await proxy._hydrate_in(client, environment)


def _mounts_of(function: Function[..., Any]) -> Mapping[str, Volume | CloudBucketMount]:
    own, of_app = _options(function).volumes, function.app._volumes
    if not own or not of_app:
        return own or of_app
    return check_once({**of_app, **own})


async def send(client: Client, publication: Publication) -> dict[str, Any]:
    """Upload what the server lacks, then publish; runs on the library's loop."""
    await upload_missing(client, publication.contents)
    reply = dict(await client._request("app.publish", dict(publication.args)))
    if reply.get("web_urls"):
        reply["web_urls"] = await usable(reply["web_urls"])
    return reply


async def plan(
    app: App, *, name: str | None = None, client: Client | None = None, environment_name: str | None = None
) -> list[dict[str, Any]]:
    """Return what a deployment would change, one entry per Nomad job; changes nothing."""
    client = client or await _default_client()
    name, environment = _deploy_name(app, name), environment_of(environment_name)
    secrets = await io(secret_references(client, app, name, environment, dry=True))
    publication = prepare(
        app,
        client.server.render,
        state="deployed",
        name=name,
        environment=environment,
        secrets=secrets,
        images=await built(app, client, environment, secrets, dry=True),
    )
    reply = await io(client._request("app.plan", dict(publication.args)))
    return list(reply["plans"])


plan_app = blocking_function(plan)


@blocking_function
async def image_names(
    app: App, client: Client, environment_name: str | None = None
) -> dict[Image, PublishedImage]:
    """Finish every Image of an App by the names that the server has for them; nothing is built."""
    return await built(app, client, environment_of(environment_name), None, dry=True)


@blocking_function
async def deploy_app(
    app: App,
    name: str | None = None,
    namespace: Any = None,
    client: Client | None = None,
    environment_name: str | None = None,
    tag: str = "",
) -> DeployResult:
    """Deploy an App: it stays until it is stopped, and other programs find it by its name.

    Args:
        app: the App.
        name: the name to deploy under; by default the App's own.
        namespace: accepted for older programs, of no effect.
        client: the client to use.
        environment_name: the environment to deploy to.
        tag: a word for the deployment's history, such as a version.

    Raises:
        InvalidError: when neither the App nor ``name`` gives a name.
    """
    name = _deploy_name(app, name)
    client = client or await _default_client()
    environment = environment_of(environment_name)
    await hydrate_storage(app, client, environment)
    secrets = await io(secret_references(client, app, name, environment))
    publication = prepare(
        app,
        client.server.render,
        state="deployed",
        name=name,
        environment=environment,
        tag=tag,
        secrets=secrets,
        images=await built(app, client, environment, secrets),
    )
    reply = await io(send(client, publication))
    app._published(reply, client)
    for text in reply.get("warnings", ()):
        from .exception import ServerWarning

        warnings.warn(text, ServerWarning, stacklevel=2)
    return DeployResult(
        app_id=reply["app_id"],
        app_page_url=reply.get("url", ""),
        app_logs_url=reply.get("logs_url", ""),
        warnings=list(reply.get("warnings", ())),
        web_urls=dict(reply.get("web_urls", {})),
    )


async def _default_client() -> Client:
    from .client import Client

    return await Client.from_env.aio()


def _deploy_name(app: App, name: str | None) -> str:
    chosen = name or app.name
    if not chosen:
        raise InvalidError("This App has no name to deploy under; say App('my-app') or give name=")
    return check_object_name("App", chosen)


def _of_class(app: App, name: str, dev_suffix: str) -> dict[str, Any]:
    found = next((c for c in app.registered_classes.values() if c._service.tag == name), None)
    if found is None or found._info is None:
        return {}
    info = found._info
    return {
        "is_class": True,
        "methods": {
            key: replace(spec, web=replace(spec.web, dev_suffix=dev_suffix)) if spec.web is not None else spec
            for key, spec in info.method_specs().items()
        },
        "parameters": info.parameters,
        "own_init": info.own_init,
        "needs_parameters": info.needs_parameters,
    }


def _options(function: Function[..., Any]) -> FunctionOptions:
    # Only Functions found by name have none, and those are in no App here.
    assert function._options is not None
    return function._options


def _pickled(name: str, raw_f: Any) -> bytes:
    from .wire.serialization import dumps_function

    data = dumps_function(raw_f)
    if len(data) > MAX_PICKLE_BYTES:
        raise InvalidError(
            f"Function {name} has a pickled size of {len(data) >> 20} MiB; at most {MAX_PICKLE_BYTES >> 20} "
            "MiB can travel: load large objects inside the function"
        )
    if len(data) > RECOMMENDED_PICKLE_BYTES:
        warnings.warn(
            f"Function {name} has a pickled size of {len(data) >> 10} KiB, larger than the recommended limit "
            f"of {RECOMMENDED_PICKLE_BYTES >> 10} KiB; load large objects inside the function",
            stacklevel=2,
        )
    return data


def _deployer() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid-{os.getuid()}"
