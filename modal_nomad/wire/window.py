"""How far a generator may run ahead of its reader, seen from both ends; pure, no sockets.

The worker numbers what is yielded from 0 and may have ``WINDOW_ITEMS`` items and ``WINDOW_BYTES`` bytes
out that the reader has not taken. The reader says now and then how many it has taken. After a lost
container or connection either end may see a number twice, and takes it once.
"""

from collections import deque
from typing import Any, Deque, List, Optional, Sequence, Tuple

from .frames import FLAG_BLOB

WINDOW_ITEMS = 1024
WINDOW_BYTES = 4 << 20

Item = Tuple[bytes, int]
"""Payload, flags."""


class SendWindow:
    """The worker's end: which item has which number, and whether one more may be made.

    Attributes:
        next: the number of the next item.
        taken: how many items the reader has taken.
    """

    def __init__(self, max_items: int = WINDOW_ITEMS, max_bytes: int = WINDOW_BYTES) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.next = 0
        self.taken = 0
        self._sizes: Deque[int] = deque()
        self._bytes = 0

    def open(self) -> bool:
        """Tell whether the next item may be sent, however large it is."""
        return len(self._sizes) < self._max_items and self._bytes < self._max_bytes

    def send(self, size: int) -> Optional[int]:
        """Count one item of ``size`` bytes in; return its number, or None when the reader has it already."""
        number = self.next
        self.next += 1
        if number < self.taken:
            return None
        self._sizes.append(size)
        self._bytes += size
        return number

    def took(self, count: int) -> None:
        """Note that the reader has taken the first ``count`` items, of this run or of an earlier one."""
        first = self.next - len(self._sizes)
        for _ in range(min(count, self.next) - first):
            self._bytes -= self._sizes.popleft()
        self.taken = max(self.taken, count)


class ReadWindow:
    """The reader's end: each number once and in order, and when to say how far one is.

    Attributes:
        received: how many items have arrived, gaps excluded.
        taken: how many of them were taken.
    """

    def __init__(self, max_items: int = WINDOW_ITEMS, max_bytes: int = WINDOW_BYTES) -> None:
        self._tell_items = max_items // 4
        self._tell_bytes = max_bytes // 4
        self._blob_bytes = max_bytes
        self.received = 0
        self.taken = 0
        self._items: Deque[Item] = deque()
        self._told = 0
        self._bytes = 0

    def receive(self, first: int, items: Sequence[Item]) -> bool:
        """Keep what has not been seen; False when nothing of it was new."""
        fresh: List[Any] = list(items[max(0, self.received - first) :])
        if first > self.received or not fresh:
            return False
        self._items.extend(fresh)
        self.received += len(fresh)
        return True

    def __bool__(self) -> bool:
        return bool(self._items)

    def take(self) -> Item:
        """Return the next item. Raises IndexError when there is none."""
        item = self._items.popleft()
        self.taken += 1
        # How large a blob is, its reader cannot see here: it may have closed the window alone.
        self._bytes += self._blob_bytes if item[1] & FLAG_BLOB else len(item[0])
        return item

    def to_tell(self) -> Optional[int]:
        """Return how many items were taken, when it is time to say so."""
        if self.taken - self._told < self._tell_items and self._bytes < self._tell_bytes:
            return None
        self._told, self._bytes = self.taken, 0
        return self.taken
