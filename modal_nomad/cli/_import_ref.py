"""``FILE.py[::name]`` and dotted references: import the user's module, find what is meant in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import typer

from modal_nomad.cli._class_method import ClassMethod, method_named, methods_of
from modal_nomad.cli._errors import CommandError, UsageError, user_code


@dataclass(frozen=True)
class ImportRef:
    """A parsed reference: a file or a dotted module, and the name inside it (may be empty)."""

    target: str
    name: str = ""
    is_module: bool = False


@dataclass(frozen=True)
class Runnable:
    """Something ``run`` can start: an entry point or a Function, its App, and the names it answers to."""

    names: tuple[str, ...]
    app: Any
    target: Any
    is_entrypoint: bool

    @property
    def label(self) -> str:
        """All names of it, as the list of choices shows them."""
        return " / ".join(self.names)


class _Program(SourceFileLoader):
    """Runs a file from its text, as Python runs a program: what was compiled in this second may be older."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def parse_ref(text: str, is_module: bool = False) -> ImportRef:
    """Take a reference apart; ``is_module`` says that it is a dotted module path (``-m``)."""
    target, separator, name = text.partition("::")
    if not separator and ":" in target[2:]:
        before, _, after = target.rpartition(":")
        raise UsageError(f"{text}: one colon. Did you mean '{before}::{after}'?")
    if separator and not name:
        raise UsageError(f"{text}: a name must follow '::'.")
    if not target:
        raise UsageError(f"{text}: a file must stand before '::'.")
    if is_module and target.endswith(".py"):
        raise UsageError(f"{target}: -m takes a dotted module path; leave out -m for a file.")
    return ImportRef(target, name, is_module)


def import_target(ref: ImportRef) -> ModuleType:
    """Import the user's module under its stem (or dotted) name, its directory first on ``sys.path``."""
    if ref.is_module:
        return _import_dotted(ref.target)
    path = Path(ref.target)
    if not path.exists():
        if path.suffix != ".py" and Path(ref.target.replace(".", "/") + ".py").exists():
            typer.echo(f"{ref.target} is taken for a module: write '-m {ref.target}'.", err=True)
            return _import_dotted(ref.target)
        raise UsageError(f"{ref.target}: no such file.")
    if path.is_dir():
        raise UsageError(f"{ref.target} is a directory; name a Python file in it.")
    if path.suffix != ".py":
        raise UsageError(f"{ref.target}: the extension is {path.suffix or 'missing'}, expected .py.")
    _check_stem(path)
    path = path.resolve()
    directory = str(path.parent)
    if directory not in sys.path[:1]:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=_Program(path.stem, str(path)))
    if spec is None or spec.loader is None:
        raise UsageError(f"{ref.target}: Python cannot import this file.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    # Registered before it runs, as an import does: pickling and dataclasses look their module up.
    sys.modules[path.stem] = module
    try:
        with user_code():
            spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            sys.modules.pop(path.stem, None)
        else:
            sys.modules[path.stem] = before
        raise
    return module


def _check_stem(path: Path) -> None:
    # Under this name the file would be imported here and in containers, in the other module's place.
    stem = path.stem
    if stem in ("modal", "modal_nomad"):
        raise UsageError(
            f"{path.name} would hide the package {stem} from itself: give the file another name."
        )
    if stem not in sys.stdlib_module_names:
        return
    # With all that a run needs loaded, what is loaded is what must not be replaced.
    for needed in ("concurrent.futures.thread", "modal_nomad.runner", "modal_nomad.wire.connection"):
        importlib.import_module(needed)
    if stem in sys.modules:
        raise UsageError(f"{path.name} would hide Python's own module {stem}: give the file another name.")


def _import_dotted(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError as exc:
        raise UsageError(f"{name}: no module named {exc.name}.") from None
    except (ValueError, ImportError) as exc:
        raise UsageError(f"{name}: {exc}.") from None
    if found is None:
        raise UsageError(f"{name}: no such module.")
    with user_code():
        return importlib.import_module(name)


def find_apps(module: ModuleType) -> dict[str, Any]:
    """Return the Apps among a module's variables, in order of definition, by variable name."""
    from modal_nomad.app import App

    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def choose_app(module: ModuleType, ref: ImportRef) -> Any:
    """Return the App that ``deploy`` and ``render`` mean: ``::name``, else the variable ``app``."""
    from modal_nomad.app import App

    wanted = ref.name or "app"
    value: Any = module
    for part in wanted.split("."):
        value = getattr(value, part, None)
        if value is None:
            break
    if isinstance(value, App):
        return value
    others = ", ".join(find_apps(module)) or "none"
    if value is not None:
        raise UsageError(f"{ref.target}::{wanted} is not a Modal App. Apps in it: {others}.")
    advice = "" if ref.name else f" Name one with '{ref.target}::VARIABLE'."
    raise UsageError(f"{ref.target} has no App named '{wanted}'. Apps in it: {others}.{advice}")


def list_runnables(apps: Mapping[str, Any]) -> list[Runnable]:
    """Return every entry point and Function of some Apps with the names it answers to."""
    found: list[Runnable] = []
    for variable, app in apps.items():
        web = set(app.registered_web_endpoints)
        for name, entrypoint in app.registered_entrypoints.items():
            found.append(Runnable((name, f"{variable}.{name}"), app, entrypoint, True))
        for name, function in app.registered_functions.items():
            if name not in web and not name.endswith(".*"):
                found.append(Runnable((name, f"{variable}.{name}"), app, function, False))
        for name, method in methods_of(app).items():
            if name not in web:
                found.append(Runnable((name, f"{variable}.{name}"), app, method, False))
    return found


def choose_runnable(
    apps: Mapping[str, Any], ref: ImportRef, namespace: Mapping[str, Any] | None = None
) -> Runnable:
    """Apply the inference rules of ``run``: an exact name, a prefix of one, or the only candidate.

    ``namespace`` holds the module's variables, for classes with other options: only their names find them.
    """
    if not apps:
        raise UsageError(f"{ref.target} defines no App. Create one with 'app = modal.App(\"name\")'.")
    every = list_runnables(apps)
    if not every:
        raise UsageError(f"{ref.target} has no function or local entry point to run.")
    candidates = every
    if ref.name:
        candidates = [r for r in every if ref.name in r.names]
        other = method_named(namespace or {}, ref.name) if not candidates else None
        if other is not None:
            return Runnable((ref.name,), other[0], other[1], False)
        if not candidates:
            prefix = ref.name + "."
            candidates = [r for r in every if any(n.startswith(prefix) for n in r.names)]
        if not candidates:
            raise UsageError(f"{ref.target} has nothing named '{ref.name}'. It has:{_choices(every)}")
    distinct = _without_repeats(candidates)
    if len(distinct) == 1:
        return distinct[0]
    entrypoints = [r for r in distinct if r.is_entrypoint]
    if len(entrypoints) == 1:
        return entrypoints[0]
    raise CommandError(
        f"{ref.target} has several things to run; name one as '{ref.target}::NAME':{_choices(distinct)}"
    )


def _without_repeats(candidates: list[Runnable]) -> list[Runnable]:
    """Drop what is reachable twice: one App under two variables, or one included in another."""
    kept: dict[Any, Runnable] = {}
    for candidate in candidates:
        # A method is looked at anew for each App that lists it: its label tells it from others.
        key = candidate.names[0] if isinstance(candidate.target, ClassMethod) else id(candidate.target)
        kept.setdefault(key, candidate)
    return list(kept.values())


def _choices(runnables: list[Runnable]) -> str:
    return "".join(f"\n  {r.label}" for r in runnables)
