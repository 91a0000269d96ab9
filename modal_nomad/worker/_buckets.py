"""The buckets of a container: mounted at their paths by rclone or s3fs, for this container alone.

As root each is mounted in the container's own view of the file system, and is gone with the last process
that has that view, however it ends. A plain user's is mounted in a directory of that user and shown from
there. Nothing that a container's end removes is ever above a mounted bucket: its content would go too.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Dict, List, MutableMapping, NamedTuple, Sequence

from ..exception import ExecutionError
from ..wire.mounts import BucketMount, bucket_variables
from . import _bucket_tools, _mounts, _network
from ._bucket_files import close_own, held_by_others
from ._bucket_look import Credentials, Unusable, assume, look
from .files import Bind

_READY_SECONDS = 60.0
_END_SECONDS = 5.0
_DEATH_SIGNAL = 1


class _Bucket(NamedTuple):
    mount: BucketMount
    variables: Dict[str, str]

    @property
    def words(self) -> str:
        return f"cannot mount the bucket {self.mount.bucket!r} at {self.mount.path}"


class _Served(NamedTuple):
    bucket: _Bucket
    process: "subprocess.Popen[bytes]"
    device: int


class Buckets:
    """What a Function mounts of buckets.

    Args:
        wanted: what it asks for.
        environ: of the container; the credentials are taken out of it.
    """

    def __init__(self, wanted: Sequence[BucketMount], environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._buckets: List[_Bucket] = []
        for index, mount in enumerate(wanted):
            prefix = bucket_variables(index)
            names = [name for name in environ if name.startswith(prefix)]
            variables = {name[len(prefix) :]: environ.pop(name) for name in names}
            self._buckets.append(_Bucket(mount, variables))
        self._served: List[_Served] = []
        self._outside: List[str] = []
        self._folder = environ.get("NOMAD_SECRETS_DIR") or tempfile.mkdtemp(prefix="modal-nomad-buckets-")

    def paths(self) -> List[str]:
        """Return where buckets are mounted once there is a view of the file system; none for a plain user."""
        return [x.mount.path for x in self._buckets] if os.geteuid() == 0 else []

    def binds(self) -> List[Bind]:
        """Mount a plain user's buckets, and return where they are to be seen. Raises ExecutionError."""
        if os.geteuid() == 0:
            return []
        if self._buckets and _network.has_left(self._environ):
            raise ExecutionError(
                f"{self._buckets[0].words}: with block_network=True only containers that run as root can"
                " mount one: run them as root, or take one of the two away"
            )
        folder = _own_folder()
        found = []
        for bucket in self._buckets:
            place = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder)
            self._outside.append(place)
            self._mount(bucket, place)
            found.append(Bind(place, bucket.mount.path, bucket.mount.read_only))
        return found

    def mount(self) -> None:
        """Mount root's buckets, in the view that is this container's own. Raises ExecutionError."""
        if os.geteuid() == 0:
            for bucket in self._buckets:
                with _network.outside(self._environ):
                    self._mount(bucket, bucket.mount.path)
        for served in self._served:
            # From now on this process may have threads.
            threading.Thread(target=_pass_on, args=served[:2], daemon=True).start()

    def close(self, seconds: float = _END_SECONDS) -> None:
        """Take them away, when what is open of them is closed and what is being sent is there.

        Args:
            seconds: how long others of this container, such as processes that user code started, may go on
                writing; what they have not written by then is lost, and that is said.
        """
        give_up = time.monotonic() + seconds
        devices = {served.device for served in self._served}
        if devices:
            close_own(devices)
        if os.geteuid() == 0:
            for bucket in self._buckets:
                with contextlib.suppress(OSError):
                    _mounts.unmount(bucket.mount.path)
        for served in self._served:
            if self._outside:
                # Mounted where this process cannot unmount it any more: who mounted it does.
                while held_by_others({served.device}) and time.monotonic() < give_up:
                    time.sleep(0.05)
                left = held_by_others({served.device})
                served.process.terminate()
            else:
                # It ends when nothing is open any more.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    served.process.wait(max(0.0, give_up - time.monotonic()))
                left = [] if served.process.poll() is not None else [("", "a file")]
            if left:
                sys.stderr.write(
                    f"modal-nomad worker: {left[0][1]} of the bucket {served.bucket.mount.bucket!r} was still"
                    f" open {seconds:g} s after the container's end: what was not closed is lost\n"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                served.process.wait(_END_SECONDS if self._outside else 0)
        for place in self._outside:
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def _mount(self, bucket: _Bucket, place: str) -> None:
        mount = bucket.mount
        tool = _bucket_tools.tool_for(mount, self._environ)
        try:
            credentials = self._credentials(bucket)
            region = look(
                mount.bucket,
                mount.endpoint,
                mount.key_prefix,
                _bucket_tools.region_of(mount, bucket.variables),
                credentials,
                mount.requester_pays,
            )
        except Unusable as error:
            raise ExecutionError(f"{bucket.words}: {error}") from None
        with contextlib.suppress(FileExistsError):
            os.makedirs(place)
        if os.path.basename(tool) == "rclone":
            command = _bucket_tools.rclone(tool, mount, place)
            acl = _bucket_tools.is_aws(mount) and _bucket_tools.names_acl(tool, mount, self._environ)
            env = _bucket_tools.rclone_variables(
                mount, credentials, region, self._secrets, self._session(), acl
            )
        else:
            command = _bucket_tools.s3fs(tool, mount, place, region)
            env = _bucket_tools.s3fs_variables(credentials)
        self._start(bucket, command, env, place)

    def _credentials(self, bucket: _Bucket) -> Credentials:
        mount, given = bucket.mount, bucket.variables
        if mount.role_arn:
            with open(self._identity(bucket), encoding="utf-8") as file:
                token = file.read().strip()
            at = _bucket_tools.sts_url(mount, _bucket_tools.region_of(mount, given))
            return assume(mount.role_arn, token, self._session(), at)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        if _bucket_tools.is_google(mount) and "GOOGLE_ACCESS_KEY_ID" in given:
            names = ("GOOGLE_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_SECRET")
        key_id, secret = (given.get(name, "") for name in names)
        if mount.secret is not None and not (key_id and secret):
            if _bucket_tools.is_google(mount):
                names = ("GOOGLE_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_SECRET")
            raise Unusable(f"its Secret has no {names[0]} and {names[1]}: add them")
        return Credentials(key_id, secret, given.get("AWS_SESSION_TOKEN", ""))

    @property
    def _secrets(self) -> str:
        return self._environ.get("NOMAD_SECRETS_DIR", "")

    def _identity(self, bucket: _Bucket) -> str:
        path = os.path.join(self._secrets, _bucket_tools.IDENTITY)
        if not os.path.isfile(path):
            raise ExecutionError(
                f"{bucket.words}: oidc_auth_role_arn needs the identity that Nomad gives an allocation;"
                " give a secret instead, or run on a cluster"
            )
        return path

    def _session(self) -> str:
        return (self._environ.get("MODAL_TASK_ID") or "modal-nomad")[-64:]

    def _start(self, bucket: _Bucket, command: List[str], more: Dict[str, str], place: str) -> None:
        before = os.stat(place).st_dev
        process = subprocess.Popen(
            command,
            env={**_bucket_tools.base_variables(os.environ, self._folder), **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Signals to the container are not for it; it goes when the container is gone.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        give_up = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < give_up:
            with contextlib.suppress(OSError):
                device = os.stat(place).st_dev
                if device != before:
                    self._served.append(_Served(bucket, process, device))
                    return
            time.sleep(0.01)
        process.kill()
        process.wait()
        lines = [line for line in _said(process).decode("utf-8", "replace").splitlines() if line.strip()]
        told = lines[-1].strip() if lines else f"it did not within {_READY_SECONDS:g} s"
        raise ExecutionError(f"{bucket.words} by {os.path.basename(command[0])}: {told}")


def _said(process: "subprocess.Popen[bytes]") -> bytes:
    """Return what a process said by now; those that it started may go on."""
    out = process.stdout
    assert out is not None
    found = b""
    while select.select([out], [], [], 0)[0]:
        data = os.read(out.fileno(), 1 << 16)
        if not data:
            break
        found += data
    out.close()
    return found


def _pass_on(bucket: _Bucket, process: "subprocess.Popen[bytes]") -> None:
    """Say what a tool says: user code has a number of an error alone."""
    assert process.stdout is not None
    for line in process.stdout:
        text = line.decode("utf-8", "replace").strip()
        if " [INF] " in text or text.endswith("Unmounted rclone mount"):
            # What s3fs is, which it says each time, and that rclone ended as it was told to.
            continue
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"modal-nomad worker: bucket {bucket.mount.bucket!r}: {text}\n")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGTERM))


def _own_folder() -> str:
    """Return this user's folder of mounted buckets, without what containers left that were killed."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = os.path.join(base, f"modal-nomad-buckets-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if found.st_uid != os.getuid():
        raise ExecutionError(f"{folder} belongs to somebody else: remove it")
    for name in os.listdir(folder):
        place = os.path.join(folder, name)
        try:
            os.stat(place)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                subprocess.run(["fusermount3", "-u", "-z", place], stderr=subprocess.DEVNULL, check=False)
        with contextlib.suppress(OSError):
            # One that is mounted, or about to be, is not empty or busy.
            if not os.path.exists(f"/proc/{name.partition('-')[0]}"):
                os.rmdir(place)
    return folder
