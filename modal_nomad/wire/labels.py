"""What the URLs of web endpoints look like. Pure."""

from __future__ import annotations

import hashlib
import re

MAX_LABEL = 63
"""Of DNS: no part of a host name is longer."""
_HASH = 6
_OTHER = re.compile(r"[^a-z0-9]+")


def slug(name: str) -> str:
    """Return a name as it may stand in a host name: lower-case letters, digits and dashes."""
    return _OTHER.sub("-", name.lower()).strip("-")


def endpoint_label(
    app: str,
    function: str,
    *,
    label: str = "",
    environment_suffix: str = "",
    dev_suffix: str = "",
    workspace: str = "",
) -> str:
    """Return the first part of an endpoint's host name, which is unique among all of them.

    Args:
        app: the App's name.
        function: the Function's name, or ``Class.method``.
        label: what the user wants in place of both.
        environment_suffix: of the environment; empty for the default one.
        dev_suffix: of an App that runs only for now; empty for a deployed one.
        workspace: what all endpoints of this installation begin with, or empty.

    Example:
        >>> endpoint_label("Shop", "Api.web", environment_suffix="test", workspace="acme")
        'acme--shop-api-web-test'
    """
    middle = label or "-".join(x for x in (slug(app), slug(function)) if x)
    begin = f"{slug(workspace)}--" if slug(workspace) else ""
    end = "".join(f"-{slug(x)}" for x in (environment_suffix, dev_suffix) if slug(x))
    whole = f"{begin}{middle}{end}"
    if len(whole) <= MAX_LABEL:
        return whole
    # Two that begin alike stay two.
    digest = hashlib.sha256(whole.encode()).hexdigest()[:_HASH]
    room = max(1, MAX_LABEL - len(begin) - len(end) - _HASH - 1)
    return f"{begin}{middle[:room].rstrip('-')}-{digest}{end}"[-MAX_LABEL:].lstrip("-")


def host_of(authority: str) -> str:
    """Return the host of ``host:port``, without the dot that may end it."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].rstrip(".")
