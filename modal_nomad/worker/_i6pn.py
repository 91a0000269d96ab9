"""``i6pn=True``: the name by which a container finds the address that other containers reach it at."""

import ipaddress
import socket
from typing import Any

VARIABLE = "MODAL_I6PN"
NAME = "i6pn.modal.local"


def own_address(told: str) -> str:
    """Return this container's address, as IPv6.

    Args:
        told: the node's, as Nomad knows it; anything else where containers are processes of one machine.
    """
    try:
        address = ipaddress.ip_address(told)
    except ValueError:
        return "::1" if _has_loopback6() else "::ffff:127.0.0.1"
    # An IPv6 socket reaches what has an IPv4 address alone by this one.
    return str(address) if address.version == 6 else f"::ffff:{address}"


def answer_for(address: str) -> None:
    """Have the name be found in this process: whatever resolves names does it by ``socket.getaddrinfo``."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        known = host in (NAME, NAME.encode())
        return look_up(address if known else host, *args, **kwargs)

    getaddrinfo.__doc__ = look_up.__doc__
    socket.getaddrinfo = getaddrinfo


def _has_loopback6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
