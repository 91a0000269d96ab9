"""The Volumes that this process has mounted: the container's runtime fills it, the SDK asks it."""

from typing import Any, Dict


class Mounts:
    """Mounted Volumes by their ids: each has ``commit()`` and ``reload()``, which block."""

    def __init__(self) -> None:
        self._by_id: Dict[str, Any] = {}

    def add(self, volume_id: str, mounted: Any) -> None:
        """Note a mounted Volume."""
        self._by_id[volume_id] = mounted

    def find(self, volume_id: str) -> Any:
        """Return a mounted Volume, or None."""
        return self._by_id.get(volume_id)


mounts = Mounts()
