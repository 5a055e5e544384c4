"""Addresses and topics that are none are refused when a publisher or a subscriber is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from consumers.event_subscriber import EventSubscriber
from consumers.settlement_subscriber import SettlementSubscriber
from pipeline.errors import UserError
from producers.command_publisher import CommandPublisher
from producers.order_publisher import OrderPublisher

NOWHERE = "127.0.0.1:1"


def settlements(servers: Any, **more: Any) -> SettlementSubscriber:
    return SettlementSubscriber(servers, "fulfilment", **more)


def events(servers: Any, **more: Any) -> EventSubscriber:
    return EventSubscriber(servers, "order-desk", **more)


each_client = pytest.mark.parametrize(
    "client", [OrderPublisher, CommandPublisher, settlements, events]
)


@each_client
@pytest.mark.parametrize(
    "servers",
    [
        *("", "  ", None, [NOWHERE], ",", ":9092", "host:99999", "host:0", "host:-1", "host:abc"),
        *("host\ud800:1", "host:1\ud800", "host:1\0", "host\0:1", "a:1 b:1", f"{NOWHERE},b:x"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(
    client: Callable[..., Any], servers: Any
) -> None:
    """As of an environment variable that is not set: the client looks there until it gives up."""
    with pytest.raises(UserError, match="bootstrap_servers is "):
        client(servers)
    with pytest.raises(UserError, match="bootstrap_servers is "):
        client(NOWHERE, config={"bootstrap.servers": servers})


@each_client
@pytest.mark.parametrize(
    "servers",
    ["localhost", f" {NOWHERE} , b:65535,", "[::1]:9092", "::1", f"PLAINTEXT://{NOWHERE}"],
)
def test_an_address_as_the_client_reads_it_is_taken(
    client: Callable[..., Any], servers: str
) -> None:
    client(servers, config={"log_level": 0})


@each_client
@pytest.mark.parametrize(
    "topic", ["", " ", "orders\0x", "orders\ud800", "a b", ".", "..", "t" * 250, "orders\n", 5]
)
def test_a_topic_that_is_none_is_refused_at_once(client: Callable[..., Any], topic: Any) -> None:
    """The client has an error of its own for each, when the first record is on its way."""
    with pytest.raises(UserError, match="topic is "):
        client(NOWHERE, topic=topic)


@each_client
@pytest.mark.parametrize("topic", ["t" * 249, "eu.orders_2-a", "..."])
def test_a_topic_that_is_one_is_taken(client: Callable[..., Any], topic: str) -> None:
    client(NOWHERE, topic=topic, config={"log_level": 0})
