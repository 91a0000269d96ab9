"""The tree of a Volume in memory: what stands where, and what differs from what is committed."""

import errno
import os
import stat
import time
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from ...wire.volumes.entries import DIRECTORY, FILE, MAX_NAME, MAX_PATH, SYMLINK, from_bytes, to_bytes
from . import abi

SPECIAL = 9
"""A pipe, socket or device: only here, and never committed."""
_FORMATS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}

Identity = Tuple[Any, ...]


class Rest:
    """What of a directory is not here yet.

    Attributes:
        after: the path of the last entry that came with the listing; None before the first.
        decided: names that are in ``children`` or are not there, whatever the listing says of them.
    """

    __slots__ = ("after", "decided")

    def __init__(self) -> None:
        self.after: Optional[str] = None
        self.decided: Set[bytes] = set()


class Node:
    """A file, directory, link or special file.

    Attributes:
        ino: its number, never used again.
        kind: as an entry has it, or ``SPECIAL``.
        mode: permission bits; of a special file with its type.
        size: of a file in bytes, of a link that of its target.
        mtime: nanoseconds since 1970.
        ctime: the same.
        parent: the directory that it stands in; None for the top and for what was removed.
        name: in there.
        children: of a directory, by name.
        rest: of a directory whose names are not all here; None where they are.
        content: of a file what ``contents`` makes of it, of a link its target, of a special file its device.
        lookups: how often the kernel was told of it, less what it forgot.
        opens: handles that are open.
    """

    __slots__ = (
        "children",
        "content",
        "ctime",
        "ino",
        "kind",
        "lookups",
        "mode",
        "mtime",
        "name",
        "opens",
        "parent",
        "rest",
        "size",
    )

    def __init__(self, ino: int, kind: int, mode: int, size: int, mtime: int, content: Any = None) -> None:
        self.ino = ino
        self.kind = kind
        self.mode = mode
        self.size = size
        self.mtime = self.ctime = mtime
        self.parent: Optional[Node] = None
        self.name = b""
        self.children: Optional[Dict[bytes, Node]] = {} if kind == DIRECTORY else None
        self.content = content
        self.rest: Optional[Rest] = None
        self.lookups = 0
        self.opens = 0

    def format(self) -> int:
        """Return the file type's bits of ``st_mode``."""
        return _FORMATS.get(self.kind) or stat.S_IFMT(self.mode)

    def identity(self) -> Identity:
        """Return what tells it from another at the same path, as far as commits go."""
        if self.kind == DIRECTORY:
            return (DIRECTORY, self.mode)
        if self.kind == SPECIAL:
            return (SPECIAL,)
        content = self.content
        mark = getattr(content, "serial", None)
        return (self.kind, self.size, self.mtime, self.mode, content if mark is None else (id(content), mark))


class Unlisted(Exception):
    """Names of a directory are to be fetched first.

    Args:
        node: the directory.
        name: the one that is wanted; None for all of them.
    """

    def __init__(self, node: Node, name: Optional[bytes] = None) -> None:
        super().__init__(node.name, name)
        self.node = node
        self.name = name


class Tree:
    """The nodes of one Volume that are here. Its caller holds a lock.

    Attributes:
        root: the top.
        partial: the directories of which some names are here and some are not.
        changed: the paths that may differ from the commits, and what is committed there (None for nothing).

    Args:
        longest: bytes that a path may have.
    """

    def __init__(self, longest: int = MAX_PATH) -> None:
        self._longest = longest
        self._last = abi.ROOT
        now = time.time_ns()
        self.root = Node(abi.ROOT, DIRECTORY, 0o755, 0, now)
        self.root.lookups = 1
        # What the kernel knows: only that is asked for by number.
        self.known: Dict[int, Node] = {abi.ROOT: self.root}
        self.changed: Dict[str, Optional[Identity]] = {}
        self.partial: Dict[int, Node] = {}
        self._links: Dict[int, List[Tuple[Node, bytes]]] = {}
        self.owners: Dict[int, Tuple[int, int]] = {}

    def new(self, kind: int, mode: int, size: int, mtime: int, content: Any = None) -> Node:
        """Make a node that stands nowhere yet."""
        self._last += 1
        return Node(self._last, kind, mode, size, mtime, content)

    # --- finding ----------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """Return what the kernel calls by a number. Raises OSError."""
        found = self.known.get(number)
        if found is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    def directory(self, number: int) -> Tuple[Node, Dict[bytes, Node]]:
        """Return a directory and its children. Raises OSError."""
        found = self.node(number)
        if found.children is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return found, found.children

    def child(self, number: int, name: bytes) -> Tuple[Node, Optional[Node]]:
        """Return a directory and what stands in it under a name. Raises OSError, Unlisted."""
        parent, children = self.directory(number)
        if len(name) > MAX_NAME:
            # The kernel lets longer ones through, and no commit takes them.
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        node = children.get(name)
        if node is None and parent.rest is not None and name not in parent.rest.decided:
            raise Unlisted(parent, name)
        return parent, node

    def need_all_below(self, top: Node) -> None:
        """Make sure that all names below a directory are here. Raises Unlisted."""
        for _, node in [("", top), *self.below(top, "")]:
            if node.rest is not None:
                raise Unlisted(node)

    def find(self, path: str) -> Optional[Node]:
        """Return what is known to stand at a path; the top for an empty one."""
        at: Optional[Node] = self.root
        for name in to_bytes(path).split(b"/") if path else ():
            if at is None or at.children is None:
                return None
            at = at.children.get(name)
        return at

    def paths(self, node: Node) -> List[str]:
        """Return where a node stands: nowhere, at one path, or at several."""
        places = [(node.parent, node.name), *self._links.get(node.ino, ())] if self._links else None
        if places is None:
            return [self.path(node.parent, node.name)] if node.parent is not None else []
        return [self.path(parent, name) for parent, name in places if parent is not None]

    def new_path(self, parent: Node, name: bytes, below: Optional[Node] = None) -> str:
        """Return the path that something gets. Raises OSError where it, or one below, is too long."""
        path = self.path(parent, name)
        longest = len(to_bytes(path))
        if below is not None and below.children:
            longest += max(len(to_bytes(x)) for x, _ in self.below(below, "")) + 1
        if longest > self._longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return path

    @staticmethod
    def path(parent: Optional[Node], name: bytes) -> str:
        """Return the path of a name in a directory."""
        parts = [name]
        while parent is not None and parent.parent is not None:
            parts.append(parent.name)
            parent = parent.parent
        return from_bytes(b"/".join(reversed(parts)))

    def links(self, node: Node) -> int:
        """Return how many names a node has."""
        if node.kind == DIRECTORY:
            return 2
        return (node.parent is not None) + len(self._links.get(node.ino, ()))

    def below(self, top: Node, path: str) -> Iterator[Tuple[str, Node]]:
        """Yield everything below a directory with its path."""
        waiting = [(path, top)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, child in (folder.children or {}).items():
                place = f"{prefix}/{from_bytes(name)}" if prefix else from_bytes(name)
                yield place, child
                if child.children is not None:
                    waiting.append((place, child))

    # --- changing ---------------------------------------------------------------------------------

    def touch(self, node: Node) -> None:
        """Note, before it is done, that a node is about to change."""
        for path in self.paths(node):
            if path not in self.changed:
                self.changed[path] = node.identity()

    def touch_path(self, path: str, there: Optional[Node]) -> None:
        """Note, before it is done, that something else is about to stand at a path, or nothing."""
        if path not in self.changed:
            self.changed[path] = there.identity() if there is not None else None

    def add(self, parent: Node, name: bytes, node: Node) -> None:
        """Let a node stand in a directory, under a name that is free."""
        assert parent.children is not None
        parent.children[name] = node
        if node.parent is None and node is not self.root:
            node.parent, node.name = parent, name
        else:
            self._links.setdefault(node.ino, []).append((parent, name))

    def take(self, parent: Node, name: bytes) -> Node:
        """Take a name away and return what stood there."""
        assert parent.children is not None
        node = parent.children.pop(name)
        if parent.rest is not None:
            self.decide(parent, name)
        more = self._links.get(node.ino)
        if node.parent is parent and node.name == name:
            node.parent = None
            if more:
                node.parent, node.name = more.pop()
        elif more:
            more.remove((parent, name))
        if more is not None and not more:
            del self._links[node.ino]
        return node

    def decide(self, parent: Node, name: bytes) -> None:
        """Note that nothing stands under a name but what is here."""
        if parent.rest is not None:
            parent.rest.decided.add(name)
            self.partial[parent.ino] = parent

    def move(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> Optional[Node]:
        """Rename, and return what stood at the new place, which is gone."""
        assert old.children is not None and new.children is not None
        node = old.children[old_name]
        there = new.children.get(new_name)
        before, after = self.path(old, old_name), self.path(new, new_name)
        self.touch_path(before, node)
        self.touch_path(after, there)
        if node.children:
            for path, child in self.below(node, before):
                self.touch_path(path, child)
                self.touch_path(after + path[len(before) :], None)
        if there is not None:
            self.take(new, new_name)
        self.take(old, old_name)
        self.add(new, new_name, node)
        return there

    # --- what the kernel knows --------------------------------------------------------------------

    def told(self, node: Node) -> None:
        """Note that the kernel was told of a node."""
        node.lookups += 1
        self.known[node.ino] = node

    def forgotten(self, number: int, count: int) -> Optional[Node]:
        """Note that the kernel forgot a node; returns it when nobody knows it any more."""
        node = self.known.get(number)
        if node is None or node is self.root:
            return None
        node.lookups -= count
        if node.lookups > 0:
            return None
        node.lookups = 0
        if node.opens == 0:
            self.known.pop(number, None)
        return node if self.is_gone(node) else None

    def is_gone(self, node: Node) -> bool:
        """Tell whether nothing leads to a node any more."""
        return node.parent is None and node.lookups == 0 and node.opens == 0 and node is not self.root
