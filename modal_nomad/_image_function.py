"""The step of an Image that runs a function of the user's while it is built."""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._function_info import FunctionInfo, function_info
from ._image_resolved import Contents, Resolved
from ._secret_refs import reference_of
from ._volume_mounts import buckets_in, volumes_in
from .exception import InvalidError
from .wire.mounts import NfsMount, SecretRef
from .wire.spec import FunctionSpec, ImageLayer, content_key

if TYPE_CHECKING:
    from ._options import FunctionOptions
    from .network_file_system import NetworkFileSystem
    from .secret import Secret
    from .volume import Volume

MAX_ARGUMENT_BYTES = 2 << 20


@dataclass(frozen=True)
class FunctionStep:
    """A function to run as a Function of its own; what it changes in the file system is the layer.

    Attributes:
        raw_f: the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        options: what its container has, as ``app.function`` takes it.
        step: the method that stated it, for messages.
        kind: as ``wire.spec.ImageLayer`` has it.
    """

    raw_f: Callable[..., Any]
    options: FunctionOptions = field(hash=False)
    args: tuple[Any, ...] = field(default=(), hash=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    step: str = "run_function"
    kind: str = "function"

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Whose variables it sees, with those of its buckets."""
        of_buckets = (bucket.secret for bucket in buckets_in(self.options.volumes).values())
        return (*self.options.secrets, *(secret for secret in of_buckets if secret is not None))

    @property
    def storage(self) -> list[Volume | NetworkFileSystem]:
        """What it sees that the server has to know before."""
        volumes = volumes_in(self.options.volumes)
        return [*volumes.values(), *self.options.network_file_systems.values()]

    def definition(self) -> Any:
        """Return what makes two steps the same one, on every machine."""
        return [self.kind, getattr(self.raw_f, "__qualname__", "")]

    def resolve(self, known: Mapping[Secret, SecretRef] | None) -> Resolved:
        """Pack the function, its code and its arguments.

        Args:
            known: where each Secret is; None knows those alone that the server has anyway.

        Raises:
            InvalidError: the arguments are too large to travel.
        """
        from . import _automount
        from .config import config
        from .wire.serialization import dumps, dumps_function

        info, given = _info(self.raw_f), self.options
        contents = Contents()
        code = _automount.bundle([info], config["automount"]) if given.include_source else None
        if code is not None:
            contents[code.sha256] = code.data
        pickled = dumps_function(info.raw_f) if info.serialized else None
        blob = _keep(contents, pickled) if pickled is not None else None
        arguments = dumps((self.args, dict(self.kwargs)))
        if len(arguments) > MAX_ARGUMENT_BYTES:
            raise InvalidError(
                f"the arguments of run_function({info.name}) have a pickled size of {len(arguments) >> 10}"
                f" KiB; at most {MAX_ARGUMENT_BYTES >> 10} KiB can travel: load large objects inside it"
            )
        spec = FunctionSpec(
            app="",
            name=info.name,
            module=info.module,
            qualname=info.qualname,
            file=code.file_of(info.module) if code is not None and info.module else None,
            serialized=info.serialized,
            function_blob=blob,
            code_bundle=code.sha256 if code is not None else None,
            env=given.env,
            cpu=given.cpu,
            memory=given.memory,
            gpu=given.gpu,
            timeout=given.timeout,
            region=given.region,
            cloud=given.cloud,
            nomad=given.nomad,
            secrets=tuple(reference_of(secret, known) for secret in given.secrets),
            volumes=tuple(volume._mount(path) for path, volume in volumes_in(given.volumes).items()),
            buckets=tuple(
                bucket._mount(path, reference_of(bucket.secret, known) if bucket.secret else None)
                for path, bucket in buckets_in(given.volumes).items()
            ),
            network_file_systems=tuple(
                NfsMount(path, nfs._object_id or "") for path, nfs in given.network_file_systems.items()
            ),
        )
        plain = FunctionSpec("", "").to_dict()
        options = {
            "key": _key(info, arguments, given),
            "function": {name: value for name, value in spec.to_dict().items() if value != plain[name]},
            "arguments": _keep(contents, arguments),
        }
        return Resolved(ImageLayer(self.kind, (), options), contents)


def check_function(raw_f: Any) -> None:
    """Refuse what cannot be run as a build step. Raises InvalidError."""
    if getattr(raw_f, "__name__", "") == "<lambda>":
        raise InvalidError(
            "run_function got a lambda: define the function with def, at the top of its module"
        )
    if not inspect.isroutine(raw_f):
        raise InvalidError(f"run_function got {raw_f!r}; give a plain function, without @app.function()")


def _info(raw_f: Callable[..., Any]) -> FunctionInfo:
    # One inside of a function, or of a prompt, travels itself.
    return function_info(raw_f, serialized="<locals>" in getattr(raw_f, "__qualname__", ""))


def _keep(contents: Contents, data: bytes) -> str:
    sha = hashlib.sha256(data).hexdigest()
    contents[sha] = data
    return sha


def _key(info: FunctionInfo, arguments: bytes, given: FunctionOptions) -> str:
    """Return what a change of builds the layer anew.

    It is the source, the arguments, the globals that it names, whether it has GPUs, and which Volumes and
    buckets it sees, not what they hold.
    """
    try:
        source = inspect.getsource(info.raw_f)
    except (OSError, TypeError):
        source = info.raw_f.__code__.co_code.hex()
    found = sorted(set(_globals(info.raw_f)))
    shown = (*given.volumes.items(), *given.network_file_systems.items())
    places = [[path, _called(x)] for path, x in shown]
    more = [x for x in (places, bool(given.gpu)) if x]
    return content_key([source, hashlib.sha256(arguments).hexdigest(), found, *more])


def _called(shown: Any) -> str:
    return getattr(shown, "bucket_name", "") or shown._name or shown._object_id or ""


def _globals(function: Any) -> Iterator[tuple[str, str]]:
    from .wire.serialization import dumps

    names = set(_names(function.__code__))
    for name in names & set(function.__globals__):
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType) or callable(value):
            continue
        try:
            yield name, hashlib.sha256(dumps(value)).hexdigest()
        except Exception:
            # What cannot be told apart is the same.
            yield name, type(value).__name__


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
