"""What the gateway tells a container in a request's header fields. User code sees none of it."""

KEY = b"x-modal-nomad-key"
"""Proves that the gateway sent it: containers share a node's network with others."""
METHOD = b"x-modal-nomad-method"
"""Which method of a class answers."""
CALL = b"x-modal-nomad-call"
"""The call that the request is to user code."""
PREFIX = b"x-modal-nomad-prefix"
"""What of the path led here, where it was not the host name."""
REFUSED = b"x-modal-nomad-refused"
"""In an answer of status 421: the container did not take the request, and another one may."""
FIELDS = frozenset((KEY, METHOD, CALL, PREFIX))
