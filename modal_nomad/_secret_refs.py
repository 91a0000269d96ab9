"""What is published of a Secret: where it is, never what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .exception import InvalidError

if TYPE_CHECKING:
    from .secret import Secret
    from .wire.mounts import SecretRef


def reference_of(secret: Secret, known: Mapping[Secret, SecretRef] | None) -> SecretRef:
    """Return where a Secret is.

    Args:
        secret: the Secret.
        known: where each one is; None knows those alone that the server has anyway.

    Raises:
        InvalidError: its values would have to be sent, and were not.
    """
    found = known.get(secret) if known is not None else secret._reference()
    if found is None or (found.ephemeral and not found.name):
        raise InvalidError(
            f"{secret!r} has its values in the program, and a job holds none: store it with"
            " `modal-nomad secret create`, and use Secret.from_name"
        )
    return found
