"""Classes of the started script, sent by name: the reader's own class of that name is the one that arrives.

Imported only when a value holds such a class, because it imports cloudpickle.
"""

import ast
import functools
import io
import pickle
import sys
from typing import Any, Optional

import cloudpickle  # type: ignore[import-untyped]

from .main_module import NAMES, import_name, named_in


def dumps(value: Any, home: str = "") -> bytes:
    """Serialize a value with cloudpickle, the script's classes by name.

    Args:
        value: what to serialize.
        home: the module that the reader is sure to have loaded; classes of other names carry a copy.
    """
    with io.BytesIO() as file:
        _Pickler(file, home).dump(value)
        return file.getvalue()


def script_class(module: str, qualname: str, copy: Optional[bytes]) -> Any:
    """Return the class of a module that is loaded here, else the copy that came along.

    The module is not imported for it: a script that is not part of the reader's program must not run.
    """
    found = named_in(sys.modules.get(module), qualname)
    if isinstance(found, type):
        return found
    if copy is None:
        raise AttributeError(
            f"there is no class {qualname} in module {module} here; define it at the top level of the module"
        )
    return pickle.loads(copy)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: Any, home: str) -> None:
        super().__init__(file, protocol=5)
        self._home = home

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and obj.__module__ in NAMES:
            module, file = import_name(obj.__module__)
            # A class that was made inside a function, or that another one replaced, has no name to go by.
            if file is not None and named_in(sys.modules[obj.__module__], obj.__qualname__) is obj:
                sure = module == self._home and not _guarded(file, obj.__qualname__.split(".")[0])
                copy = None if sure else _copy(obj)
                return script_class, (module, obj.__qualname__, copy)
        return super().reducer_override(obj)


@functools.lru_cache(maxsize=16)
def _guarded(file: str, name: str) -> bool:
    """Tell whether a script may define a name under ``if __name__ == "__main__":``; no import has it then."""
    try:
        with open(file, "rb") as source:
            body = ast.parse(source.read()).body
    except (OSError, SyntaxError):
        # Edited while it runs.
        return True
    guards = [x for x in body if isinstance(x, ast.If) and "__name__" in ast.dump(x.test)]
    for node in (node for guard in guards for node in ast.walk(guard)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            return True
    return False


def _copy(cls: Any) -> Optional[bytes]:
    try:
        return bytes(cloudpickle.dumps(cls, 5))
    except Exception:
        # A method may use what cannot be pickled; the reader may still have the class itself.
        return None
