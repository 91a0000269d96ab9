"""One version of a served App: imported and prepared in a process of its own, which then ends.

A module that is imported again in the same process keeps what its last version left behind, and a file that
does not parse must not end what is being served.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_nomad.cli import _errors

if TYPE_CHECKING:
    from modal_nomad.app import App
    from modal_nomad.runner import Publication


@dataclass(frozen=True)
class Order:
    """What a process is to build.

    Attributes:
        reference: ``FILE.py``, ``FILE.py::VARIABLE`` or a dotted module path.
        is_module: it is the latter.
        environment: where the App runs; None is the server's default.
        suffix: tells its jobs from those of others.
        replacing: the id of the running App, of the first version None.
        path: what modules are looked for in.
    """

    reference: str
    is_module: bool
    environment: str | None
    suffix: str
    replacing: str | None
    path: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """What became of it.

    Attributes:
        publication: what is to be sent; None when it failed, and why is on its stderr.
        sources: the files that were imported.
        contents: other files that containers are to have.
        functions: what the App has: kind and name.
        warnings: lines that the user should see.
        read: the files of the user's that were to be imported, as they were when they were read.
    """

    publication: Publication | None = None
    sources: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = field(default=())
    read: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)


def main() -> None:
    """Build what the first argument says, in JSON, and write it to the descriptor in the second one."""
    order = Order(**json.loads(sys.argv[1]))
    result = int(sys.argv[2])
    os.set_inheritable(result, False)
    sys.path[:] = order.path
    sys.argv[:] = [order.reference]
    read = _note_reading()
    try:
        built = _build(order)
    except BaseException as error:
        code = _said(error)
        built = Built(sources=tuple(_imported()))
    else:
        code = 0
    built = replace(built, read=_users(read))
    sys.stdout.flush()
    with open(result, "wb") as file:
        pickle.dump(built, file)
    # What the module has started (threads, children) is of no use without the rest of a program.
    sys.stderr.flush()
    os._exit(code)


def _build(order: Order) -> Built:
    import warnings

    from modal_nomad.cli.deploy import load_app

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        app = load_app(order.reference, order.is_module)
        if app.name is None and not app._description:
            app.set_description(Path(order.reference.partition("::")[0]).name)
        publication, files = _prepare(app, order)
    functions = []
    for name in app.registered_functions:
        of_class = name.endswith(".*")
        functions.append(("class" if of_class else "function", name[:-2] if of_class else name))
    from modal_nomad import _automount

    infos = [function.info for function in app.registered_functions.values()]
    return Built(
        publication,
        (*_imported(), *_automount.shipped_files(infos).values()),
        files,
        tuple(functions),
        tuple(str(x.message) for x in caught),
    )


def _prepare(app: App, order: Order) -> tuple[Publication, tuple[str, ...]]:
    """Return the App as it is to be published, and the local files that its Images and Mounts add."""
    from modal_nomad._bridge import io, run_blocking
    from modal_nomad._image_publish import built
    from modal_nomad._output import enable_output
    from modal_nomad.client import Client
    from modal_nomad.runner import environment_of, hydrate_storage, prepare, secret_references

    environment = environment_of(order.environment)

    async def body() -> tuple[Publication, tuple[str, ...]]:
        client = await Client.from_env.aio()
        await hydrate_storage(app, client, environment)
        secrets = await io(secret_references(client, app, None, environment))
        with enable_output():
            images = await built(app, client, environment, secrets)
        publication = prepare(
            app,
            client.server.render,
            state="ephemeral",
            name=None,
            environment=environment,
            secrets=secrets,
            images=images,
            replacing=order.replacing,
            suffix=order.suffix,
        )
        files = [os.fspath(x) for x in publication.contents.values() if isinstance(x, os.PathLike)]
        lists = [listed for image in images.values() for listed in image.contents.lists]
        return publication, (*files, *(path for listed in lists for path in listed.paths))

    made: tuple[Publication, tuple[str, ...]] = run_blocking(body())
    return made


def _said(error: BaseException) -> int:
    """Print why there is no new version, and return the exit code."""
    if isinstance(error, SystemExit):
        sys.stderr.write(f"Error: the file ended the program by itself (exit code {error.code}).\n")
        return _errors.FAILURE
    if _errors.belongs_to_typer(error):
        traceback.print_exception(error)
        return _errors.FAILURE
    return _errors.report(error)


def _imported() -> Iterable[str]:
    from modal_nomad import _automount

    return _automount.local_modules().values()


def _users(read: dict[str, tuple[int, ...] | None]) -> dict[str, tuple[int, ...] | None]:
    from modal_nomad import _automount

    return {file: stamp for file, stamp in read.items() if _automount.is_local(file)}


def _note_reading() -> dict[str, tuple[int, ...] | None]:
    """Note what each file was like when it was read, from now on, whatever becomes of it as a module."""
    from importlib.machinery import SourceFileLoader

    from modal_nomad.cli._watched import stamp

    read: dict[str, tuple[int, ...] | None] = {}
    stats = SourceFileLoader.path_stats

    def noting(loader: SourceFileLoader, path: str) -> Any:
        file = os.path.abspath(path)
        # Of one that is read twice, too: what was made of the first reading may still be in use.
        read.setdefault(file, stamp(file))
        return stats(loader, path)

    SourceFileLoader.path_stats = noting  # type: ignore[method-assign, assignment]
    return read
