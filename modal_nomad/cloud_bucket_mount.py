"""``CloudBucketMount``: a bucket of S3, or of a service with its API, as a directory of containers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .exception import InvalidError

if TYPE_CHECKING:
    from .secret import Secret
    from .wire.mounts import BucketMount, SecretRef

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class CloudBucketMount:
    """A bucket that containers see as a directory, in ``volumes={path: CloudBucketMount(...)}``.

    Args:
        bucket_name: the bucket.
        bucket_endpoint_url: the service: none for AWS S3; ``https://ACCOUNT.r2.cloudflarestorage.com`` for
            R2, ``https://storage.googleapis.com`` for GCS, or one of your own.
        key_prefix: only what has keys that begin so is shown; it ends in ``/``.
        secret: has ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, for GCS ``GOOGLE_ACCESS_KEY_ID``
            and ``GOOGLE_ACCESS_KEY_SECRET``; ``AWS_REGION`` and ``AWS_SESSION_TOKEN`` where they are needed.
            None of it becomes a variable of user code.
        oidc_auth_role_arn: a role to take on with the identity that Nomad gives an allocation, instead.
        read_only: whether nothing may be written.
        requester_pays: whether the requests are paid for by whose credentials these are.
        force_path_style: whether AWS is asked for ``https://HOST/BUCKET`` and not ``https://BUCKET.HOST``;
            other services always are.

    Raises:
        ValueError: ``key_prefix`` does not end in a slash, or ``requester_pays`` comes without a Secret.
        InvalidError: another argument cannot be meant.

    Example:
        >>> modal.CloudBucketMount("data", key_prefix="2026/", read_only=True).key_prefix
        '2026/'
    """

    bucket_name: str
    bucket_endpoint_url: str | None = None
    key_prefix: str | None = None
    secret: Secret | None = None
    oidc_auth_role_arn: str | None = None
    read_only: bool = False
    requester_pays: bool = False
    force_path_style: bool = False

    def __post_init__(self) -> None:
        from .secret import Secret

        name: Any = self.bucket_name
        odd = not isinstance(name, str) or not name.isprintable() or {"/", " ", ":"} & set(name)
        if odd or not name[:1].isalnum():
            raise InvalidError(f"bucket_name is {name!r}; give the name of a bucket, without a path")
        if self.bucket_endpoint_url:
            parts = urlsplit(self.bucket_endpoint_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                raise InvalidError(
                    f"bucket_endpoint_url is {self.bucket_endpoint_url!r}; give a URL such as https://HOST"
                )
        if self.key_prefix and not self.key_prefix.endswith("/"):
            raise ValueError(f"key_prefix is {self.key_prefix!r}; it must end in a '/'")
        if self.key_prefix and (self.key_prefix.startswith("/") or not self.key_prefix.isprintable()):
            raise InvalidError(f"key_prefix is {self.key_prefix!r}; no key begins so")
        if self.key_prefix and {"", ".", ".."} & set(self.key_prefix[:-1].split("/")):
            # A file system takes them for other directories: those above, in the end for other buckets.
            raise InvalidError(
                f"key_prefix is {self.key_prefix!r}; no directory can be called '.', '..' or nothing"
            )
        if self.secret is not None and not isinstance(self.secret, Secret):
            raise InvalidError(f"secret is {self.secret!r}; give a modal.Secret")
        if self.requester_pays and self.secret is None:
            raise ValueError("requester_pays needs credentials: give a secret")
        if self.secret is not None and self.oidc_auth_role_arn:
            raise InvalidError("give a CloudBucketMount a secret or an oidc_auth_role_arn, not both")

    @property
    def _is_google(self) -> bool:
        return (urlsplit(self.bucket_endpoint_url or "").hostname or "").endswith("googleapis.com")

    def _mount(self, path: str, secret: SecretRef | None) -> BucketMount:
        from .wire.mounts import BucketMount

        if secret is not None and not self._is_google:
            # Looked at when it is published: without them no container would start.
            needed = (*secret.required, *(x for x in _KEYS if x not in secret.required))
            secret = replace(secret, required=needed)
        return BucketMount(
            path=path,
            bucket=self.bucket_name,
            endpoint=self.bucket_endpoint_url or "",
            key_prefix=self.key_prefix or "",
            role_arn=self.oidc_auth_role_arn or "",
            secret=secret,
            read_only=self.read_only,
            requester_pays=self.requester_pays,
            path_style=self.force_path_style,
        )
