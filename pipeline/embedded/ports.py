"""Ports on the loopback interface that stay ours while a server is down."""

from __future__ import annotations

import random
import socket

from pipeline.errors import UserError

LOOPBACK = "127.0.0.1"
# Below the range from which the system takes ports of outgoing connections (32768 on Linux, 49152
# elsewhere): otherwise a client's socket can sit on a broker's port while the broker restarts.
PORT_MIN = 20_000
PORT_MAX = 32_000
TRIES_MAX = 1_000


def free_ports(count: int) -> list[int]:
    """Distinct ports nobody listens on now, at random: two starts at once seldom meet."""
    # The seedless generator on purpose: two processes must not draw the same ports.
    draw = random.SystemRandom()
    found: list[int] = []
    for _ in range(TRIES_MAX):
        port = draw.randrange(PORT_MIN, PORT_MAX)
        if port not in found and is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise UserError(f"Found no {count} free ports between {PORT_MIN} and {PORT_MAX} on {LOOPBACK}.")


def is_free(port: int) -> bool:
    """Whether a server could listen there now (a port in TIME_WAIT counts as free)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def is_listening(port: int) -> bool:
    """Whether somebody answers there within a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
