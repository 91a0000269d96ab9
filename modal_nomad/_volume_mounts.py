"""``volumes=`` and ``network_file_systems=``: which paths they, and buckets, may be shown at."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from .exception import InvalidError

if TYPE_CHECKING:
    from .cloud_bucket_mount import CloudBucketMount
    from .network_file_system import NetworkFileSystem
    from .volume import Volume

_FORBIDDEN = ("/", "/root", "/tmp")


def check_volumes(value: Any) -> dict[str, Volume | CloudBucketMount]:
    """Return Volumes and buckets by the canonical paths that they are shown at.

    Raises:
        InvalidError: naming the path, or the Volume that is shown twice.
    """
    from .cloud_bucket_mount import CloudBucketMount
    from .volume import Volume

    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidError(f"volumes is {value!r}; give a dict of paths and Volumes")
    found: dict[str, Volume | CloudBucketMount] = {}
    for given, volume in value.items():
        if not isinstance(volume, (Volume, CloudBucketMount)):
            raise InvalidError(
                f"volumes has {volume!r} at {given!s}; give a modal.Volume or a modal.CloudBucketMount"
            )
        found[_canonical(given)] = volume
    return check_once(found)


def check_sub_path(value: Any) -> str:
    """Return a directory's path in a Volume; empty for its top. Raises InvalidError."""
    from .wire.volumes.entries import clean_path

    try:
        return clean_path(str(value) if isinstance(value, PurePosixPath) else value)
    except ValueError as error:
        raise InvalidError(f"sub_path: {error}") from None


def check_apart(volumes: Mapping[str, Any], shared: Mapping[str, NetworkFileSystem]) -> None:
    """Raise InvalidError for a path at which a Volume or bucket and a NetworkFileSystem are to be shown."""
    for path in volumes.keys() & shared.keys():
        raise InvalidError(f"a Volume and a NetworkFileSystem are both to be shown at {path}; keep one")


def check_network_file_systems(value: Any) -> dict[str, NetworkFileSystem]:
    """Return NetworkFileSystems by the canonical paths that they are shown at.

    Raises:
        InvalidError: naming the path.
    """
    from .network_file_system import NetworkFileSystem

    if not isinstance(value, Mapping):
        raise InvalidError(
            f"network_file_systems is {value!r}; give a dict of paths and modal.NetworkFileSystem"
        )
    found: dict[str, NetworkFileSystem] = {}
    for given, nfs in value.items():
        if not isinstance(nfs, NetworkFileSystem):
            raise InvalidError(
                f"network_file_systems has {nfs!r} at {given!s}; give a modal.NetworkFileSystem"
            )
        found[_canonical(given, "NetworkFileSystem", "network_file_systems")] = nfs
    return found


def check_once(volumes: dict[str, Volume | CloudBucketMount]) -> dict[str, Volume | CloudBucketMount]:
    """Return Volumes by their paths. Raises InvalidError for one that is shown at two paths."""
    places: dict[Any, str] = {}
    for path, volume in volumes_in(volumes).items():
        backend = getattr(volume, "_backend", "")
        named = (volume._name, volume._environment, backend)
        same: Any = named if volume._name else volume._object_id
        other = places.setdefault(same, path)
        if other != path:
            raise InvalidError(f"{volume!r} is shown at {other} and at {path}; keep one of them")
    return volumes


def volumes_in(mounts: Mapping[str, Any]) -> dict[str, Volume]:
    """Return the Volumes among what is shown."""
    from .volume import Volume

    return {path: mount for path, mount in mounts.items() if isinstance(mount, Volume)}


def buckets_in(mounts: Mapping[str, Any]) -> dict[str, CloudBucketMount]:
    """Return the buckets among what is shown."""
    from .cloud_bucket_mount import CloudBucketMount

    return {path: mount for path, mount in mounts.items() if isinstance(mount, CloudBucketMount)}


def _canonical(given: Any, label: str = "Volume", where: str = "volumes") -> str:
    if not isinstance(given, (str, PurePosixPath)):
        raise InvalidError(f"{where} has the path {given!r}; give a string such as '/data'")
    path = PurePosixPath(given).as_posix()
    if not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path or "\0" in path:
        raise InvalidError(f"a {label} is to be shown at {str(given)!r}; give a canonical, absolute path")
    if path in _FORBIDDEN:
        raise InvalidError(f"a {label} cannot be shown at {path}; give a path below it, such as /data")
    return path
