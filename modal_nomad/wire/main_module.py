"""The script that was started: ``__main__`` here, a module with a name of its own everywhere else."""

import os
import sys
from typing import Any, Optional, Tuple

NAMES = ("__main__", "__mp_main__")
"""What the started script is called in its own process, and in those that multiprocessing spawned."""


def module_file(module: Any) -> Optional[str]:
    """Return the real source file of a loaded module, or None where it has none (a REPL, a notebook)."""
    path = getattr(module, "__file__", None)
    return os.path.realpath(path) if path and os.path.isfile(path) else None


def import_name(module_name: str) -> Tuple[str, Optional[str]]:
    """Return the name that imports a loaded module in a container, and its file here.

    ``__main__`` of ``python -m pkg.mod`` is ``pkg.mod``; of ``python script.py`` it is ``script``; of a
    REPL it is ``__main__`` without a file.
    """
    module = sys.modules.get(module_name)
    file = module_file(module)
    if module_name not in NAMES or file is None:
        return module_name, file
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name and spec.name not in NAMES:
        return str(spec.name), file
    return os.path.splitext(os.path.basename(file))[0], file


def alias_main() -> None:
    """Let the script's import name mean the script itself, so that loading a value never runs it again.

    What a container sends back names the script's classes by that name.
    """
    name, file = import_name("__main__")
    # A console script has no .py, and often the name of the library that it starts.
    if file is not None and file.endswith(".py"):
        sys.modules.setdefault(name, sys.modules["__main__"])


def named_in(module: Any, qualname: str) -> Any:
    """Return what stands at a dotted name in a module, or None."""
    for part in qualname.split("."):
        module = getattr(module, part, None)
    return module
