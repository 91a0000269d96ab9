"""What a Function's containers have at paths of theirs, and the Secrets that go with it: as data."""

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple


@dataclass(frozen=True)
class VolumeMount:
    """A Volume that a container sees.

    Attributes:
        path: where, absolute.
        volume_id: of one that the dispatcher keeps.
        read_only: whether it may only be read.
        backend: ``csi`` or ``host`` for one that Nomad mounts.
        source: that one's name.
        access_mode: how Nomad mounts it.
        sub_path: the directory of it that is seen; empty for all.
    """

    path: str
    volume_id: str
    read_only: bool = False
    backend: str = ""
    source: str = ""
    access_mode: str = ""
    sub_path: str = ""


@dataclass(frozen=True)
class NfsMount:
    """A NetworkFileSystem that a container sees: at which absolute path, and its id."""

    path: str
    nfs_id: str


@dataclass(frozen=True)
class SecretRef:
    """Where a container finds the variables of a Secret. Their values stand in no specification.

    Attributes:
        name: of a stored Secret.
        environment: where it is stored; empty means the Function's own.
        ephemeral: it was made of values in the program, and ``name`` is what the server called it.
        required: variables that it must have.
        vault_path: read in Vault for each container instead, with a lease that ends with it.
        keys: variable to field of what stands at ``vault_path``; empty takes every field by its own name.
        prefix: what the names of its variables get before them.
    """

    name: str = ""
    environment: str = ""
    ephemeral: bool = False
    required: Tuple[str, ...] = ()
    vault_path: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""


@dataclass(frozen=True)
class BucketMount:
    """A bucket that a container sees as a directory.

    Attributes:
        path: where, absolute.
        bucket: its name.
        endpoint: the service's URL; empty for AWS.
        key_prefix: what the keys begin with that are shown; empty, or it ends in a slash.
        role_arn: a role to take on with the allocation's identity; empty for none.
        secret: where the credentials are; None for none.
        read_only: whether nothing may be written.
        requester_pays: whether requests say that they are paid for.
        path_style: whether the bucket stands in the path of AWS's URLs and not in the host's name.
    """

    path: str
    bucket: str
    endpoint: str = ""
    key_prefix: str = ""
    role_arn: str = ""
    secret: Optional[SecretRef] = None
    read_only: bool = False
    requester_pays: bool = False
    path_style: bool = False


def bucket_variables(index: int) -> str:
    """Return what the variables of a bucket's Secret begin with; user code never sees them."""
    return f"MODAL_BUCKET_{index}_"
