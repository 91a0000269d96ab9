"""``Volume.from_name(..., backend=)``: a volume that Nomad mounts, which only containers see into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ._bridge import blocking
from .exception import InvalidError
from .volume import Volume

if TYPE_CHECKING:
    from .client import Client
    from .wire.mounts import VolumeMount

_READER = "reader-only"
_ONE_WRITER = "single-node-writer"
# The last of each backend is the one that refuses nobody: readers and writers alike claim it, because the
# first claim of a volume decides which modes others may claim while it is held.
ACCESS_MODES = {
    "csi": (
        f"single-node-{_READER}",
        _ONE_WRITER,
        f"multi-node-{_READER}",
        "multi-node-single-writer",
        "multi-node-multi-writer",
    ),
    "host": (
        f"single-node-{_READER}",
        _ONE_WRITER,
        "single-node-single-writer",
        "single-node-multi-writer",
    ),
}


class NomadVolume(Volume):
    """A CSI or host volume of Nomad: what is written there is seen by whoever mounts it, at once."""

    _backend: str = ""
    _access_mode: str = ""

    @staticmethod
    def _of(name: str, backend: Any, access_mode: Any, read_only: bool = False) -> NomadVolume:
        modes = ACCESS_MODES.get(backend) if isinstance(backend, str) else None
        if modes is None:
            names = " or ".join(map(repr, ACCESS_MODES))
            raise InvalidError(f"backend is {backend!r}; give {names}, or nothing")
        if access_mode is not None and access_mode not in modes:
            raise InvalidError(
                f"access_mode is {access_mode!r}; give one of those that a {backend} volume has:"
                f" {', '.join(modes)}"
            )
        read_only = read_only or str(access_mode).endswith(_READER)
        if read_only and backend == "host" and access_mode == _ONE_WRITER:
            raise InvalidError(
                f"Nomad mounts no host volume for reading only with access_mode={_ONE_WRITER!r}: leave it out"
            )
        made = NomadVolume._new(None, None)
        made._name, made._backend, made._access_mode = name, backend, access_mode or ""
        made._read_only = read_only
        return made

    def __repr__(self) -> str:
        return f"Volume({self._name!r}, backend={self._backend!r})"

    def __reduce__(self) -> Any:
        return NomadVolume._of, (self._name, self._backend, self._access_mode or None, self._read_only)

    def _refuse(self) -> NoReturn:
        raise InvalidError(
            f"{self!r} is Nomad's, and only containers see into it: use a Function that has it in volumes="
        )

    async def _target(self) -> tuple[Client, str]:
        self._refuse()

    async def _hydrate(self, client: Client | None) -> None:
        """It has no id here: Nomad is asked for it when a Function that uses it is published."""

    async def _hydrate_in(self, client: Client, environment_name: str | None) -> None:
        """Nothing is looked up here, see ``_hydrate``."""

    @blocking
    async def commit(self) -> None:
        """Do nothing: what is written is there."""

    @blocking
    async def reload(self) -> None:
        """Do nothing: what others write is seen."""

    def batch_upload(self, force: bool = False) -> NoReturn:
        """Refused: only containers see into it."""
        self._refuse()

    def with_mount_options(self, *, read_only: bool | None = None, sub_path: str | None = None) -> Volume:
        """Return the same volume, to be mounted otherwise.

        Raises:
            InvalidError: for a ``sub_path``: Nomad mounts all of a volume.
        """
        if sub_path:
            raise InvalidError(f"{self!r} is mounted by Nomad, and whole: leave sub_path out")
        wanted = self._read_only if read_only is None else read_only
        return NomadVolume._of(str(self._name), self._backend, self._access_mode or None, wanted)

    def _mount(self, path: str) -> VolumeMount:
        from .wire.mounts import VolumeMount

        mode = self._access_mode or ACCESS_MODES[self._backend][-1]
        return VolumeMount(path, "", self._read_only, self._backend, str(self._name), mode)
