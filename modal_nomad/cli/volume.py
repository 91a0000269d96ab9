"""``modal-nomad volume``: Volumes, and the files in them."""

from __future__ import annotations

import os
import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from modal_nomad.cli import _objects
from modal_nomad.cli._download import check_free, make_folder, save
from modal_nomad.cli._errors import CommandError
from modal_nomad.cli._table import print_table

if TYPE_CHECKING:
    from modal_nomad.types import FileEntry
    from modal_nomad.volume import Volume

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Manage Volumes and the files in them.",
)

_FORCE = typer.Option(False, "--force", "-f", help="Replace files that are there.")
_RECURSIVE = typer.Option(False, "--recursive", "-r", help="Directories too, with all that is in them.")


@app.command()
def create(
    name: str = _objects.NAME,
    version: int = typer.Option(1, "--version", min=1, max=2, help="1 or 2; both are the same here."),
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Create a Volume."""
    _objects.create("volume", name, environment)


@app.command("list")
def list_volumes(environment: str = _objects.ENVIRONMENT, as_json: bool = _objects.JSON) -> None:
    """List the Volumes of an environment, newest first."""
    _objects.print_objects("volume", environment, as_json)


@app.command()
def ls(
    name: str = _objects.NAME,
    path: str = typer.Argument("/", metavar="[PATH]", help="A directory or file in the Volume."),
    environment: str = _objects.ENVIRONMENT,
    as_json: bool = _objects.JSON,
) -> None:
    """List a directory of a Volume."""
    found = _named(name, environment).listdir(path)
    rows = [
        (_objects.printable(x.path), x.type.name.lower(), _objects.moment(x.mtime), str(x.size))
        for x in found
    ]
    print_table(("Filename", "Type", "Modified", "Size"), rows, as_json)


@app.command()
def get(
    name: str = _objects.NAME,
    remote: str = typer.Argument(..., metavar="REMOTE", help="A file or directory in the Volume."),
    local: str = typer.Argument(".", metavar="[LOCAL]", help="Where it goes; '-' is the standard output."),
    force: bool = _FORCE,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Download a file, or a directory with all that is in it."""
    volume = _named(name, environment)
    found = list(volume.iterdir(remote))
    top = "/".join(part for part in remote.split("/") if part not in ("", "."))
    is_file = len(found) == 1 and found[0].path == top
    if local == "-":
        if not is_file:
            raise CommandError(f"{remote} is a directory: name a file, or a local directory instead of '-'")
        volume.read_file_into_fileobj(remote, sys.stdout.buffer)
        sys.stdout.flush()
        return
    target = Path(local)
    if is_file:
        _download(volume, found[0], target / posixpath.basename(top) if target.is_dir() else target, force)
        return
    target = target / posixpath.basename(top)
    target.mkdir(parents=True, exist_ok=True)
    for entry in found:
        place = target / (entry.path[len(top) :].lstrip("/") if top else entry.path)
        if entry.type.name == "DIRECTORY":
            make_folder(place, force)
        else:
            _download(volume, entry, place, force)


@app.command()
def put(
    name: str = _objects.NAME,
    local: str = typer.Argument(..., metavar="LOCAL", help="A file or directory here."),
    remote: str = typer.Argument("/", metavar="[REMOTE]", help="Where it goes in the Volume."),
    force: bool = _FORCE,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Upload a file, or what is in a directory. A file goes into REMOTE where that ends in '/'."""
    source = Path(local)
    if not source.exists():
        raise CommandError(f"there is no {local} here: name a file or directory to upload")
    with _named(name, environment).batch_upload(force=force) as batch:
        if source.is_dir():
            batch.put_directory(source, remote)
        else:
            batch.put_file(source, remote + source.name if remote.endswith("/") else remote)
    typer.echo(f"Uploaded {local} to {remote} in Volume {name!r}.")


@app.command()
def rm(
    name: str = _objects.NAME,
    path: str = typer.Argument(..., metavar="PATH", help="A file or directory in the Volume."),
    recursive: bool = _RECURSIVE,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Remove a file or directory of a Volume."""
    _named(name, environment).remove_file(path, recursive=recursive)


@app.command()
def cp(
    name: str = _objects.NAME,
    paths: list[str] = typer.Argument(  # noqa: B008
        ..., metavar="PATH...", help="What to copy in the Volume, and last where to."
    ),
    recursive: bool = _RECURSIVE,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Copy within a Volume; no content is moved."""
    if len(paths) < 2:
        raise typer.BadParameter("name at least one file to copy, and last where it goes")
    _named(name, environment).copy_files(paths[:-1], paths[-1], recursive=recursive)


@app.command()
def delete(
    name: str = _objects.NAME, yes: bool = _objects.YES, environment: str = _objects.ENVIRONMENT
) -> None:
    """Delete a Volume with all its files."""
    from modal_nomad.volume import Volume

    _named(name, environment).hydrate()
    _objects.confirm(f"Delete Volume {name!r} with all that is in it?", yes)
    Volume.delete(name, environment_name=environment or None)
    typer.echo(f"Deleted volume {name!r}.")


@app.command()
def rename(
    name: str = _objects.NAME,
    new_name: str = typer.Argument(..., metavar="NEW_NAME", help="Its new name."),
    yes: bool = _objects.YES,
    environment: str = _objects.ENVIRONMENT,
) -> None:
    """Give a Volume another name."""
    from modal_nomad.volume import Volume

    _objects.confirm(f"Rename Volume {name!r} to {new_name!r}? Programs with the old name lose it.", yes)
    Volume.rename(name, new_name, environment_name=environment or None)
    typer.echo(f"Renamed volume {name!r} to {new_name!r}.")


def _named(name: str, environment: str) -> Volume:
    from modal_nomad.volume import Volume

    return Volume.from_name(name, environment_name=environment or None)


def _download(volume: Volume, entry: FileEntry, place: Path, force: bool) -> None:
    if entry.type.name == "SYMLINK":
        check_free(place, force)
        _link(volume, entry, place)
    else:
        save(volume.read_file(entry.path), place, force)


def _link(volume: Volume, entry: FileEntry, place: Path) -> None:
    target = os.fsdecode(volume._read_link(entry.path))
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    # Behind another name ".." may lead anywhere: that may be a link itself.
    if posixpath.isabs(target) or up > entry.path.count("/") or ".." in parts[up:]:
        typer.echo(f"{_objects.printable(entry.path)} is a link out of the Volume: left out", err=True)
        return
    if place.is_dir() and not place.is_symlink():
        raise CommandError(f"{place} is a directory: remove it, or name another place")
    place.unlink(missing_ok=True)
    place.symlink_to(target)
