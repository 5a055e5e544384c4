"""The addresses of brokers as a client is given them: ``host:port``, comma-separated.

As librdkafka reads them: a protocol before the host (``SSL://host:9093``), an IPv6 address in
brackets, and the port of Kafka where none is said.
"""

from __future__ import annotations

from typing import Final

DEFAULT_PORT: Final = 9092


def broker_addresses(bootstrap_servers: str) -> list[tuple[str, int]]:
    """Host and port of each. ValueError where a port is no number."""
    return [broker_address(each) for each in bootstrap_servers.split(",") if each.strip()]


def broker_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of one of them. ValueError where the port is no number."""
    place = text.strip().rpartition("//")[2].partition("/")[0]
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
    else:
        # Two colons or more without brackets are an IPv6 address and no port.
        host, port = place, ""
    return host, int(port) if port else DEFAULT_PORT
