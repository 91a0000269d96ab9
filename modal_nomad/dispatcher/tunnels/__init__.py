"""Ports outside that lead to ports in containers.

The dispatcher listens at them itself (``tunnels``), or has gateways of other processes do so (``assigned``).
"""

from modal_nomad.dispatcher.tunnels.assigned import AssignedTunnels
from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.dispatcher.tunnels.tunnels import Tunnels

__all__ = ["AssignedTunnels", "TunnelSettings", "Tunnels"]
