"""``modal-nomad nfs``: NetworkFileSystems, and the files in them."""

from __future__ import annotations

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from modal_nomad.cli import _objects
from modal_nomad.cli._download import save
from modal_nomad.cli._errors import CommandError
from modal_nomad.cli._table import print_table

if TYPE_CHECKING:
    from modal_nomad.network_file_system import NetworkFileSystem

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Manage NetworkFileSystems and the files in them.",
)


@app.command("list")
def list_nfs(environment: str = _objects.ENVIRONMENT, as_json: bool = _objects.JSON) -> None:
    """List the NetworkFileSystems of an environment, newest first."""
    _objects.print_objects("nfs", environment, as_json)


@app.command()
def create(name: str = _objects.NAME, environment: str = _objects.ENVIRONMENT) -> None:
    """Create a NetworkFileSystem."""
    _objects.create("nfs", name, environment)


@app.command()
def ls(
    name: str = _objects.NAME,
    path: str = typer.Argument("/", metavar="[PATH]", help="A directory, a file or a glob, as '**/*.txt'."),
    environment: str = _objects.ENVIRONMENT,
    as_json: bool = _objects.JSON,
) -> None:
    """List a directory of a NetworkFileSystem, or what a glob matches."""
    found = _named(name, environment).listdir(path)
    rows = [
        (_objects.printable(x.path), x.type.name.lower(), _objects.moment(x.mtime), str(x.size))
        for x in found
    ]
    print_table(("Filename", "Type", "Modified", "Size"), rows, as_json)


@app.command()
def put(
    name: str = _objects.NAME,
    local: str = typer.Argument(..., metavar="LOCAL", help="A file or directory here."),
    remote: str = typer.Argument("/", metavar="[REMOTE]", help="Where it goes."),
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Upload a file, or what is in a directory. A file goes into REMOTE where that ends in '/'."""
    source = Path(local)
    nfs = _named(name, environment)
    if source.is_dir():
        nfs.add_local_dir(source, remote)
    elif source.exists():
        nfs.add_local_file(source, remote)
    else:
        raise CommandError(f"there is no {local} here: name a file or directory to upload")
    typer.echo(f"Uploaded {local} to {remote} in NetworkFileSystem {name!r}.")


@app.command()
def get(
    name: str = _objects.NAME,
    remote: str = typer.Argument(..., metavar="REMOTE", help="A file, a directory or a glob, as '**/*.txt'."),
    local: str = typer.Argument(".", metavar="[LOCAL]", help="Where it goes; '-' is the standard output."),
    force: bool = typer.Option(False, "--force", "-f", help="Replace files that are there."),
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Download a file, a directory with all that is in it, or the files that a glob matches."""
    from modal_nomad.wire.nfs import is_glob

    nfs = _named(name, environment)
    if is_glob(remote):
        _download_all(nfs, remote, "", local, force)
        return
    top = posixpath.normpath("/" + remote.lstrip("/"))
    parent = posixpath.dirname(top)
    entries = {entry.path: entry for entry in nfs.listdir(parent)} if top != "/" else {}
    found = entries.get(posixpath.basename(top))
    if top != "/" and found is None:
        raise CommandError(f"there is no {remote} in NetworkFileSystem {name!r}")
    if found is not None and found.type.name != "DIRECTORY":
        if local == "-":
            _print(nfs, top)
            return
        target = Path(local)
        place = target / posixpath.basename(top) if target.is_dir() else target
        save(nfs.read_file(top), place, force)
        return
    if local == "-":
        raise CommandError(f"{remote} is a directory: name a file, or a local directory instead of '-'")
    target = Path(local, posixpath.basename(top))
    target.mkdir(parents=True, exist_ok=True)
    _download_all(nfs, posixpath.join(_literal(top), "**"), top, str(target), force)


@app.command()
def rm(
    name: str = _objects.NAME,
    path: str = typer.Argument(..., metavar="PATH", help="A file or directory."),
    recursive: bool = typer.Option(
        False, "--recursive", "-r", help="Directories too, with all that is in them."
    ),
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Remove a file or directory of a NetworkFileSystem."""
    _named(name, environment).remove_file(path, recursive=recursive)


@app.command()
def delete(
    name: str = _objects.NAME, yes: bool = _objects.YES, environment: str = _objects.ENVIRONMENT
) -> None:
    """Delete a NetworkFileSystem with all its files."""
    from modal_nomad.network_file_system import NetworkFileSystem

    _named(name, environment).hydrate()
    _objects.confirm(f"Delete NetworkFileSystem {name!r} with all that is in it?", yes)
    NetworkFileSystem.delete(name, environment_name=environment or None)
    typer.echo(f"Deleted nfs {name!r}.")


def _named(name: str, environment: str) -> NetworkFileSystem:
    from modal_nomad.network_file_system import NetworkFileSystem

    return NetworkFileSystem.from_name(name, environment_name=environment or None)


def _download_all(nfs: NetworkFileSystem, pattern: str, top: str, local: str, force: bool) -> None:
    files = [entry.path for entry in nfs.iterdir(pattern) if entry.type.name == "FILE"]
    if local == "-":
        for path in files:
            _print(nfs, path)
        return
    for path in files:
        place = Path(local, path[len(top.rstrip("/")) :].lstrip("/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        save(nfs.read_file(path), place, force)


def _print(nfs: NetworkFileSystem, path: str) -> None:
    for part in nfs.read_file(path):
        sys.stdout.buffer.write(part)
    sys.stdout.flush()


def _literal(path: str) -> str:
    """Return a glob that matches this path and no other."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)
