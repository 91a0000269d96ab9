"""What rclone and s3fs are told of a bucket: their command lines, and in variables what is secret."""

import errno
import os
import re
import shutil
import subprocess
from typing import Dict, List, Mapping
from urllib.parse import urlsplit

from ..exception import ExecutionError
from ..wire.mounts import BucketMount
from ._bucket_look import Credentials, aws_url

IDENTITY = "nomad_buckets.jwt"
_PASSED_ON = ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE")
_NAMES_NO_ACL = 63
"""From this version 1.x on rclone names no ACL unless it is told one."""
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def tool_for(mount: BucketMount, environ: Mapping[str, str]) -> str:
    """Return the path of what mounts a bucket. Raises ExecutionError where something is missing."""
    words = f"cannot mount the bucket {mount.bucket!r} at {mount.path}"
    path = environ.get("PATH") or os.defpath
    rclone, s3fs = (shutil.which(name, path=path) for name in ("rclone", "s3fs"))
    if not rclone and not s3fs:
        raise ExecutionError(f"{words}: neither rclone nor s3fs is on the node: apt-get install rclone fuse3")
    if not rclone and mount.role_arn:
        raise ExecutionError(f"{words}: oidc_auth_role_arn needs rclone: apt-get install rclone fuse3")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = "load the module fuse on the node, and do not run the task in a container without /dev/fuse"
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "let the task's user open it, or run the task as root"
        raise ExecutionError(f"{words}: /dev/fuse cannot be used ({error.strerror}): {remedy}") from None
    if not any(shutil.which(name, path=path) for name in ("fusermount3", "fusermount")):
        raise ExecutionError(f"{words}: fusermount3 is not on the node: apt-get install fuse3")
    if s3fs and is_google(mount) and not mount.role_arn and names_acl(rclone or "", mount, environ):
        # Google refuses an ACL in buckets with uniform access.
        return s3fs
    return rclone or s3fs or ""


def names_acl(tool: str, mount: BucketMount, environ: Mapping[str, str]) -> bool:
    """Tell whether this is an rclone that names an ACL with all that it writes, whatever it is told."""
    if mount.read_only or os.path.basename(tool) != "rclone":
        return False
    env = {name: environ[name] for name in ("PATH", "HOME") if name in environ}
    try:
        done = subprocess.run(
            [tool, "version", "--config="],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(rb"rclone v1\.(\d+)", done.stdout)
    return found is not None and int(found.group(1)) < _NAMES_NO_ACL


def is_google(mount: BucketMount) -> bool:
    """Tell whether a bucket is one of Google's."""
    return _host(mount).endswith("googleapis.com")


def provider(mount: BucketMount) -> str:
    """Return whose bucket it is, as rclone calls them."""
    if is_google(mount):
        return "GCS"
    if not mount.endpoint or is_aws(mount):
        return "AWS"
    return "Cloudflare" if _host(mount).endswith(".r2.cloudflarestorage.com") else "Other"


def is_aws(mount: BucketMount) -> bool:
    """Tell whether a bucket is AWS's own."""
    return not mount.endpoint or ".amazonaws.com" in _host(mount)


def region_of(mount: BucketMount, variables: Mapping[str, str]) -> str:
    """Return a bucket's region, as far as it is known before it is looked at."""
    given = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    return given or ("auto" if provider(mount) in ("GCS", "Cloudflare") else "us-east-1")


def sts_url(mount: BucketMount, region: str) -> str:
    """Return where a role is taken on."""
    return aws_url("sts", region) if is_aws(mount) else mount.endpoint


def rclone(tool: str, mount: BucketMount, place: str) -> List[str]:
    """Return rclone's command line."""
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
        "--dir-cache-time=10s",
        "--use-server-modtime",
        *(["--read-only"] if mount.read_only else []),
    ]


def rclone_variables(
    mount: BucketMount, credentials: Credentials, region: str, folder: str, session: str, acl: bool = False
) -> Dict[str, str]:
    """Return what rclone reads of a bucket in its environment.

    Args:
        mount: the bucket.
        credentials: of a Secret.
        region: of the bucket.
        folder: the allocation's secrets.
        session: what a role's session is called.
        acl: whether this rclone names an ACL in any case.
    """
    path_style = mount.path_style and is_aws(mount)
    options = {
        "TYPE": "s3",
        # With the provider AWS there is no path style.
        "PROVIDER": "Other" if path_style else provider(mount),
        "REGION": region,
        "ENDPOINT": mount.endpoint or (aws_url("s3", region) if path_style else ""),
        "REQUESTER_PAYS": "true" if mount.requester_pays else "",
        "NO_CHECK_BUCKET": "true",
        # The one that AWS takes also where a bucket has no ACLs, as new ones have none. Its own is "private".
        "ACL": "bucket-owner-full-control" if acl and is_aws(mount) else "",
        # Else a key with a line break or the like breaks its whole directory.
        "LIST_URL_ENCODE": "true",
        # A file is written as a stream: the most parts there can be make 78 GiB of these.
        "CHUNK_SIZE": "8Mi",
        # Google changes that header on its way, and newer versions of rclone sign it.
        "USE_ACCEPT_ENCODING_GZIP": "false" if is_google(mount) else "",
    }
    more = {}
    if mount.role_arn:
        # It goes on taking on the role by itself: what was lent for the look ends in an hour.
        options["ENV_AUTH"] = "true"
        options["STS_ENDPOINT"] = sts_url(mount, region)
        more["AWS_ROLE_ARN"] = mount.role_arn
        more["AWS_WEB_IDENTITY_TOKEN_FILE"] = os.path.join(folder, IDENTITY)
        more["AWS_ROLE_SESSION_NAME"] = session
        more["AWS_REGION"] = region
        if is_aws(mount):
            # Where the look asked: not every network and no country leads to the global service.
            more["AWS_STS_REGIONAL_ENDPOINTS"] = "regional"
        # Newer versions of rclone know of no option for it.
        more["AWS_ENDPOINT_URL_STS"] = sts_url(mount, region)
    else:
        options["ACCESS_KEY_ID"] = credentials.key_id
        options["SECRET_ACCESS_KEY"] = credentials.secret
        options["SESSION_TOKEN"] = credentials.token
    return {**{f"RCLONE_CONFIG_BUCKET_{k}": v for k, v in options.items() if v}, **more}


def s3fs(tool: str, mount: BucketMount, place: str, region: str) -> List[str]:
    """Return the command line of s3fs."""
    options = [f"url={mount.endpoint or aws_url('s3', region)}", f"endpoint={region}"]
    if mount.path_style or not is_aws(mount):
        options.append("use_path_request_style")
    options += ["ro"] if mount.read_only else []
    options += ["requester_pays"] if mount.requester_pays else []
    options += ["public_bucket=1"] if mount.secret is None else []
    source = mount.bucket + (f":/{mount.key_prefix.rstrip('/')}" if mount.key_prefix else "")
    return [tool, source, place, "-f", "-o", ",".join(options)]


def s3fs_variables(credentials: Credentials) -> Dict[str, str]:
    """Return what s3fs reads of credentials in its environment."""
    found = {"AWSACCESSKEYID": credentials.key_id, "AWSSECRETACCESSKEY": credentials.secret}
    if credentials.token:
        found["AWSSESSIONTOKEN"] = credentials.token
    return {name: value for name, value in found.items() if value}


def base_variables(environ: Mapping[str, str], folder: str) -> Dict[str, str]:
    """Return what either tool has of a container's variables; nothing of a user's own configuration."""
    env = {name: environ[name] for name in _PASSED_ON if name in environ}
    for name in (*_PROXIES, *(x.upper() for x in _PROXIES)):
        if name in environ:
            env[name] = environ[name]
    env.setdefault("PATH", os.defpath)
    # Whom the look trusts, the tools trust as well.
    trusted = environ.get("SSL_CERT_FILE", "")
    own = environ.get("MODAL_CA_BUNDLE", "")
    if own and trusted:
        trusted = _joined(os.path.join(folder, "buckets-ca.pem"), trusted, own)
    if own or trusted:
        env["SSL_CERT_FILE"] = env["CURL_CA_BUNDLE"] = trusted or own
    # Nothing of theirs is left behind.
    env["HOME"] = env["XDG_CACHE_HOME"] = folder
    return env


def _host(mount: BucketMount) -> str:
    return urlsplit(mount.endpoint).hostname or ""


def _joined(path: str, *files: str) -> str:
    with open(path, "wb") as out:
        for name in files:
            with open(name, "rb") as file:
                out.write(file.read() + b"\n")
    return path
