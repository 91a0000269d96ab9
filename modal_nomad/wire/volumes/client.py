"""A Volume's manifest over HTTP: blocking, in any thread, standard library only."""

import hashlib
import io
import json
import os
import tempfile
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from ..asking import again, checked
from ..transport import BlobClient
from .entries import MAX_PATH, Entry, decode, decode_all, encode

LAST, NEW, OVER = "last", "new", "over"
"""What a commit does to what is there: a container's wins; an upload's is refused, or wins over files."""
_IN_MEMORY = 8 << 20


class Changes(NamedTuple):
    """A page of what changed in a Volume.

    Attributes:
        entries: in the order of the commits.
        version: of the Volume when the page was made.
        after: where the next page begins; None when this is the last one.
        whole: all of the tree comes, because it is no longer known what was removed since.
    """

    entries: List[Entry]
    version: int
    after: Optional[Tuple[int, str]]
    whole: bool


class Listing(NamedTuple):
    """What a directory holds.

    Attributes:
        path: of the directory.
        entries: in it, by path.
        complete: whether these are all, from where they begin.
    """

    path: str
    entries: List[Entry]
    complete: bool


class VolumeClient:
    """The Volumes of a dispatcher.

    Args:
        address: the server URL.
        token: the bearer token, or what gives it anew for each call.
        timeout: seconds that an answer may take.

    Attributes:
        longest: bytes that a path may have.
    """

    longest = MAX_PATH

    def __init__(
        self, address: str, token: Union[str, Callable[[], str]] = "", timeout: float = 600.0
    ) -> None:
        self._address = address
        self._token = token
        self.blobs = BlobClient(address, token, timeout)

    def with_timeout(self, timeout: float) -> "VolumeClient":
        """Return another client of the same dispatcher, whose answers may take so many seconds."""
        return VolumeClient(self._address, self._token, timeout)

    def missing(self, hashes: List[str]) -> List[str]:
        """Return which blobs the server lacks, and keep the others from collection."""
        if not hashes:
            return []
        body = json.dumps(hashes).encode()
        found = again(lambda: checked(*self.blobs.exchange("POST", "/v1/blobs/missing", body)))
        return [str(x) for x in json.loads(found)["missing"]]

    def put_chunk(self, data: bytes) -> None:
        """Send a chunk. Raises OSError."""
        again(lambda: self.blobs.put(data))

    def get_chunk(self, sha: str) -> bytes:
        """Return a chunk. Raises KeyError when there is none, OSError, also for damaged content."""
        return again(lambda: self.get_chunk_once(sha))

    def get_chunk_once(self, sha: str) -> bytes:
        """Return a chunk, or raise what ``get_chunk`` does at the first failure."""
        return _intact(sha, self.blobs.get(sha))

    def commit(self, volume_id: str, entries: Iterable[Entry], rule: str = LAST) -> Tuple[int, int]:
        """Commit entries, all or none; the same commit sent twice is carried out once.

        Args:
            volume_id: ``vo-…``.
            entries: what stands, or no longer stands, at some paths; their chunks are on the server.
            rule: ``LAST``, ``NEW`` or ``OVER``.

        Returns:
            The Volume's version before and after it.

        Raises:
            Refused: a rule forbids it, or the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as body:
            for entry in entries:
                body.write(encode(entry))
            found = json.loads(self._post(f"{volume_id}/commit?id={_new_id()}&rule={rule}", body))
        return int(found["before"]), int(found["version"])

    def pin(self, volume_id: str, pin_id: str) -> int:
        """Have the version that a Volume has by now kept as it is, and return it. Raises Refused, OSError.

        Args:
            volume_id: ``vo-…``.
            pin_id: chosen by who asks; ``renew`` and ``unpin`` go by it.
        """
        return int(json.loads(self._ask(f"{volume_id}/pin", pin=pin_id))["version"])

    def renew(self, volume_id: str, pin_id: str) -> bool:
        """Have a pinned version kept for longer; says whether it is. Raises Refused, OSError."""
        return bool(json.loads(self._ask(f"{volume_id}/renew", pin=pin_id))["kept"])

    def unpin(self, volume_id: str, pin_id: str) -> None:
        """Say that a pinned version is no longer read: asked once. Raises Refused, OSError."""
        body = json.dumps({"pin": pin_id}).encode()
        checked(*self.blobs.exchange("POST", f"/v1/volumes/{volume_id}/unpin", body))

    def directories(
        self,
        volume_id: str,
        pin_id: str,
        paths: Sequence[str],
        rows: int,
        after: Optional[str] = None,
        name: Optional[str] = None,
    ) -> Tuple[List[Listing], Optional[Entry]]:
        """Return what directories hold in a pinned version, and then what those in them do.

        Args:
            volume_id: ``vo-…``.
            pin_id: of the version.
            paths: the answer has the first one, in part where it is large, and others whole.
            rows: as many entries at most.
            after: a path in the first one, behind which it begins.
            name: what the first one has under it comes too, where that is cut off.

        Raises:
            Refused: the version is no longer kept (``VersionGone``), or the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        request = {"pin": pin_id, "paths": list(paths), "rows": rows, "after": after, "name": name}
        body = json.dumps(request).encode()
        # Once: who asks knows how long it waits.
        answer = checked(*self.blobs.exchange("POST", f"/v1/volumes/{volume_id}/directories", body))
        lines = answer.splitlines()
        head = json.loads(lines[0])
        entries = decode_all(lines[1:])
        found, at = [], 0
        for path, count, complete in head["listings"]:
            found.append(Listing(path, entries[at : at + count], complete))
            at += count
        return found, entries[-1] if head["named"] else None

    def changes(
        self,
        volume_id: str,
        since: int = 0,
        after: Optional[Tuple[int, str]] = None,
        pin_id: Optional[str] = None,
    ) -> Changes:
        """Return a page of what changed after a version, up to a pinned one or now.

        Without one, a row that changes between two pages comes again in a later one, so all pages together
        are the Volume as it is when the last one is made.

        Raises:
            Refused: the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        lines = self._ask(f"{volume_id}/changes", since=since, after=after, pin=pin_id).splitlines()
        head = json.loads(lines[0])
        following = tuple(head["after"]) if head["after"] else None
        return Changes(
            decode_all(lines[1:]),
            int(head["version"]),
            following,
            bool(head["whole"]),
        )

    def all_changes(self, volume_id: str, since: int = 0, pin_id: Optional[str] = None) -> Iterator[Changes]:
        """Yield the pages of what changed after a version, to the last one."""
        page = self.changes(volume_id, since, None, pin_id)
        yield page
        while page.after is not None:
            page = self.changes(volume_id, since, page.after, pin_id)
            yield page

    def entry(self, volume_id: str, path: str) -> Optional[Entry]:
        """Return what stands at a path; None for the top. Raises Refused, OSError."""
        line = self._ask(f"{volume_id}/entry", path=path)
        return decode(line.rstrip(b"\n")) if line else None

    def list(
        self, volume_id: str, path: str, recursive: bool, after: Optional[str] = None
    ) -> Tuple[List[Entry], Optional[str]]:
        """Return a page of a directory, and after which path the next one begins. Raises Refused, OSError."""
        found = json.loads(self._ask(f"{volume_id}/list", path=path, recursive=recursive, after=after))
        return [Entry(*fields) for fields in found["entries"]], found["after"]

    def remove(self, volume_id: str, path: str, recursive: bool) -> None:
        """Remove a path. Raises Refused, OSError."""
        self._ask(f"{volume_id}/remove?id={_new_id()}", path=path, recursive=recursive)

    def copy(self, volume_id: str, sources: List[str], target: str, recursive: bool) -> None:
        """Copy within the Volume. Raises Refused, OSError."""
        self._ask(f"{volume_id}/copy?id={_new_id()}", sources=sources, target=target, recursive=recursive)

    def _ask(self, _where: str, **request: Any) -> bytes:
        return self._post(_where, io.BytesIO(json.dumps(request).encode()))

    def _post(self, path: str, body: Any) -> bytes:
        headers = {"Content-Length": str(body.seek(0, os.SEEK_END) or body.tell())}

        def post() -> bytes:
            body.seek(0)
            return checked(*self.blobs.exchange("POST", f"/v1/volumes/{path}", body, headers))

        # A change may have been carried out already: its id keeps it from being so twice.
        return again(post)


def _intact(sha: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha:
        raise ConnectionError(f"chunk {sha} was damaged on its way")
    return data


def _new_id() -> str:
    return os.urandom(12).hex()
