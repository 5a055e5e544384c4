"""Which of the addresses a client that asks once is given."""

from __future__ import annotations

import pytest

from pipeline import one_answer

SERVERS = "away:1, first:1, second:1"


class Addresses:
    """``up``: those that take a connection; ``asked``: in order."""

    def __init__(self, *up: str) -> None:
        self.up = set(up)
        self.asked: list[str] = []
        self.now_s = 0.0

    def is_reached(self, address: str) -> bool:
        self.asked.append(address.strip())
        return address.strip() in self.up


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Addresses:
    addresses = Addresses("first:1", "second:1")
    monkeypatch.setattr(one_answer, "_is_reached", addresses.is_reached)
    monkeypatch.setattr(one_answer, "_reached", {})
    monkeypatch.setattr(one_answer.time, "monotonic", lambda: addresses.now_s)
    return addresses


def test_an_address_that_is_away_is_not_waited_for_each_time(addresses: Addresses) -> None:
    """It took a second of every client, and a worker makes one for each piece that it brings."""
    for _ in range(3):
        assert one_answer._answering(SERVERS) == "first:1,second:1"
    assert addresses.asked == ["away:1", "first:1", "second:1"]
    addresses.now_s += one_answer.REACHED_S
    addresses.up.discard("second:1")
    assert one_answer._answering(SERVERS) == "first:1"
    assert addresses.asked[3:] == ["first:1", "second:1"]


def test_all_are_asked_where_those_of_before_are_gone(addresses: Addresses) -> None:
    one_answer._answering(SERVERS)
    addresses.now_s += one_answer.REACHED_S
    addresses.up = {"away:1"}
    assert one_answer._answering(SERVERS) == "away:1"


def test_where_none_is_reached_the_client_says_so_itself(addresses: Addresses) -> None:
    """And they are asked again at once."""
    addresses.up.clear()
    assert one_answer._answering(SERVERS) == SERVERS
    addresses.up.add("first:1")
    assert one_answer._answering(SERVERS) == "first:1"
