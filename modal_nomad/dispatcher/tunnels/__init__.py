"""Ports outside that lead to ports in containers."""

from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.dispatcher.tunnels.tunnels import Tunnels

__all__ = ["TunnelSettings", "Tunnels"]
