"""A Volume whose tree is in memory: listed when asked for, committed, made to follow others' commits."""

import contextlib
import errno
import os
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from ...wire.asking import Refused, again
from ...wire.volumes.client import Changes, Listing, VolumeClient
from ...wire.volumes.entries import (
    DIRECTORY,
    FILE,
    REMOVED,
    SYMLINK,
    Entry,
    to_bytes,
)
from .contents import Contents, Missing, Small, Written
from .listing import FIRST_ROWS, Version, path_of, raw_name, unlisted
from .nodes import SPECIAL, Identity, Node, Rest, Tree
from .taking import Taker, lines, needed

_ATTEMPTS = 3
_DROPPING = 2.0
_LOOK_AGAIN = 0.1
_CLOSING = 10.0
_BATCH = 512


class Told(NamedTuple):
    """What the kernel has to ask anew: a name in a directory, or, without one, an inode's attributes.

    Attributes:
        ino: of the directory, or of the inode.
        name: in the directory.
    """

    ino: int
    name: bytes = b""


class Volume:
    """The tree of a Volume and what is committed of it.

    Args:
        volume_id: ``vo-…``.
        shown: the path at which user code sees it.
        client: asks the dispatcher.
        contents: of the files.
        lock: held while the tree is looked at or changed.
        tell: lets the kernel ask anew; it is called without the lock.
        open_paths: returns which files are open.
        say: takes a line for the log.
        read_only: whether nothing is ever committed.
    """

    def __init__(
        self,
        volume_id: str,
        shown: str,
        client: VolumeClient,
        contents: Contents,
        lock: threading.RLock,
        tell: Callable[[List[Told]], None],
        open_paths: Callable[[], List[str]],
        say: Callable[[str], None],
        read_only: bool,
    ) -> None:
        self.tree = Tree(client.longest)
        self.version = 0
        self._volume_id = volume_id
        self._shown = shown
        self._client = client
        self._contents = contents
        self._lock = lock
        self._tell = tell
        self._open_paths = open_paths
        self._say = say
        self._read_only = read_only
        # One commit or reload at a time.
        self._turn = threading.Lock()
        self._shows = Version(client, volume_id, "", 0)
        self._following = False
        self._followed = threading.Condition(lock)
        self._taker = Taker(shown, client, self.tree, contents, lock, say)
        self._folder: Tuple[str, Node] = ("", self.tree.root)

    # --- from commits to the tree -----------------------------------------------------------------

    def load(self) -> None:
        """Have the committed tree kept as it is now, and fetch its first names. Raises Refused, OSError."""
        with self._turn:
            self._shows = Version.newest(self._client, self._volume_id)
            self.version = self._shows.number
            unlisted(self.tree.root)
            again(lambda: self.list(self.tree.root, None, FIRST_ROWS))

    def list(self, node: Node, name: Optional[bytes], rows: int) -> None:
        """Fetch names that are in a directory, and perhaps in others that are likely to be asked for.

        Args:
            node: the directory.
            name: is decided in any case.
            rows: how many names at most.

        Raises:
            Refused: the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        while True:
            with self._lock:
                while self._following:
                    self._followed.wait()
                if node.rest is None or (name is not None and name in node.rest.decided):
                    return
                shows = self._shows
                ask = shows.directories(node, path_of(node)[:-1], name, rows)
            try:
                listings, named = ask()
            except Refused as error:
                if error.kind != "VersionGone":
                    raise
                self._move_on(shows)
                continue
            with self._lock:
                if shows is self._shows and not self._following:
                    self._install(node, name, listings, named)
                    return

    def _move_on(self, gone: Version) -> None:
        # Who has the turn may wait until the name is answered that this is about.
        while not self._turn.acquire(timeout=_LOOK_AGAIN):
            if self._shows is not gone:
                return
        try:
            if self._shows is gone:
                self._say(
                    f"{self._shown}: the version that it showed is no longer kept, for nobody asked for it in"
                    " hours (a machine that slept?): from now on it shows what is there now"
                )
                self._follow()
        finally:
            self._turn.release()

    def _install(
        self, node: Node, name: Optional[bytes], listings: List[Listing], named: Optional[Entry]
    ) -> None:
        for listing in listings:
            at = self.tree.find(listing.path)
            if at is None or at.rest is None or at.children is None:
                continue
            self._add_all(at, listing.entries)
            if listing.complete:
                at.rest = None
                self.tree.partial.pop(at.ino, None)
            else:
                at.rest.after = listing.entries[-1].path
                self.tree.partial[at.ino] = at
        if name is not None and node.rest is not None and node.children is not None:
            if named is not None:
                self._add_all(node, [named])
            self.tree.decide(node, name)

    def _add_all(self, parent: Node, entries: List[Entry]) -> None:
        assert parent.rest is not None and parent.children is not None
        for entry, content in self._with_contents(entries):
            raw = raw_name(entry)
            if raw in parent.children or raw in parent.rest.decided or entry.path in self.tree.changed:
                continue
            node = self._new(entry, content)
            self.tree.add(parent, raw, unlisted(node) if entry.kind == DIRECTORY else node)

    def reload(self) -> None:
        """Commit what changed here, then show what others committed.

        Raises:
            RuntimeError: a file is open.
            Refused: the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        with self._turn:
            self._check_unused()
            if not self._read_only:
                self._commit(_ATTEMPTS)
            self._follow()

    def _check_unused(self) -> None:
        until = time.monotonic() + _CLOSING
        # A file that was closed a moment ago may be so only when the kernel has said it.
        while self._open_paths() and time.monotonic() < until:
            time.sleep(0.01)
        for path in self._open_paths():
            raise RuntimeError(
                f"cannot reload the Volume at {self._shown}: path {self._shown}/{path} is open or mapped "
                "into memory; close it"
            )

    def _follow(self) -> None:
        newest = Version.newest(self._client, self._volume_id)
        told: List[Told] = []
        with self._lock:
            self._following = True
        try:
            self._follow_to(newest, told)
            former, self._shows = self._shows, newest
        except BaseException:
            former = newest
            raise
        finally:
            with self._lock:
                self._following = False
                self._followed.notify_all()
            # After that: who looks a name up keeps the kernel from being told of its directory.
            self._tell(told)
            with contextlib.suppress(OSError, Refused):
                former.drop(_DROPPING)

    def _follow_to(self, newest: Version, told: List[Told]) -> None:
        whole = False
        seen: Set[str] = set()
        emptied: Set[str] = set()
        count = 0
        for page in _ahead(self._client.all_changes(self._volume_id, self.version, newest.pin_id)):
            if page.whole and not whole:
                # Removals that this container has not seen are forgotten: all of the tree says them.
                whole = True
                if count:
                    self.version = 0
                    self._follow_to(newest, told)
                    return
            with self._lock:
                self._apply(page, emptied, told)
            count += len(page.entries)
            if whole:
                seen.update(entry.path for entry in page.entries if entry.kind != REMOVED)
        with self._lock:
            if whole:
                self._keep_only(seen, emptied, told)
            for path in sorted(emptied, reverse=True):
                node = self.tree.find(path)
                # One that still has something in it stays: that is not committed yet.
                if node is not None and node.children == {} and path not in self.tree.changed:
                    self._remove(node, told)
            for node in self.tree.partial.values():
                # What is still to come of its names is of the new version, from the first one on.
                node.rest = Rest()
            self.tree.partial.clear()
            self._folder = ("", self.tree.root)
        self.version = newest.number

    def _keep_only(self, seen: Set[str], emptied: Set[str], told: List[Told]) -> None:
        for path, node in list(self.tree.below(self.tree.root, "")):
            if path in seen or path in self.tree.changed or node.kind == SPECIAL:
                continue
            if node.kind == DIRECTORY:
                emptied.add(path)
            else:
                self._remove(node, told)

    def _with_contents(self, entries: List[Entry]) -> Iterator[Tuple[Entry, Any]]:
        """Yield entries, each with what the tree keeps of its content."""
        small = [x.data for x in entries if x.kind == FILE and x.data]
        places = iter(self._contents.keep_small(small)) if small else iter(())
        for entry in entries:
            if entry.kind == FILE and entry.data:
                yield entry, next(places)
            elif entry.chunks:
                yield entry, bytes.fromhex("".join(entry.chunks))
            else:
                yield entry, entry.data if entry.kind == SYMLINK else None

    def _apply(self, page: Changes, emptied: Set[str], told: List[Told]) -> None:
        for entry, content in self._with_contents(page.entries):
            if entry.path in self.tree.changed:
                # Changed here since: the next commit makes this one the last writer.
                continue
            if entry.kind == REMOVED:
                node = self.tree.find(entry.path)
                if node is not None and node.kind == DIRECTORY:
                    # When the rest is done: what is in it may be about to be removed as well.
                    emptied.add(entry.path)
                elif node is not None:
                    self._remove(node, told)
                continue
            emptied.discard(entry.path)
            self._put(entry, content, told)

    def _put(self, entry: Entry, content: Any, told: List[Told]) -> None:
        folder, _, name = entry.path.rpartition("/")
        parent = self._directory(folder, told)
        if parent is None:
            return
        raw = to_bytes(name)
        assert parent.children is not None
        there = parent.children.get(raw)
        if there is None and self._comes_later(parent, raw, told):
            return
        if there is not None:
            if there.kind == entry.kind and self._same_content(there, entry):
                if entry.kind != SYMLINK and there.mode != entry.mode:
                    there.mode = entry.mode
                    told.append(Told(there.ino))
                if entry.kind != DIRECTORY and there.mtime != entry.mtime:
                    there.mtime = entry.mtime
                    told.append(Told(there.ino))
                return
            self._remove(there, told)
        self.tree.add(parent, raw, self._new(entry, content))
        self._moved(parent, raw, told)

    def _comes_later(self, parent: Node, name: bytes, told: List[Told]) -> bool:
        """Tell whether a name comes with the listing of its directory, should anybody ask for it."""
        if parent.rest is None:
            return False
        if name in parent.rest.decided:
            # The kernel was told that it is not there.
            self._moved(parent, name, told)
        return True

    def _new(self, entry: Entry, content: Any) -> Node:
        size = len(entry.data) if entry.kind == SYMLINK else entry.size
        mtime = entry.mtime if entry.kind != DIRECTORY else self.tree.root.ctime
        return self.tree.new(entry.kind, entry.mode, size, mtime, content)

    def _same_content(self, node: Node, entry: Entry) -> bool:
        if entry.kind == DIRECTORY:
            return True
        if entry.kind == SYMLINK:
            return bool(node.content == entry.data)
        if node.size != entry.size:
            return False
        content = node.content
        if isinstance(content, Small) or not entry.chunks:
            try:
                return not entry.chunks and self._contents.small(node) == entry.data
            except Missing:
                return False
        if isinstance(content, Written):
            content = b"".join(sha or b"?" for sha in content.hashes)
        return bool(content == bytes.fromhex("".join(entry.chunks)))

    def _directory(self, path: str, told: List[Told]) -> Optional[Node]:
        """Return what a change of the names in it goes into; None where its names are not here."""
        if self._folder[0] == path and (path == "" or self._folder[1].parent is not None):
            return self._folder[1]
        at = self.tree.root
        for name in to_bytes(path).split(b"/") if path else ():
            assert at.children is not None
            found = at.children.get(name)
            if found is None and self._comes_later(at, name, told):
                return None
            if found is None or found.kind != DIRECTORY:
                if found is not None:
                    self._remove(found, told)
                found = self.tree.new(DIRECTORY, 0o755, 0, self.tree.root.ctime)
                self.tree.add(at, name, found)
                self._moved(at, name, told)
            at = found
        self._folder = (path, at)
        return at

    def _moved(self, parent: Node, name: bytes, told: List[Told]) -> None:
        if parent.lookups:
            told.append(Told(parent.ino, name))

    def _remove(self, node: Node, told: List[Told]) -> None:
        parent, name = node.parent, node.name
        if parent is None:
            return
        for child in list((node.children or {}).values()):
            self._remove(child, told)
        self.tree.take(parent, name)
        self._moved(parent, name, told)
        if self.tree.is_gone(node):
            self._contents.drop(node)

    # --- from the tree to commits -----------------------------------------------------------------

    def commit(self) -> None:
        """Commit what changed here; returns when it is on the disk.

        Raises:
            Refused: the Volume is gone, or is mounted for reading only.
            OSError: the dispatcher could not be reached.
        """
        if self._read_only:
            raise Refused("InvalidError", f"the Volume at {self._shown} is mounted for reading only")
        with self._turn:
            self._commit(_ATTEMPTS)

    def commit_settled(self) -> None:
        """Commit what changed here, but leave files that are being written for the next time."""
        if self.tree.changed and not self._read_only:
            with self._turn:
                self._commit(1)

    def _commit(self, attempts: int) -> None:
        with self._lock:
            work, self.tree.changed = self.tree.changed, {}
        left: Dict[str, Optional[Identity]] = {}
        try:
            taken, gone = self._taker.take_all(work, left, attempts)
            if taken or gone:
                before, version = self._client.commit(self._volume_id, lines(taken, gone))
                if before == self.version:
                    # Nobody else committed in between: there is nothing to follow.
                    self.version = version
        except BaseException:
            left = work
            raise
        finally:
            with self._lock:
                # What was committed before counts, not what was about to be.
                self.tree.changed.update(left)
        with self._lock:
            for entry, node, snapshot in taken:
                if snapshot is not None:
                    self._contents.committed(node, snapshot, [bytes.fromhex(x) for x in entry.chunks])

    def let_go(self) -> None:
        """Say that nobody reads the version that is shown any more; a failure of it changes nothing."""
        with contextlib.suppress(OSError, Refused):
            self._shows.drop(_DROPPING)

    # --- what is read late ------------------------------------------------------------------------

    def keep_readable(self) -> None:
        """Ask for the contents that others have replaced since, which are collected when nobody does."""
        self._shows.renew()
        hashes: Set[str] = set()
        for page in self._client.all_changes(self._volume_id, self.version):
            with self._lock:
                for entry in page.entries:
                    node = self.tree.find(entry.path)
                    if node is not None and node.kind == FILE:
                        hashes.update(needed(node.content))
        names = sorted(hashes)
        for start in range(0, len(names), _BATCH):
            self._client.missing(names[start : start + _BATCH])


def _ahead(pages: Iterator[Changes]) -> Iterator[Changes]:
    """Yield pages, each while the next one is on its way."""
    found: List[Any] = []

    def fetch() -> None:
        try:
            found.append(next(pages, None))
        except BaseException as error:
            found.append(error)

    fetch()
    while True:
        page = found.pop()
        if isinstance(page, BaseException):
            raise page
        if page is None:
            return
        thread = threading.Thread(target=fetch, name="modal-pages", daemon=True)
        if page.after is not None:
            thread.start()
            yield page
            thread.join()
        else:
            yield page
            return


def describe(error: BaseException) -> Tuple[str, str, int]:
    """Return an error's kind, text and number, for the process that asked."""
    kind = error.kind if isinstance(error, Refused) else type(error).__name__
    number = error.errno or errno.EIO if isinstance(error, OSError) else 0
    text = error.strerror or str(error) or os.strerror(number) if isinstance(error, OSError) else str(error)
    return kind, text, number
