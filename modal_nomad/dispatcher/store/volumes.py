"""The contract of a store for Volumes: the tree of each, and what changed in it since when.

Every commit gets the Volume's next version, and every path remembers the version that touched it last, also
once it is removed: what changed since a version is one look, and a commit writes what it changes alone.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from modal_nomad.wire.volumes.entries import Entry

KEEP_MODE = 1 << 16
"""In the mode of a directory that is staged: one that is there keeps its own."""


class VolumeConflict(Exception):
    """A commit or a change was refused, and nothing of it was done.

    Args:
        kind: ``exists``, ``missing``, ``directory``, ``invalid``, ``deleted`` or ``unpinned``.
        text: one line.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Committed(NamedTuple):
    """A change that is on the disk.

    Attributes:
        before: the Volume's version before it.
        version: its version now; the same where nothing changed.
        displaced: chunks that some path no longer names.
    """

    before: int
    version: int
    displaced: frozenset[str]


class Switch(NamedTuple):
    """A large commit that has happened and is being carried out; a mere stage where it has no commit's id."""

    object_id: str
    stage_id: str
    commit_id: str
    at: float


class Listing(NamedTuple):
    """What a directory holds.

    Attributes:
        path: of the directory.
        entries: in it, by path.
        complete: whether these are all, from where they begin.
    """

    path: str
    entries: list[Entry]
    complete: bool


class ChangePage(NamedTuple):
    """Paths that changed after a version, by version and path.

    Attributes:
        entries: what stands there now.
        version: the Volume's version at this look.
        after: the last row's version and path; None when there are no more.
        whole: the page belongs to a walk over all of the tree.
    """

    entries: list[Entry]
    version: int
    after: tuple[int, str] | None
    whole: bool


class VolumeStore(abc.ABC):
    """Durable trees. All methods raise StoreError when the medium fails them."""

    @abc.abstractmethod
    async def volume_commit(
        self,
        object_id: str,
        commit_id: str,
        entries: Callable[[], Iterable[Entry]],
        *,
        rule: str,
        now: float,
    ) -> Committed:
        """Write entries, all or none. Raises VolumeConflict.

        Args:
            object_id: the Volume.
            commit_id: a commit that comes again under the same one changes nothing.
            entries: gives what to write; called on the store's thread.
            rule: ``last``: the last writer wins; ``new``: no file may be there; ``over``: files may.
            now: seconds since 1970.
        """

    # A commit in slices: whoever begins one keeps others from the tree between switch and finish.

    @abc.abstractmethod
    async def volume_stage(self, object_id: str, stage_id: str, first: int, entries: Sequence[Entry]) -> None:
        """Keep entries of a commit, numbered from ``first`` on; nobody sees them. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_check(
        self, object_id: str, stage_id: str, first: int, limit: int, rule: str, now: float
    ) -> bool:
        """Look for conflicts with the tree; says whether more entries follow. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_done(self, object_id: str, commit_id: str) -> Committed | None:
        """Return what a commit did that was carried out lately."""

    @abc.abstractmethod
    async def volume_switch(self, object_id: str, stage_id: str, commit_id: str, now: float) -> None:
        """Decide a commit: from now on it has happened. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_stages(self) -> list[Switch]:
        """Return all stages and switches that are not finished."""

    @abc.abstractmethod
    async def volume_carry_out(self, switch: Switch, limit: int) -> frozenset[str] | None:
        """Bring so many entries into the tree; gives the chunks that they displace, None after the last."""

    @abc.abstractmethod
    async def volume_finish(self, switch: Switch) -> Committed:
        """Set the new version."""

    @abc.abstractmethod
    async def volume_drop_stage(self, object_id: str, stage_id: str, limit: int) -> bool:
        """Forget so many entries of a stage that is no switch; says whether there are more."""

    # A pinned version stays readable as it was, whatever is committed.

    @abc.abstractmethod
    async def volume_pin(self, object_id: str, pin_id: str, now: float) -> int:
        """Pin the version that the Volume has, and return it. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_renew(self, object_id: str, pin_id: str, now: float) -> bool:
        """Note when a pin was last wanted; says whether it is there."""

    @abc.abstractmethod
    async def volume_expired(self, before: float) -> list[tuple[str, str]]:
        """Return the pins, each with its Volume's id before it, that nobody wanted since."""

    @abc.abstractmethod
    async def volume_unpin(self, object_id: str, pin_id: str, limit: int) -> bool:
        """Forget so much of what only this pin kept; says whether there is more of it."""

    @abc.abstractmethod
    async def volume_listings(
        self,
        object_id: str,
        pin_id: str,
        paths: Sequence[str],
        after: str | None,
        name: str | None,
        max_rows: int,
        max_bytes: int,
    ) -> tuple[list[Listing], Entry | None]:
        """Return what directories hold in a pinned version, and what those in them do. Raises VolumeConflict.

        Args:
            object_id: the Volume.
            pin_id: of the version.
            paths: directories; the answer has the first of them, in part where that is large, and as many
                more as go into it whole.
            after: a path in the first one, behind which it begins.
            name: what stands in the first one under this name is returned as well, where it is cut off.
            max_rows: of an answer.
            max_bytes: of an answer, about.
        """

    @abc.abstractmethod
    async def volume_below(
        self, object_id: str, pin_id: str, path: str, after: str | None, limit: int
    ) -> list[Entry]:
        """Return so much of what is below a directory in a pinned version, by path. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_changes(
        self,
        object_id: str,
        since: int,
        after: tuple[int, str] | None,
        max_rows: int,
        max_bytes: int,
        pin_id: str | None = None,
    ) -> ChangePage:
        """Return a page of what changed after a version, up to a pinned one or now. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_entry(self, object_id: str, path: str) -> Entry | None:
        """Return what stands at a path; the empty path is the top, a directory."""

    @abc.abstractmethod
    async def volume_list(
        self, object_id: str, path: str, *, recursive: bool, after: str | None, limit: int
    ) -> list[Entry]:
        """Return what is in a directory, by path, without contents."""

    @abc.abstractmethod
    async def volume_remove(
        self, object_id: str, commit_id: str, path: str, *, recursive: bool, now: float
    ) -> Committed:
        """Remove a file, or a directory with all below. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_copy(
        self,
        object_id: str,
        commit_id: str,
        sources: Sequence[str],
        target: str,
        *,
        recursive: bool,
        now: float,
    ) -> Committed:
        """Copy within a Volume, as ``cp`` does. Raises VolumeConflict."""

    @abc.abstractmethod
    async def volume_plan_copy(
        self, object_id: str, sources: Sequence[str], target: str, *, recursive: bool
    ) -> list[tuple[Entry, str]]:
        """Return what ``volume_copy`` would copy, each with its place. Raises VolumeConflict."""
