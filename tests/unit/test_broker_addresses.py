"""Addresses of brokers are read in one way, as the client reads them."""

from __future__ import annotations

import pytest

from pipeline.broker_addresses import broker_addresses
from pipeline.commands.flow import _node_id
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("127.0.0.1:9092", [("127.0.0.1", 9092)]),
        ("a:1, b:2,", [("a", 1), ("b", 2)]),
        ("[::1]:9093,[fe80::1%eth0]:1", [("::1", 9093), ("fe80::1%eth0", 1)]),
        ("[::1]", [("::1", 9092)]),
        ("::1", [("::1", 9092)]),
        ("kafka", [("kafka", 9092)]),
        ("SASL_SSL://broker.example:9094", [("broker.example", 9094)]),
        ("SSL://[::1]:9094", [("::1", 9094)]),
    ],
)
def test_hosts_and_ports_are_read(given: str, expected: list[tuple[str, int]]) -> None:
    assert broker_addresses(given) == expected


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="many"):
        broker_addresses("kafka:many")


@pytest.mark.parametrize("own", ["127.0.0.1:1", "localhost", "[::1]:9092", "::1", "SSL://[::1]:1"])
def test_a_cluster_on_this_machine_needs_no_node_id(own: str) -> None:
    assert _node_id("", own) == "local"
    with pytest.raises(UserError, match="--node-id"):
        _node_id("", f"{own},kafka.example:9092")
