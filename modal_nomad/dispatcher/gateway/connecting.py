"""Connections to containers: made when a request needs one, kept while the container is in rotation."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from modal_nomad.dispatcher.gateway.balancer import BLOCKED_SECONDS, Instance, Service
from modal_nomad.wire.http1.upstream import Upstream

logger = logging.getLogger("modal_nomad.dispatcher")

_CONNECT_SECONDS = 5.0
UNREACHABLE = (
    "no container of this endpoint takes a connection: gateways must reach the ports of the nodes, see the "
    "gateway's log"
)


async def connect(instance: Instance, method: str) -> Upstream | None:
    """Connect with a container; None where it takes no connection, which its instance knows then.

    Args:
        instance: the container.
        method: of the class, which the connection leads to.
    """

    def idle(upstream: Upstream) -> None:
        if instance.out:
            upstream.abort()
        else:
            instance.idle.setdefault(method, []).append(upstream)

    def closed(upstream: Upstream) -> None:
        left = instance.idle.get(method)
        if left and upstream in left:
            left.remove(upstream)

    def made() -> Upstream:
        return Upstream(idle, closed)

    loop = asyncio.get_running_loop()
    try:
        _, upstream = await asyncio.wait_for(
            loop.create_connection(made, instance.host, instance.port), _CONNECT_SECONDS
        )
    except (OSError, asyncio.TimeoutError) as error:
        now = monotonic()
        if instance.unmet_since is None:
            instance.unmet_since = now
            logger.warning(
                "container %s takes no connection at %s:%d (%s): gateways must reach the nodes' ports",
                instance.container_id,
                instance.host,
                instance.port,
                error or "no answer",
            )
        instance.blocked_until = now + BLOCKED_SECONDS
        return None
    instance.unmet_since = None
    return upstream


def unreachable(service: Service, seconds: float) -> bool:
    """Say whether none of the containers in rotation has taken a connection for so many seconds.

    One that has just ended is out of rotation soon, and its requests wait for the next one; those behind a
    wall would be tried for ever.
    """
    now = monotonic()
    instances = service.instances.values()
    return bool(instances) and all(
        x.unmet_since is not None and now - x.unmet_since >= seconds for x in instances
    )
