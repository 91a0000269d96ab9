"""A directory of a Volume that is shown as if it were all of it."""

from typing import Any, Callable, Iterable, List, Optional, Sequence, Tuple, Union

from ..asking import Refused
from .client import LAST, Changes, Listing, VolumeClient
from .entries import DIRECTORY, MAX_PATH, Entry, to_bytes


class ClientBelow(VolumeClient):
    """The Volumes of a dispatcher, of each of which one directory is seen.

    What comes names paths in that directory, and so does what is asked; all else of a Volume is left out.

    Args:
        address: the server URL.
        token: the bearer token, or what gives it anew for each call.
        top: the directory's path in the Volume.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, address: str, token: Union[str, Callable[[], str]], top: str, timeout: float = 600.0
    ) -> None:
        super().__init__(address, token, timeout)
        self._top = top
        self._prefix = top + "/"
        self.longest = MAX_PATH - len(to_bytes(self._prefix))

    def with_timeout(self, timeout: float) -> "ClientBelow":
        """As of any client."""
        return ClientBelow(self._address, self._token, self._top, timeout)

    def check(self, volume_id: str) -> None:
        """Raise Refused where something else than a directory stands there, or in the way."""
        parts = self._top.split("/")
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            try:
                found = self.entry(volume_id, path)
            except Refused as error:
                if error.kind == "PathMissing":
                    # The first commit makes it.
                    return
                raise
            if found is not None and found.kind != DIRECTORY:
                raise Refused("InvalidError", f"{path} is no directory of the Volume")

    def commit(self, volume_id: str, entries: Iterable[Entry], rule: str = LAST) -> Tuple[int, int]:
        """As of any client."""
        return super().commit(volume_id, (x._replace(path=self._prefix + x.path) for x in entries), rule)

    def directories(
        self,
        volume_id: str,
        pin_id: str,
        paths: Sequence[str],
        rows: int,
        after: Optional[str] = None,
        name: Optional[str] = None,
    ) -> Tuple[List[Listing], Optional[Entry]]:
        """As of any client."""
        there = [self._prefix + path if path else self._top for path in paths]
        behind = None if after is None else self._prefix + after
        listings, named = super().directories(volume_id, pin_id, there, rows, behind, name)
        found = [x._replace(path=self._within(x.path), entries=self._seen(x.entries)) for x in listings]
        return found, None if named is None else named._replace(path=self._within(named.path))

    def changes(self, *args: Any, **more: Any) -> Changes:
        """As of any client."""
        page = super().changes(*args, **more)
        return page._replace(entries=self._seen(page.entries))

    def _within(self, path: str) -> str:
        return path[len(self._prefix) :]

    def _seen(self, entries: List[Entry]) -> List[Entry]:
        return [x._replace(path=self._within(x.path)) for x in entries if x.path.startswith(self._prefix)]


def client_of(address: str, token: Union[str, Callable[[], str]], sub_path: str = "") -> VolumeClient:
    """Return what asks about Volumes of which a directory is seen, or all where none is named."""
    return ClientBelow(address, token, sub_path) if sub_path else VolumeClient(address, token)
