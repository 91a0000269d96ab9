"""What the gateway tells a container in a request's header fields. User code sees none of it."""

import hashlib
from typing import Optional

KEY = b"x-modal-nomad-key"
"""Proves that the gateway sent it: containers share a node's network with others."""
METHOD = b"x-modal-nomad-method"
"""Which method of a class answers."""
CALL = b"x-modal-nomad-call"
"""The call that the request is to user code."""
PREFIX = b"x-modal-nomad-prefix"
"""What of the path led here, where it was not the host name."""
PATIENCE = b"x-modal-nomad-patience"
"""For so many milliseconds it may wait for a place in the container; without, for as long as it takes."""
REFUSED = b"x-modal-nomad-refused"
"""In an answer of status 421, with its proof: the container did not take the request, and another one may."""
FULL = b" full"
"""Follows the proof where the container may take it later."""
FIELDS = frozenset((KEY, METHOD, CALL, PREFIX, PATIENCE))


def refusal(key: bytes) -> bytes:
    """Return what proves that a refusal is no app's: who was shown a gateway's key makes it of that."""
    return hashlib.sha256(b"refused:" + key).hexdigest().encode()


def patience_of(value: Optional[bytes]) -> Optional[float]:
    """Return how many seconds a request may wait for its place; None for as long as it takes."""
    return int(value) / 1000 if value is not None and value.isdigit() else None
