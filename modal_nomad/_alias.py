"""``import modal`` gives this package, submodules included: the very same module objects."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

ALIAS = "modal"
TARGET = "modal_nomad"


def install() -> None:
    """Put the alias first on ``sys.meta_path``. A second call changes nothing.

    It wins over an installed ``modal`` package, but leaves alone a ``modal`` that is imported already.
    """
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AliasFinder())


def uninstall() -> None:
    """Take the alias off ``sys.meta_path`` and forget the names it put into ``sys.modules``."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AliasFinder)]
    for name in [n for n in sys.modules if n == ALIAS or n.startswith(ALIAS + ".")]:
        module = sys.modules[name]
        if module is sys.modules.get(TARGET + name[len(ALIAS) :]):
            del sys.modules[name]


class _AliasFinder:
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != ALIAS and not fullname.startswith(ALIAS + "."):
            return None
        real = TARGET + fullname[len(ALIAS) :]
        # Asked before promising: an absent submodule is the import system's own ModuleNotFoundError,
        # with the name that the user wrote.
        found = sys.modules.get(real)
        if found is None:
            from importlib.util import find_spec

            if find_spec(real) is None:
                return None
        # No importlib.abc as a base: it alone would cost a container a tenth of its imports.
        loader: Any = _AliasLoader(real)
        spec = importlib.machinery.ModuleSpec(fullname, loader)
        if fullname == ALIAS or hasattr(found, "__path__"):
            spec.submodule_search_locations = []
        return spec


class _AliasLoader:
    def __init__(self, real: str) -> None:
        self.real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.real)
        # The import system writes the alias's spec, loader and package onto the module it is given:
        # what stood there is kept, and put back by exec_module.
        self.kept: dict[str, Any] = {
            name: module.__dict__[name]
            for name in ("__spec__", "__loader__", "__package__", "__path__", "__file__", "__cached__")
            if name in module.__dict__
        }
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(self.kept)
