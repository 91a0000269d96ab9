"""Values and exceptions as bytes.

Plain values take the C pickler; what it cannot do, or would do by a reference that only this process
can resolve, takes cloudpickle. Classes of the started script (``__main__``) go by the name that imports
it elsewhere. An exception travels as itself, with its remote traceback as data, its
notes and its chain of causes; one whose constructor does not take its ``args`` is put together without
it; one that cannot be loaded arrives as ExecutionError with its text.
"""

import contextlib
import pickle
import sys
from typing import Any, Dict, List, Optional

_plain_dumps = pickle.dumps
loads_value = pickle.loads


def dumps(value: Any, home: str = "") -> bytes:
    """Serialize a value.

    Args:
        value: what to serialize.
        home: the module that the reader is sure to have loaded, where one is known: values of the
            started script's classes are small then.

    Raises:
        SerializationError: it cannot be; the text names the type.

    Example:
        >>> loads(dumps({"a": 1}))
        {'a': 1}
    """
    try:
        data = _plain_dumps(value, 5)
        # By reference into __main__ (or multiprocessing's __mp_main__), or to a module registered by
        # value, would not load elsewhere.
        if b"main__" not in data and not _by_value_modules():
            return data
    except Exception:
        pass
    from . import _main_classes

    try:
        return _main_classes.dumps(value, home)
    except Exception as error:
        raise _unpicklable(value, error) from error


def dumps_function(function: Any) -> bytes:
    """Serialize a function that no module of the reader has: it and what it refers to, by value.

    Raises:
        SerializationError: it cannot be; the text names the type.
    """
    import cloudpickle  # type: ignore[import-untyped]

    try:
        return bytes(cloudpickle.dumps(function, 5))
    except Exception as error:
        raise _unpicklable(function, error) from error


def _unpicklable(value: Any, error: Exception) -> Exception:
    from ..exception import InvalidError, SerializationError

    if isinstance(error, InvalidError):
        # One of our own objects says why it cannot travel.
        return error
    return SerializationError(
        f"a value of type {type(value).__qualname__} cannot be pickled: {error}; pass plain data, "
        "or open files, locks and connections inside the function"
    )


def loads(data: bytes) -> Any:
    """Load a value.

    Raises:
        DeserializationError: it cannot be loaded here; the text names what is missing.
    """
    try:
        return loads_value(data)
    except Exception as error:
        from ..exception import DeserializationError

        if isinstance(error, ModuleNotFoundError):
            text = f"module {error.name!r} is not installed here; add it to this side's environment"
        else:
            text = f"{type(error).__name__}: {error}"
        raise DeserializationError(f"a value cannot be loaded: {text}") from error


class _Plain(pickle.Unpickler):
    """Loads what is made of the pickle format alone, and of no class or function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def loads_plain(data: bytes) -> Any:
    """Load strings, numbers, bytes, lists and dicts; for who must run nothing of a value's author.

    Raises:
        ValueError: it is anything else.

    Example:
        >>> loads_plain(dumps(["a", 1]))
        ['a', 1]
    """
    import io

    try:
        return _Plain(io.BytesIO(data)).load()
    except Exception as error:
        raise ValueError(f"the value is not plain: {error}") from None


def exception_text(data: bytes) -> str:
    """Return what Python would say of an exception that ``pack_exception`` made, with its traceback.

    Raises:
        ValueError: it was not made so.
    """
    try:
        return str(loads_plain(data)[0]["trace"])
    except (LookupError, TypeError) as error:
        raise ValueError(f"the exception is malformed: {error!r}") from None


def _by_value_modules() -> bool:
    module = sys.modules.get("cloudpickle")
    if module is None:
        return False
    # Its public twin copies the set, at every input of a map.
    return bool(getattr(module.cloudpickle, "_PICKLE_BY_VALUE_MODULES", ()))


def pack_exception(error: BaseException) -> bytes:
    """Serialize an exception with its traceback, notes and chain of causes."""
    import traceback

    from . import tracebacks

    links: List[Dict[str, Any]] = []
    seen: Dict[int, int] = {}

    def add(item: BaseException) -> int:
        if id(item) in seen:
            return seen[id(item)]
        index = seen[id(item)] = len(links)
        link: Dict[str, Any] = {
            "type": f"{type(item).__module__}.{type(item).__qualname__}",
            "text": _text(item),
            "frames": tracebacks.pack(item.__traceback__),
            "trace": "".join(traceback.format_exception(type(item), item, item.__traceback__)),
            "suppress": item.__suppress_context__,
            "notes": [str(n) for n in getattr(item, "__notes__", ())],
        }
        links.append(link)
        _pack_itself(item, link)
        for name in ("cause", "context"):
            other = getattr(item, f"__{name}__")
            link[name] = add(other) if other is not None else None
        return index

    add(error)
    return pickle.dumps(links, 5)


def _pack_itself(item: BaseException, link: Dict[str, Any]) -> None:
    link["pickle"] = None
    try:
        data = dumps(item)
        loads_value(data)
    except Exception as failure:
        link["why"] = f"{type(failure).__name__}: {failure}"
        # Most often an ``__init__`` of other parameters than ``args``: the parts do without it.
        with contextlib.suppress(Exception):
            parts = dumps((type(item), item.args, dict(vars(item))))
            _from_parts(*loads_value(parts))
            link["parts"] = parts
    else:
        link["pickle"] = data


def _from_parts(kind: Any, args: Any, state: Dict[str, Any]) -> BaseException:
    error: BaseException = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


def unpack_exception(data: bytes) -> BaseException:
    """Load what ``pack_exception`` made; never raises for an exception that cannot be loaded."""
    from ..exception import ExecutionError

    try:
        links = loads_value(data)
        errors = [_rebuild(link) for link in links]
    except Exception as failure:
        return ExecutionError(f"the function failed with an exception that cannot be read here: {failure!r}")
    for position, error in enumerate(errors):
        link = links[position]
        cause, context = link["cause"], link["context"]
        if cause is not None:
            error.__cause__ = errors[cause]
        if context is not None:
            error.__context__ = errors[context]
        error.__suppress_context__ = link["suppress"]
    return errors[0]


def _rebuild(link: Dict[str, Any]) -> BaseException:
    from ..exception import ExecutionError
    from . import tracebacks

    error: Optional[BaseException] = None
    why = link.get("why", "")
    try:
        if link["pickle"] is not None:
            error = loads_value(link["pickle"])
        elif "parts" in link:
            error = _from_parts(*loads_value(link["parts"]))
    except Exception as failure:
        why = f"{type(failure).__name__}: {failure}"
    if not isinstance(error, BaseException):
        error = ExecutionError(
            f"{link['type']}: {link['text']}\n(the exception cannot be loaded here: {why})\n{link['trace']}"
        )
    elif link["notes"] and not getattr(error, "__notes__", None) and hasattr(error, "add_note"):
        for note in link["notes"]:
            error.add_note(note)
    # A place that no code can have costs the traceback: the error itself matters more.
    with contextlib.suppress(Exception):
        error.__traceback__ = tracebacks.unpack(link["frames"]) or error.__traceback__
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be had)"
