"""Files of an image (``Image.add_local_*``) at their absolute paths, in this container only.

The container gets a mount namespace of its own in which the directories that receive files are
overlaid in memory; the node's own tree is never written. Where the kernel refuses an overlay, the
directory is rebuilt from bind mounts, which every kernel has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import tempfile
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from modal_nomad.exception import ExecutionError
from modal_nomad.wire.spec import MountedFile
from modal_nomad.worker import _mounts
from modal_nomad.worker._volume_cache import cache_directory

Fetch = Callable[[Sequence[str]], Mapping[str, bytes]]
SOURCE_ROOT = "/root"
"""Where ``add_local_python_source`` puts modules: on the import path, after the user's code."""


class Bind(NamedTuple):
    """A directory of the container that is to be seen at a path.

    Attributes:
        source: the directory.
        path: where user code sees it.
        read_only: whether it may not be written there.
        attach: mounts something else at the path; False where it cannot, then the directory is shown.
    """

    source: str
    path: str
    read_only: bool
    attach: Optional[Callable[[], bool]] = None


def import_roots(files: Sequence[MountedFile]) -> List[str]:
    """Return the directories that these files make importable, for ``sys.path`` after the code."""
    python = any(f.path.endswith(".py") and f.path.startswith(SOURCE_ROOT + "/") for f in files)
    return [SOURCE_ROOT] if python else []


def default_keep(environ: Optional[Mapping[str, str]] = None) -> List[str]:
    """Return what must stay the node's own even under an overlaid directory: our code and sockets."""
    environ = os.environ if environ is None else environ
    names = (
        "MODAL_CODE_DIR",
        "MODAL_NFS_DIR",
        "MODAL_RUNTIME_DIR",
        "NOMAD_ALLOC_DIR",
        "NOMAD_TASK_DIR",
        "NOMAD_SECRETS_DIR",
    )
    keep = [environ[name] for name in names if environ.get(name)]
    address = environ.get("MODAL_SERVER_URL", "")
    if address.startswith("unix://"):
        keep.append(os.path.dirname(address[len("unix://") :]))
    if environ.get("MODAL_WORKER_TOKEN_FILE"):
        keep.append(os.path.dirname(environ["MODAL_WORKER_TOKEN_FILE"]))
    return keep


def place(
    files: Sequence[MountedFile],
    fetch: Fetch,
    *,
    directories: Sequence[str] = (),
    keep: Optional[Sequence[str]] = None,
    binds: Sequence[Bind] = (),
) -> None:
    """Put files in place for this process and its children.

    To be called while the process has one thread: a mount namespace belongs to a thread, a user
    namespace is refused to several.

    Args:
        files: what goes where; a later file wins over an earlier one of the same path.
        fetch: returns blobs by their SHA-256.
        directories: absolute paths of directories to make, empty, where they are not.
        binds: directories to be seen at other absolute paths.
        keep: directories that stay the node's own, None for ``default_keep()``.

    Raises:
        ExecutionError: this machine cannot do it; the text names the remedy.
    """
    if not files and not directories and not binds:
        return
    absent = [*directories, *(bind.path for bind in binds if not os.path.isdir(bind.path))]
    wanted = by_path(files)
    # Fetched first: afterwards the certificates or sockets that fetching needs may be covered.
    contents = fetch([*{f.blob: None for f in wanted.values()}]) if wanted else {}
    kept = [*(default_keep() if keep is None else keep)]
    if binds:
        # Under an overlay in memory, the node's chunks of Volumes would fill that.
        kept.append(cache_directory(os.environ))
    where = os.getcwd()
    try:
        _View(kept).open_up([posixpath.dirname(posixpath.normpath(p)) for p in (*wanted, *absent)])
    except OSError as exc:
        raise ExecutionError(
            f"cannot add the image's files on this node ({exc}): run containers as root, allow user "
            "namespaces there (sysctl user.max_user_namespaces), or use the docker driver"
        ) from exc
    # The old directory handle looks under the mounts made above.
    os.chdir(where)
    for directory in absent:
        os.makedirs(directory, exist_ok=True)
    for bind in binds:
        if bind.attach is None or not bind.attach():
            show(bind)
    for path, file in wanted.items():
        write(path, contents[file.blob], file.mode)


def by_path(files: Sequence[MountedFile]) -> Dict[str, MountedFile]:
    """Return files by their absolute paths, of two at one path the later one. Raises ExecutionError."""
    wanted: Dict[str, MountedFile] = {}
    for file in files:
        path = posixpath.normpath(file.path)
        if not path.startswith("/") or path.startswith("//") or path == "/":
            raise ExecutionError(f"image file {file.path!r} needs an absolute path: give add_local_* one")
        wanted[path] = file
    return wanted


def show(bind: Bind) -> None:
    """Bind a directory to where it is to be seen. Raises ExecutionError."""
    _bind(bind.source, bind.path, bind.read_only)


def _bind(source: str, path: str, read_only: bool) -> None:
    try:
        _mounts.mount(source, path, flags=_mounts.MS_BIND)
        if read_only:
            _mounts.make_read_only(path)
    except OSError as exc:
        raise ExecutionError(f"cannot show {source} at {path} ({exc}): choose another path") from exc


def write(path: str, data: bytes, mode: int) -> None:
    """Write one file, in place of what stands there. Raises ExecutionError."""
    try:
        os.makedirs(posixpath.dirname(path), exist_ok=True)
        # Unlinked first: a link there may point at a place that is not covered.
        if os.path.lexists(path):
            _remove(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), stat.S_IMODE(mode))
    except OSError as exc:
        raise ExecutionError(
            f"cannot add the image's file {path} ({exc.strerror}): another file or directory of the "
            "node is in its way; give add_local_* another path"
        ) from exc


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        # A bind mount of ours, where overlays are refused.
        _mounts.unmount(path)
        os.unlink(path)


class _View:
    """A private view in which some directories are writable without the node seeing it."""

    def __init__(self, keep: Sequence[str]) -> None:
        self._keep = [os.path.realpath(k) for k in keep if os.path.isdir(k)]
        self._scratch = ""
        self._count = 0

    def open_up(self, directories: Sequence[str]) -> None:
        # Resolved, since /bin or /var/run are links on many systems.
        anchors = {_existing(os.path.realpath(d)) for d in directories}
        self._scratch = _mount_point()
        _mounts.enter_private_namespace()
        _mounts.mount("tmpfs", self._scratch, "tmpfs", data="mode=0700")
        if "/" in anchors:
            self._new_root()
        for anchor in sorted(anchors - {"/"}):
            self._cover(anchor)

    def _folder(self) -> str:
        self._count += 1
        path = os.path.join(self._scratch, str(self._count))
        os.mkdir(path)
        return path

    def _new_root(self) -> None:
        root = self._folder()
        _mounts.mount("tmpfs", root, "tmpfs", data="mode=0755")
        self._farm("/", root)
        _mounts.change_root(root)

    def _cover(self, directory: str) -> None:
        # What stays visible through the cover is held open now, and bound back over it afterwards.
        held = {p: os.open(p, os.O_PATH | os.O_CLOEXEC) for p in self._under(directory)}
        try:
            self._overlay(directory)
            for path, descriptor in held.items():
                self._bind_back(descriptor, path)
        finally:
            for descriptor in held.values():
                os.close(descriptor)

    def _under(self, directory: str) -> List[str]:
        inside = {p for p in (*_mounts.mount_points(), *self._keep) if p.startswith(directory + "/")}
        top: List[str] = []
        for path in sorted(inside):
            if os.path.lexists(path) and not any(path.startswith(t + "/") for t in top):
                top.append(path)
        return top

    @staticmethod
    def _bind_back(descriptor: int, path: str) -> None:
        _mounts.mount(f"/proc/self/fd/{descriptor}", path, flags=_mounts.MS_BIND | _mounts.MS_REC)

    def _overlay(self, directory: str) -> None:
        if not os.access(directory, os.R_OK | os.X_OK):
            # Such as /root for anybody else: an empty one in its place hides nothing from this user.
            _mounts.mount("tmpfs", directory, "tmpfs", data="mode=0755")
            return
        upper, work = self._folder(), self._folder()
        _like(directory, upper)
        lower = directory.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        for options in (layers, layers + ",userxattr"):
            try:
                _mounts.mount("overlay", directory, "overlay", data=options)
                return
            except OSError:
                continue
        farm = self._folder()
        _mounts.mount("tmpfs", farm, "tmpfs")
        _like(directory, farm)
        self._farm(directory, farm)
        # Moved, not bound: a second place of these mounts would keep their files from being replaced.
        _mounts.mount(farm, directory, flags=_mounts.MS_MOVE)

    def _farm(self, source: str, target: str) -> None:
        """Fill an empty directory with bind mounts of another one's entries."""
        for entry in sorted(os.scandir(source), key=lambda e: e.name):
            path = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
                continue
            if entry.is_dir():
                os.mkdir(path)
            else:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            _mounts.mount(entry.path, path, flags=_mounts.MS_BIND | _mounts.MS_REC)


def _mount_point() -> str:
    """Return this user's own empty directory; all containers share it, each mounts its own memory on it."""
    path = os.path.join(os.path.realpath(tempfile.gettempdir()), f"modal-nomad-files-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(errno.EPERM, f"{path} belongs to somebody else: remove it")
    return path


def _like(source: str, target: str) -> None:
    found = os.stat(source)
    try:
        os.chown(target, found.st_uid, found.st_gid)
    except OSError:
        # In a user namespace only this user exists; the directory is then this user's, in here.
        os.chmod(target, 0o755)
        return
    os.chmod(target, stat.S_IMODE(found.st_mode))


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
