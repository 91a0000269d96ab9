"""Variants of Functions: the same code with other options, or a class with constructor parameters.

A variant scales by itself. The server makes it at the first call (``function.bind``); its id follows from
what it is made of, so that asking twice, or from two processes, gives one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from ._bridge import io
from .exception import InvalidError
from .functions import Function

if TYPE_CHECKING:
    from .client import Client
    from .cloud_bucket_mount import CloudBucketMount
    from .secret import Secret
    from .volume import Volume
    from .wire.mounts import SecretRef
    from .wire.spec import FunctionSpec

    Parameters = Callable[[Client, str], Awaitable["bytes | None"]]
    # For a client and the parent's id, serialized parameters, or None where there is nothing to bind.


BOUND_SECONDS = 60.0
"""A variant is asked for again after this long: its App may have been stopped and deployed anew meanwhile."""


class VariantFunction(Function[Any, Any]):
    """A Function made from another; nothing is asked of the server until it is used."""

    _parent: Function[Any, Any]
    _overrides: Mapping[str, Any]
    _parameters: Parameters | None
    _bound: tuple[Client, str, str] | None
    _since: float

    @classmethod
    def _of(
        cls,
        parent: Function[Any, Any],
        *,
        overrides: Mapping[str, Any] | None = None,
        parameters: Parameters | None = None,
    ) -> VariantFunction:
        """Return a variant of ``parent``.

        Args:
            parent: a Function.
            overrides: fields of its specification that differ.
            parameters: makes the constructor parameters of a class.
        """
        if overrides is not None and isinstance(parent, VariantFunction) and parent._parameters is None:
            overrides = merged(parent._overrides, overrides)
            parent = parent._parent
        variant: Any = cls._new()
        variant._parent, variant._overrides, variant._parameters = parent, dict(overrides or {}), parameters
        variant._bound, variant._since = None, 0.0
        for name in ("_app", "_raw_f", "_info", "_options", "_where", "_method"):
            setattr(variant, name, getattr(parent, name))
        made: VariantFunction = variant
        return made

    def __reduce__(self) -> Any:
        if self._bound is not None:
            from .functions import _by_id

            return _by_id, (self._bound[2], self.is_generator)
        if self._parameters is not None:
            raise InvalidError(f"{self!r} cannot be passed on before it was used")
        return _unpickled, (self._parent, dict(self._overrides))

    @property
    def object_id(self) -> str:
        return self._bound[2] if self._bound is not None else super().object_id

    @property
    def is_hydrated(self) -> bool:
        return self._bound is not None

    @property
    def is_generator(self) -> bool:
        return self._parent.is_generator

    async def _target(self) -> tuple[Client, str]:
        client, parent_id = await self._parent._target()
        bound = self._bound
        stale = bound is None or bound[0] is not client or bound[1] != parent_id
        if bound is None or stale or monotonic() - self._since > BOUND_SECONDS:
            bound = self._bound = (client, parent_id, await self._bind(client, parent_id))
            self._since = monotonic()
        return client, bound[2]

    async def _bind(self, client: Client, parent_id: str) -> str:
        payload = None
        if self._parameters is not None:
            payload = await self._parameters(client, parent_id)
            if payload is None:
                return parent_id
        request: dict[str, Any] = {"function_id": parent_id}
        if self._overrides:
            request.update(await self._own_job(client, parent_id))
        return await bind(client, request, payload)

    async def _own_job(self, client: Client, parent_id: str) -> dict[str, Any]:
        from .render import RenderSettings, render_function  # type: ignore[attr-defined, unused-ignore]
        from .wire.spec import FunctionSpec, content_key

        # Asked anew, since a deployment may have changed what the options are added to.
        parent = await io(client._request("function.describe", {"function_id": parent_id}))
        overrides = dict(self._overrides)
        if "secrets" in overrides:
            overrides["secrets"] = await self._secret_references(client, parent)
        if "volumes" in overrides:
            overrides.update(await self._mounts(overrides["volumes"], client, parent))
        fields = merged(parent["spec"], overrides)
        spec = FunctionSpec.from_dict(fields)
        check_spec(spec)
        settings = RenderSettings.from_dict({**client.server.render, "environment": parent["environment"]})
        try:
            job = render_function(spec, settings)
        except ValueError as error:
            raise InvalidError(str(error)) from None
        job["ID"] = job["Name"] = f"{parent['job_id']}--{content_key(spec.to_dict())[:8]}"
        job["Namespace"] = parent["namespace"]
        return {"spec": spec.to_dict(), "job": job}

    async def _secret_references(self, client: Client, parent: Mapping[str, Any]) -> list[dict[str, Any]]:
        secrets = self._overrides["secrets"]
        if not secrets:
            return []
        from .secret import references

        found = await io(references(client, secrets, parent["spec"]["app"], parent["environment"]))
        return [dataclasses.asdict(found[secret]) for secret in secrets]

    @staticmethod
    async def _mounts(
        mounts: Mapping[str, Volume | CloudBucketMount], client: Client, parent: Mapping[str, Any]
    ) -> dict[str, Any]:
        from ._volume_mounts import buckets_in, volumes_in

        volumes, buckets = volumes_in(mounts), buckets_in(mounts)
        for volume in volumes.values():
            await volume._hydrate_in(client, parent["environment"])
        secrets = [bucket.secret for bucket in buckets.values() if bucket.secret is not None]
        found: Mapping[Secret, SecretRef] = {}
        if secrets:
            from .secret import references

            found = await io(references(client, secrets, parent["spec"]["app"], parent["environment"]))
        return {
            "volumes": [dataclasses.asdict(volume._mount(path)) for path, volume in volumes.items()],
            "buckets": [
                dataclasses.asdict(bucket._mount(path, found[bucket.secret] if bucket.secret else None))
                for path, bucket in buckets.items()
            ],
        }


def _unpickled(parent: Function[Any, Any], overrides: Mapping[str, Any]) -> VariantFunction:
    return VariantFunction._of(parent, overrides=overrides)


async def described(function: Function[Any, Any], client: Client, function_id: str) -> FunctionSpec:
    """Return a Function's specification as far as its callers need it: from here where it is known."""
    from .wire.spec import FunctionSpec

    known = function._remote_spec
    if known is None or known[0] != function_id:
        reply = await io(client._request("function.describe", {"function_id": function_id}))
        known = function._remote_spec = (function_id, FunctionSpec.from_dict(reply["spec"]))
    return known[1]


async def bind(client: Client, request: Mapping[str, Any], payload: bytes | None) -> str:
    """Return the id of a variant; a client asks once for each, now and then again."""
    from .wire.spec import content_key

    key = (content_key(dict(request)), payload)
    known = client._variants.get(key)
    if known is not None and monotonic() - known[1] <= BOUND_SECONDS:
        return known[0]
    payloads = [] if payload is None else [payload]
    reply, _ = await io(client._request_full("function.bind", request, payloads))
    found = str(reply["function_id"])
    client._variants[key] = (found, monotonic())
    return found


def merged(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a specification with others over them; environment variables add up."""
    result = {**fields, **overrides}
    if "env" in overrides:
        result["env"] = {**fields.get("env", {}), **overrides["env"]}
    return result


def overrides_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters of ``with_options`` and return the fields of a specification that they change.

    Raises:
        InvalidError: naming the parameter, what it was, and what it may be.
    """
    from ._options import function_options
    from .wire.spec import FunctionSpec

    given = {name: value for name, value in options.items() if value is not None}
    checked = function_options(**given)
    names = {f.name for f in dataclasses.fields(FunctionSpec)}
    fields = {name: getattr(checked, name) for name in given if name in names}
    if "allow_concurrent_inputs" in given:
        fields["max_concurrent_inputs"] = checked.max_concurrent_inputs
    # Not among the plain ones: which Volumes these are, and where Secrets are, turns out when they are used.
    # None of them asks for nothing: options add, they do not take away.
    later = {name: value for name in ("secrets", "volumes") if (value := fields.pop(name, None))}
    plain = FunctionSpec("", "", **fields).to_dict()
    return {**{name: plain[name] for name in fields}, **later}


def check_spec(spec: FunctionSpec) -> None:
    """Check what only parent and options together show. Raises InvalidError."""
    if spec.max_containers is not None and spec.min_containers > spec.max_containers:
        raise InvalidError(
            f"min_containers ({spec.min_containers}) of {spec.name} cannot be higher than max_containers "
            f"({spec.max_containers})"
        )
    if spec.batch_max_size and spec.is_class and len(spec.methods) != 1:
        raise InvalidError(f"{spec.name} has {len(spec.methods)} methods: only a class of one can be batched")
    if spec.batch_max_size and (spec.is_generator or any(m.is_generator for m in spec.methods.values())):
        raise InvalidError(f"{spec.name} is a generator, and cannot be batched")
