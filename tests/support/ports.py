"""A port for a server that a test starts."""

from __future__ import annotations

from pipeline.embedded.ports import free_ports


def free_port() -> int:
    """A loopback port nobody listens on, outside the range of outgoing connections."""
    return free_ports(1)[0]
