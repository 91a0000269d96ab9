"""The buckets of a container: mounted at their paths by rclone or s3fs, for this container alone.

As root each is mounted in the container's own view of the file system, and is gone with the last process
that has that view, however it ends. A plain user's is mounted in a directory of that user and shown from
there. Nothing that a container's end removes is ever above a mounted bucket: its content would go too.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Dict, List, MutableMapping, NamedTuple, Sequence
from urllib.parse import urlsplit

from ..exception import ExecutionError
from ..wire.mounts import BucketMount, bucket_variables
from . import _mounts, _network
from ._bucket_look import Credentials, Unusable, assume, look
from .files import Bind

_READY_SECONDS = 60.0
_END_SECONDS = 2.0
_PASSED_ON = ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_DEATH_SIGNAL = 1


class _Bucket(NamedTuple):
    mount: BucketMount
    variables: Dict[str, str]

    @property
    def words(self) -> str:
        return f"cannot mount the bucket {self.mount.bucket!r} at {self.mount.path}"


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
        self._processes: List["subprocess.Popen[bytes]"] = []
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

    def close(self) -> None:
        """Take them away. What user code has closed is in the buckets by now."""
        if os.geteuid() == 0:
            for bucket in self._buckets:
                with contextlib.suppress(OSError):
                    _mounts.unmount(bucket.mount.path)
        for process in self._processes:
            if self._outside:
                # Mounted where this process cannot unmount it any more: who mounted it does.
                process.terminate()
            # Otherwise it ends when nothing is open any more.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
        for place in self._outside:
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def _mount(self, bucket: _Bucket, place: str) -> None:
        mount = bucket.mount
        tool = _tool(bucket, self._environ)
        try:
            credentials = self._credentials(bucket)
            region = look(
                mount.bucket,
                mount.endpoint,
                mount.key_prefix,
                _region(bucket),
                credentials,
                mount.requester_pays,
            )
        except Unusable as error:
            raise ExecutionError(f"{bucket.words}: {error}") from None
        with contextlib.suppress(FileExistsError):
            os.makedirs(place)
        if os.path.basename(tool) == "rclone":
            command, env = _rclone(tool, mount, place), self._rclone_env(mount, credentials, region)
        else:
            command, env = _s3fs(tool, mount, place, region), _s3fs_env(credentials)
        self._start(bucket, command, env, place)

    def _credentials(self, bucket: _Bucket) -> Credentials:
        mount, given = bucket.mount, bucket.variables
        if mount.role_arn:
            with open(self._identity(bucket), encoding="utf-8") as file:
                token = file.read().strip()
            return assume(mount.role_arn, token, self._session(), mount.endpoint, _region(bucket))
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        if _is_google(mount) and "GOOGLE_ACCESS_KEY_ID" in given:
            names = ("GOOGLE_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_SECRET")
        key_id, secret = (given.get(name, "") for name in names)
        if mount.secret is not None and not (key_id and secret):
            if _is_google(mount):
                names = ("GOOGLE_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_SECRET")
            raise Unusable(f"its Secret has no {names[0]} and {names[1]}: add them")
        return Credentials(key_id, secret, given.get("AWS_SESSION_TOKEN", ""))

    def _identity(self, bucket: _Bucket) -> str:
        path = os.path.join(self._environ.get("NOMAD_SECRETS_DIR", ""), "nomad_buckets.jwt")
        if not os.path.isfile(path):
            raise ExecutionError(
                f"{bucket.words}: oidc_auth_role_arn needs the identity that Nomad gives an allocation;"
                " give a secret instead, or run on a cluster"
            )
        return path

    def _session(self) -> str:
        return self._environ.get("MODAL_TASK_ID") or "modal-nomad"

    def _rclone_env(self, mount: BucketMount, credentials: Credentials, region: str) -> Dict[str, str]:
        options = {
            "TYPE": "s3",
            "PROVIDER": _provider(mount),
            "REGION": region,
            "ENDPOINT": mount.endpoint,
            "REQUESTER_PAYS": "true" if mount.requester_pays else "",
            "NO_CHECK_BUCKET": "true",
            # A file is written as a stream: the most parts there can be make 78 GiB of these.
            "CHUNK_SIZE": "8Mi",
        }
        more = {}
        if mount.role_arn:
            # It goes on taking on the role by itself: what was lent for the look ends in an hour.
            options["ENV_AUTH"] = "true"
            options["STS_ENDPOINT"] = mount.endpoint
            more["AWS_ROLE_ARN"] = mount.role_arn
            more["AWS_WEB_IDENTITY_TOKEN_FILE"] = os.path.join(
                self._environ["NOMAD_SECRETS_DIR"], "nomad_buckets.jwt"
            )
            more["AWS_ROLE_SESSION_NAME"] = self._session()[-64:]
            more["AWS_REGION"] = region
        else:
            options["ACCESS_KEY_ID"] = credentials.key_id
            options["SECRET_ACCESS_KEY"] = credentials.secret
            options["SESSION_TOKEN"] = credentials.token
        return {**{f"RCLONE_CONFIG_BUCKET_{k}": v for k, v in options.items() if v}, **more}

    def _start(self, bucket: _Bucket, command: List[str], more: Dict[str, str], place: str) -> None:
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        for name in (*_PROXIES, *(x.upper() for x in _PROXIES)):
            if name in os.environ:
                env[name] = os.environ[name]
        env.setdefault("PATH", os.defpath)
        # Nothing of a user's own configuration, and nothing of ours is left behind.
        env["HOME"] = env["XDG_CACHE_HOME"] = self._folder
        log = os.path.join(self._folder, f"bucket-{len(self._processes)}.log")
        before = os.stat(place).st_dev
        with open(os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            process = subprocess.Popen(
                command,
                env={**env, **more},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Signals to the container are not for it; it goes when the container is gone.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._processes.append(process)
        give_up = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < give_up:
            with contextlib.suppress(OSError):
                if os.stat(place).st_dev != before:
                    return
            time.sleep(0.01)
        process.kill()
        process.wait()
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        told = lines[-1] if lines else f"it did not within {_READY_SECONDS:g} s"
        raise ExecutionError(f"{bucket.words} by {os.path.basename(command[0])}: {told}")


def _tool(bucket: _Bucket, environ: MutableMapping[str, str]) -> str:
    path = environ.get("PATH") or os.defpath
    rclone, s3fs = (shutil.which(name, path=path) for name in ("rclone", "s3fs"))
    if not rclone and not s3fs:
        raise ExecutionError(
            f"{bucket.words}: neither rclone nor s3fs is on the node: apt-get install rclone fuse3"
        )
    if not rclone and bucket.mount.role_arn:
        raise ExecutionError(f"{bucket.words}: oidc_auth_role_arn needs rclone: apt-get install rclone fuse3")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = "load the module fuse on the node, and do not run the task in a container without /dev/fuse"
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "let the task's user open it, or run the task as root"
        raise ExecutionError(
            f"{bucket.words}: /dev/fuse cannot be used ({error.strerror}): {remedy}"
        ) from None
    if not any(shutil.which(name, path=path) for name in ("fusermount3", "fusermount")):
        raise ExecutionError(f"{bucket.words}: fusermount3 is not on the node: apt-get install fuse3")
    return rclone or s3fs or ""


def _region(bucket: _Bucket) -> str:
    given = bucket.variables.get("AWS_REGION") or bucket.variables.get("AWS_DEFAULT_REGION")
    automatic = _is_google(bucket.mount) or _provider(bucket.mount) == "Cloudflare"
    return given or ("auto" if automatic else "us-east-1")


def _host(mount: BucketMount) -> str:
    return urlsplit(mount.endpoint).hostname or ""


def _is_google(mount: BucketMount) -> bool:
    return _host(mount).endswith("googleapis.com")


def _provider(mount: BucketMount) -> str:
    if not mount.endpoint or _host(mount).endswith(".amazonaws.com"):
        return "AWS"
    return "Cloudflare" if _host(mount).endswith(".r2.cloudflarestorage.com") else "Other"


def _rclone(tool: str, mount: BucketMount, place: str) -> List[str]:
    return [
        tool,
        "mount",
        f"bucket:{mount.bucket}/{mount.key_prefix.rstrip('/')}",
        place,
        "--config=",
        "--log-level=ERROR",
        # What is closed is in the bucket: nothing waits on this node to be sent.
        "--vfs-cache-mode=off",
        # A directory is listed again after this time; dates come with the list, not by a request each.
        "--dir-cache-time=5s",
        "--use-server-modtime",
        *(["--read-only"] if mount.read_only else []),
    ]


def _s3fs(tool: str, mount: BucketMount, place: str, region: str) -> List[str]:
    host = "https://s3.amazonaws.com" if _provider(mount) == "AWS" and not mount.endpoint else mount.endpoint
    options = [f"url={host}", f"endpoint={region}"]
    if _provider(mount) != "AWS":
        options.append("use_path_request_style")
    options += ["ro"] if mount.read_only else []
    options += ["requester_pays"] if mount.requester_pays else []
    options += ["public_bucket=1"] if mount.secret is None else []
    source = mount.bucket + (f":/{mount.key_prefix.rstrip('/')}" if mount.key_prefix else "")
    return [tool, source, place, "-f", "-o", ",".join(options)]


def _s3fs_env(credentials: Credentials) -> Dict[str, str]:
    found = {"AWSACCESSKEYID": credentials.key_id, "AWSSECRETACCESSKEY": credentials.secret}
    if credentials.token:
        found["AWSSESSIONTOKEN"] = credentials.token
    return {name: value for name, value in found.items() if value}


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
