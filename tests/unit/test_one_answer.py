"""Which of the addresses a client that asks once is given."""

from __future__ import annotations

import pytest

from pipeline.batches import one_answer

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


def test_those_that_were_away_are_asked_again_after_a_while(addresses: Addresses) -> None:
    """Of those that were reached before, one may take connections and answer none."""
    addresses.up = {"away:1"}
    assert one_answer._answering(SERVERS) == "away:1"
    addresses.up.add("first:1")
    while addresses.now_s < one_answer.AWAY_S - one_answer.REACHED_S:
        addresses.now_s += one_answer.REACHED_S
        assert one_answer._answering(SERVERS) == "away:1"
    addresses.now_s += one_answer.REACHED_S
    assert one_answer._answering(SERVERS) == "away:1,first:1"


def test_all_are_asked_where_no_answer_came(addresses: Addresses) -> None:
    """As of a broker that is frozen, or away behind a balancer."""
    addresses.up = {"first:1"}
    assert one_answer._answering(SERVERS) == "first:1"
    addresses.up.add("away:1")

    class Silent:
        def assign(self, _partitions: object) -> None: ...

        def get_watermark_offsets(self, _place: object, *, cached: bool) -> tuple[int, int]:
            addresses.now_s += one_answer.TIMEOUT_S / 2
            return -1, -1

    place = ("orders", 0)
    with pytest.raises(TimeoutError):
        one_answer.one_answer(Silent(), place, 0, 0.0, stopped=lambda: True)
    addresses.now_s = 0.0
    assert one_answer._answering(SERVERS) == "first:1"
    with pytest.raises(TimeoutError):
        one_answer.one_answer(Silent(), place, 0, 0.0)
    addresses.now_s = 0.0
    assert one_answer._answering(SERVERS) == "away:1,first:1"


def test_where_none_is_reached_the_client_says_so_itself(addresses: Addresses) -> None:
    """And they are asked again at once."""
    addresses.up.clear()
    assert one_answer._answering(SERVERS) == SERVERS
    addresses.up.add("first:1")
    assert one_answer._answering(SERVERS) == "first:1"
