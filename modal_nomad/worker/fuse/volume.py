"""A Volume whose tree is in memory: filled from commits, committed, and made to follow others' commits."""

import errno
import os
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from ...wire.asking import Refused
from ...wire.volumes.chunks import ChunkUploader, take_chunk
from ...wire.volumes.client import Changes, VolumeClient
from ...wire.volumes.entries import (
    CHUNK_BYTES,
    DIRECTORY,
    FILE,
    INLINE_BYTES,
    REMOVED,
    SYMLINK,
    Entry,
    to_bytes,
)
from .contents import HOLE_SHA, SHA, Contents, Missing, Small, Snapshot, Written
from .nodes import SPECIAL, Identity, Node, Tree

_ATTEMPTS = 3
_SAY_EVERY = 10.0
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


class _Taken(NamedTuple):
    """A path as a commit found it."""

    entry: Entry
    node: Node
    snapshot: Optional[Snapshot] = None


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
        self.tree = Tree()
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
        self._odd: Set[str] = set()
        self._folder: Tuple[str, Node] = ("", self.tree.root)

    # --- from commits to the tree -----------------------------------------------------------------

    def load(self, begun: Callable[[], None] = lambda: None) -> None:
        """Fetch the committed tree, not the contents of its files. Raises Refused, OSError.

        Args:
            begun: called once when the first names are here and others follow.
        """
        with self._turn:
            self._follow(begun)

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

    def _follow(self, begun: Callable[[], None] = lambda: None) -> None:
        whole = self.version == 0
        fresh, version = whole, self.version
        seen: Set[str] = set()
        emptied: Set[str] = set()
        told: List[Told] = []
        said, count = time.monotonic(), 0
        for page in _ahead(self._client.all_changes(self._volume_id, self.version)):
            if page.whole and not whole:
                # Removals that this container has not seen are forgotten: all of the tree says them.
                whole = True
                if count:
                    self.version = 0
                    self._follow()
                    return
            with self._lock:
                self._apply(page, emptied, told)
            if not count and page.after is not None:
                begun()
            count += len(page.entries)
            if whole and not fresh:
                seen.update(entry.path for entry in page.entries if entry.kind != REMOVED)
            version = page.version
            if fresh and time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                self._say(f"{self._shown}: {count:,} names so far; what uses it waits until all are here")
        with self._lock:
            if whole and not fresh:
                self._keep_only(seen, emptied, told)
            for path in sorted(emptied, reverse=True):
                node = self.tree.find(path)
                # One that still has something in it stays: that is not committed yet.
                if node is not None and node.children == {} and path not in self.tree.changed:
                    self._remove(node, told)
            self._folder = ("", self.tree.root)
        self.version = version
        self._tell(told)

    def _keep_only(self, seen: Set[str], emptied: Set[str], told: List[Told]) -> None:
        for path, node in list(self.tree.below(self.tree.root, "")):
            if path in seen or path in self.tree.changed or node.kind == SPECIAL:
                continue
            if node.kind == DIRECTORY:
                emptied.add(path)
            else:
                self._remove(node, told)

    def _apply(self, page: Changes, emptied: Set[str], told: List[Told]) -> None:
        small = [x.data for x in page.entries if x.kind == FILE and x.data]
        places = iter(self._contents.keep_small(small)) if small else iter(())
        for entry in page.entries:
            content: Any = None
            if entry.kind == FILE and entry.data:
                content = next(places)
            elif entry.chunks:
                content = bytes.fromhex("".join(entry.chunks))
            elif entry.kind == SYMLINK:
                content = entry.data
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
        raw = to_bytes(name)
        assert parent.children is not None
        there = parent.children.get(raw)
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
        size = len(entry.data) if entry.kind == SYMLINK else entry.size
        mtime = entry.mtime if entry.kind != DIRECTORY else self.tree.root.ctime
        node = self.tree.new(entry.kind, entry.mode, size, mtime, content)
        self.tree.add(parent, raw, node)
        self._moved(parent, raw, told)

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

    def _directory(self, path: str, told: List[Told]) -> Node:
        if self._folder[0] == path and (path == "" or self._folder[1].parent is not None):
            return self._folder[1]
        at = self.tree.root
        for name in to_bytes(path).split(b"/") if path else ():
            assert at.children is not None
            found = at.children.get(name)
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
            taken, gone = self._take_all(work, left, attempts)
            if taken or gone:
                before, version = self._client.commit(self._volume_id, _lines(taken, gone))
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

    def _take_all(
        self, work: Dict[str, Optional[Identity]], left: Dict[str, Optional[Identity]], attempts: int
    ) -> Tuple[List[_Taken], List[str]]:
        taken: List[_Taken] = []
        gone: List[str] = []
        uploader = ChunkUploader(self._client.missing, self._client.put_chunk)
        try:
            for path in sorted(work):
                with self._lock:
                    node = self.tree.find(path)
                    if node is None or node.kind == SPECIAL:
                        if node is not None and path not in self._odd:
                            self._odd.add(path)
                            self._say(
                                f"{self._shown}/{path} is no file, directory or link: it is not committed"
                            )
                        if work[path] not in (None, (SPECIAL,)):
                            gone.append(path)
                        continue
                    if node.identity() == work[path]:
                        continue
                found = self._take(path, node, uploader, attempts)
                if found is None:
                    left[path] = work[path]
                else:
                    taken.append(found)
            uploader.flush()
        finally:
            uploader.close()
        return taken, gone

    def _take(self, path: str, node: Node, uploader: ChunkUploader, attempts: int) -> Optional[_Taken]:
        """Return a path's entry; None for what is being written."""
        for attempt in range(attempts):
            last = attempts > 1 and attempt == attempts - 1
            with self._lock:
                if node.kind == DIRECTORY:
                    return _Taken(Entry(path, DIRECTORY, mode=node.mode), node)
                if node.kind == SYMLINK:
                    target = node.content
                    return _Taken(Entry(path, SYMLINK, len(target), node.mtime, 0o777, (), target), node)
                content = node.content
                size, mtime, mode = node.size, node.mtime, node.mode
                if isinstance(content, bytes):
                    names = tuple(content[x : x + SHA].hex() for x in range(0, len(content), SHA))
                    return _Taken(Entry(path, FILE, size, mtime, mode, names), node)
                if size <= INLINE_BYTES:
                    return _Taken(Entry(path, FILE, size, mtime, mode, (), self._contents.small(node)), node)
                snapshot = self._contents.snapshot(node)
            hashes = _hash(snapshot, uploader)
            if hashes is not None and (content.serial == snapshot.serial or last):
                return _Taken(Entry(path, FILE, size, mtime, mode, hashes), node, snapshot)
        return None

    # --- what is read late ------------------------------------------------------------------------

    def keep_readable(self) -> None:
        """Ask for the contents that others have replaced since, which are collected when nobody does."""
        hashes: Set[str] = set()
        for page in self._client.all_changes(self._volume_id, self.version):
            with self._lock:
                for entry in page.entries:
                    node = self.tree.find(entry.path)
                    if node is not None and node.kind == FILE:
                        hashes.update(_needed(node.content))
        names = sorted(hashes)
        for start in range(0, len(names), _BATCH):
            self._client.missing(names[start : start + _BATCH])


def _needed(content: Any) -> List[str]:
    if isinstance(content, Written):
        hashes = [sha for number, sha in enumerate(content.hashes) if not content.here[number]]
    elif isinstance(content, bytes):
        hashes = [content[x : x + SHA] for x in range(0, len(content), SHA)]
    else:
        return []
    return [sha.hex() for sha in hashes if sha and sha != HOLE_SHA]


def _hash(snapshot: Snapshot, uploader: ChunkUploader) -> Optional[Tuple[str, ...]]:
    """Return the names of a written file's chunks; None when it was cut off meanwhile."""
    names: List[str] = []
    for number, sha in enumerate(snapshot.hashes):
        if sha is not None:
            names.append(sha.hex())
            continue
        offset = number * CHUNK_BYTES
        wanted = min(CHUNK_BYTES, snapshot.size - offset)
        name, length = take_chunk(snapshot.file.fd, offset, wanted, uploader)
        if length < wanted:
            return None
        names.append(name)
    return tuple(names)


def _lines(taken: List[_Taken], gone: List[str]) -> Iterator[Entry]:
    for one in taken:
        yield one.entry
    for path in gone:
        yield Entry(path, REMOVED)


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
    text = os.strerror(number) if isinstance(error, OSError) and not str(error) else str(error)
    return kind, text, number
