"""What a gateway is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GatewaySettings:
    """What a gateway is told when it starts.

    Attributes:
        domain: what the host names of labels end in.
        max_waiting: requests to one Function that wait for a container, at most.
        max_clients: open connections, at most.
        answer_seconds: until a request that is not answered is redirected to its pending result.
        head_seconds: for a request's head to come in.
        idle_seconds: that a connection is kept between requests.
        stall_seconds: that a body may make no progress.
        claim_seconds: that a pending result is kept for who was redirected.
        unreachable_seconds: after which requests are told that no container takes a connection.
        max_body: bytes of a request's body.
        trusted_proxies: addresses whose X-Forwarded fields are believed.
    """

    domain: str = "localhost"
    max_waiting: int = 1000
    max_clients: int = 10_000
    answer_seconds: float = 150.0
    head_seconds: float = 20.0
    idle_seconds: float = 75.0
    stall_seconds: float = 60.0
    claim_seconds: float = 60.0
    unreachable_seconds: float = 10.0
    max_body: int = 4 << 30
    trusted_proxies: tuple[str, ...] = ()
