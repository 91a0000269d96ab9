"""Which bucket blobs are in, and how it is reached."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3Settings:
    """The dispatcher's ``[s3]``.

    Attributes:
        bucket: its name; empty for none, then blobs are in a directory.
        endpoint: the service's URL; empty for AWS.
        region: of the bucket; empty for what AWS's own settings say, else ``us-east-1``.
        prefix: what the keys of blobs begin with.
        access_key_id: empty for AWS's own chain: environment, shared file, web identity, instance.
        secret_access_key: belongs to it.
        path_style: whether the bucket stands in the path of a URL and not in the host's name.
        ca_file: CA bundle for https; empty uses the system's.
        redirect: whether clients are sent to the bucket for what they fetch.
    """

    bucket: str = ""
    endpoint: str = ""
    region: str = ""
    prefix: str = "blobs/"
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    path_style: bool = False
    ca_file: str = ""
    redirect: bool = False

    @property
    def where(self) -> str:
        """The service, for texts."""
        return self.endpoint or "AWS"
