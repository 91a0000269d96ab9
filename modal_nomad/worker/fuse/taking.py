"""What a commit takes from a tree: the entries of what was changed, their chunks uploaded."""

import threading
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from ...wire.volumes.chunks import ChunkUploader, take_chunk
from ...wire.volumes.client import VolumeClient
from ...wire.volumes.entries import CHUNK_BYTES, DIRECTORY, FILE, INLINE_BYTES, REMOVED, SYMLINK, Entry
from .contents import HOLE_SHA, SHA, Contents, Snapshot, Written
from .nodes import SPECIAL, Identity, Node, Tree


class Taken(NamedTuple):
    """A path as a commit found it."""

    entry: Entry
    node: Node
    snapshot: Optional[Snapshot] = None


class Taker:
    """Takes what was changed in a tree, for one commit at a time.

    Args:
        shown: the path at which user code sees the Volume.
        client: takes chunks.
        tree: of the Volume.
        contents: of its files.
        lock: held while the tree is looked at.
        say: takes a line for the log.
    """

    def __init__(
        self,
        shown: str,
        client: VolumeClient,
        tree: Tree,
        contents: Contents,
        lock: threading.RLock,
        say: Callable[[str], None],
    ) -> None:
        self._shown = shown
        self._client = client
        self._tree = tree
        self._contents = contents
        self._lock = lock
        self._say = say
        self._odd: Set[str] = set()

    def take_all(
        self, work: Dict[str, Optional[Identity]], left: Dict[str, Optional[Identity]], attempts: int
    ) -> Tuple[List[Taken], List[str]]:
        """Return what stands at changed paths, and which of them are gone.

        Args:
            work: the paths, and what was committed there.
            left: gets those of files that are being written.
            attempts: how often a file that is being written is read; the last one takes it as it is, unless
                there is only one.
        """
        taken: List[Taken] = []
        gone: List[str] = []
        uploader = ChunkUploader(self._client.missing, self._client.put_chunk)
        try:
            for path in sorted(work):
                with self._lock:
                    node = self._tree.find(path)
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

    def _take(self, path: str, node: Node, uploader: ChunkUploader, attempts: int) -> Optional[Taken]:
        """Return a path's entry; None for what is being written."""
        for attempt in range(attempts):
            last = attempts > 1 and attempt == attempts - 1
            with self._lock:
                if node.kind == DIRECTORY:
                    return Taken(Entry(path, DIRECTORY, mode=node.mode), node)
                if node.kind == SYMLINK:
                    target = node.content
                    return Taken(Entry(path, SYMLINK, len(target), node.mtime, 0o777, (), target), node)
                content = node.content
                size, mtime, mode = node.size, node.mtime, node.mode
                if isinstance(content, bytes):
                    names = tuple(content[x : x + SHA].hex() for x in range(0, len(content), SHA))
                    return Taken(Entry(path, FILE, size, mtime, mode, names), node)
                if size <= INLINE_BYTES:
                    return Taken(Entry(path, FILE, size, mtime, mode, (), self._contents.small(node)), node)
                snapshot = self._contents.snapshot(node)
            hashes = _hash(snapshot, uploader)
            if hashes is not None and (content.serial == snapshot.serial or last):
                return Taken(Entry(path, FILE, size, mtime, mode, hashes), node, snapshot)
        return None


def needed(content: Any) -> List[str]:
    """Return the chunks of a content that are not here."""
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


def lines(taken: List[Taken], gone: List[str]) -> Iterator[Entry]:
    """Yield a commit's entries."""
    for one in taken:
        yield one.entry
    for path in gone:
        yield Entry(path, REMOVED)
