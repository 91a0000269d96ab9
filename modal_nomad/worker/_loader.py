"""Find the user's function: prepare the process as its specification says, import, unwrap."""

import os
import sys
from typing import Any, Callable, Mapping, Optional, Sequence

from ..exception import ExecutionError, InvalidError, NotFoundError
from ..wire.spec import FunctionSpec

FetchBlob = Callable[[str], bytes]
FetchBlobs = Callable[[Sequence[str]], Mapping[str, bytes]]


def place_files(spec: FunctionSpec, fetch: FetchBlobs, *shown: Any, buckets: Any = None) -> None:
    """Put the image's files, the working directory, Volumes, NetworkFileSystems and buckets in place.

    To be called while the process has one thread.
    """
    files, workdir = spec.image.files, spec.image.workdir
    absent = [workdir] if workdir and not os.path.isdir(workdir) else []
    binds = [bind for each in shown for bind in each.binds()]
    if buckets is not None:
        binds += buckets.binds()
        absent += buckets.paths()
    if not files and not absent and not binds:
        return
    from .files import import_roots, place

    put: Any = place
    if os.environ.get("MODAL_CONTAINER_RUNTIME"):
        from ._own_files import put
    try:
        put(files, fetch, directories=absent, binds=binds)
    except ExecutionError as error:
        # A user who may not have a view of his own may still make a directory, or a link.
        if files or buckets is not None:
            raise
        for each in shown:
            each.link(error)
    if buckets is not None:
        buckets.mount()
    sys.path.extend(root for root in import_roots(files) if root not in sys.path)


def prepare(spec: FunctionSpec, code_dir: Optional[str], runtime_dir: Optional[str]) -> None:
    """Set environment variables, working directory and ``sys.path`` before user code is imported."""
    for name, value in spec.image.env.items():
        # What differs from it by now is a Secret's.
        os.environ.setdefault(name, value)
    os.environ.update(spec.env)
    if spec.image.workdir:
        _enter(spec.image.workdir)
    if runtime_dir and runtime_dir not in sys.path:
        sys.path.append(runtime_dir)
    if code_dir:
        while code_dir in sys.path:
            sys.path.remove(code_dir)
        sys.path.insert(0, code_dir)
    from .._alias import install

    install()


def _enter(directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
        os.chdir(directory)
    except OSError as error:
        raise InvalidError(
            f"the image's workdir {directory!r} cannot be used here: {error.strerror}; "
            "choose one that the container's user may write"
        ) from error


def load_function(spec: FunctionSpec, code_dir: Optional[str], fetch: FetchBlob) -> Callable[..., Any]:
    """Import or unpickle the function that ``spec`` names.

    Raises:
        InvalidError: the specification names nothing that can be called.
        NotFoundError: the module has no such function.
        BaseException: whatever the user's module raises when it is imported.
    """
    found: Any
    if spec.serialized:
        if not spec.function_blob:
            raise InvalidError(
                f"the serialized function {spec.name} came without its pickle; deploy it again"
            )
        from ..wire.serialization import loads

        found = loads(fetch(spec.function_blob))
    else:
        found = _import(spec.module, spec.file, code_dir)
        for part in spec.qualname.split("."):
            if part == "<locals>":
                raise InvalidError(
                    f"{spec.qualname} stands inside a function; move it to the top of its module or use "
                    "serialized=True"
                )
            try:
                found = getattr(found, part)
            except AttributeError:
                raise NotFoundError(
                    f"module {spec.module} has no {spec.qualname}; define it at the top level, "
                    "not under a condition that is false in the container"
                ) from None
    raw = None if spec.is_class else getattr(found, "get_raw_f", None)
    if raw is not None:
        found = raw()
    if not callable(found):
        raise InvalidError(f"{spec.qualname or spec.name} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _import(name: str, file: Optional[str], code_dir: Optional[str]) -> Any:
    import importlib

    path = os.path.join(code_dir, file) if file and code_dir else None
    if path is None or "." in name or os.path.basename(path) == "__init__.py" or not os.path.exists(path):
        return importlib.import_module(name)
    # A script may bear the name of a module that is imported already, or have no .py at all: its
    # file decides, not the search path.
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    module_spec = spec_from_loader(name, SourceFileLoader(name, path))
    assert module_spec is not None and module_spec.loader is not None
    module = module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
