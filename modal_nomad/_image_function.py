"""The step of an Image that runs a function of the user's while it is built."""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ._function_info import FunctionInfo, function_info
from ._image_resolved import Contents, Resolved
from .exception import InvalidError
from .wire.spec import FunctionSpec, ImageLayer, content_key

if TYPE_CHECKING:
    from .network_file_system import NetworkFileSystem
    from .secret import Secret
    from .volume import Volume

MAX_ARGUMENT_BYTES = 2 << 20


@dataclass(frozen=True)
class FunctionStep:
    """A function to run; what it changes in the file system is the layer.

    Attributes:
        raw_f: the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        options: ``timeout`` in seconds, ``cpu``, ``memory``, ``gpu`` and ``env``.
        secrets: whose variables it sees.
        include_source: whether its module and what that imports travel along.
        volumes: the Volumes that it sees, by their paths.
        shared: the NetworkFileSystems, the same.
        step: the method that stated it, for messages.
        kind: as ``wire.spec.ImageLayer`` has it.
    """

    raw_f: Callable[..., Any]
    args: tuple[Any, ...] = field(default=(), hash=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    secrets: tuple[Secret, ...] = ()
    include_source: bool = True
    volumes: Mapping[str, Volume] = field(default_factory=dict, hash=False)
    shared: Mapping[str, NetworkFileSystem] = field(default_factory=dict, hash=False)
    step: str = "run_function"
    kind: str = "function"

    def definition(self) -> Any:
        """Return what makes two steps the same one, on every machine."""
        return [self.kind, getattr(self.raw_f, "__qualname__", "")]

    def resolve(self) -> Resolved:
        """Pack the function, its code and its arguments.

        Raises:
            InvalidError: the arguments are too large to travel.
        """
        from . import _automount
        from .config import config
        from .wire.serialization import dumps, dumps_function

        info = _info(self.raw_f)
        contents = Contents()
        code = _automount.bundle([info], config["automount"]) if self.include_source else None
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
        )
        options = {
            **self.options,
            "name": info.name,
            "key": _key(info, arguments, [self.volumes, self.shared]),
            "volumes": [asdict(volume._mount(path)) for path, volume in self.volumes.items()],
            "network_file_systems": [
                {"path": path, "nfs_id": nfs._object_id or ""} for path, nfs in self.shared.items()
            ],
            "function": {key: value for key, value in spec.to_dict().items() if key in _SENT},
            "arguments": _keep(contents, arguments),
            "code": code.sha256 if code is not None else "",
        }
        return Resolved(ImageLayer(self.kind, (), options), contents)


_SENT = ("app", "name", "module", "qualname", "file", "serialized", "function_blob")


def check_function(raw_f: Any) -> None:
    """Refuse what cannot be run as a build step. Raises InvalidError."""
    if getattr(raw_f, "__name__", "") == "<lambda>":
        raise InvalidError(
            "run_function got a lambda: define the function with def, at the top of its module"
        )
    if not inspect.isroutine(raw_f):
        raise InvalidError(f"run_function got {raw_f!r}; give a plain function, without @app.function()")


def build_volumes(given: Any) -> dict[str, Volume]:
    """Return the Volumes of a build step by their paths.

    Raises:
        InvalidError: for what is none, and for what only a Function's containers can have.
    """
    from ._volume_mounts import check_volumes, volumes_in

    found = check_volumes(given)
    volumes = volumes_in(found)
    for path, mount in found.items():
        backend: str = getattr(mount, "_backend", "")
        if path not in volumes or backend:
            raise InvalidError(
                f"run_function has {mount!r} at {path}: while an Image is built there are modal.Volumes only;"
                " take it from a Function"
            )
    return volumes


def _info(raw_f: Callable[..., Any]) -> FunctionInfo:
    # One inside of a function, or of a prompt, travels itself.
    return function_info(raw_f, serialized="<locals>" in getattr(raw_f, "__qualname__", ""))


def _keep(contents: Contents, data: bytes) -> str:
    sha = hashlib.sha256(data).hexdigest()
    contents[sha] = data
    return sha


def _key(info: FunctionInfo, arguments: bytes, shown: Sequence[Mapping[str, Any]]) -> str:
    """Return what a change of builds the layer anew.

    It is the source, the arguments, the globals that it names, and which Volumes it sees, not what they hold.
    """
    try:
        source = inspect.getsource(info.raw_f)
    except (OSError, TypeError):
        source = info.raw_f.__code__.co_code.hex()
    found = sorted(set(_globals(info.raw_f)))
    places = [[path, x._name or x._object_id or ""] for mounts in shown for path, x in mounts.items()]
    return content_key([source, hashlib.sha256(arguments).hexdigest(), found, *([places] if places else [])])


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
