"""Where a new group of a subscriber begins: only where it was told to."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.event_subscriber import EventSubscriber
from consumers.settlement_subscriber import SettlementSubscriber
from pipeline.errors import UserError

each_subscriber = pytest.mark.parametrize("subscriber", [SettlementSubscriber, EventSubscriber])


@each_subscriber
@pytest.mark.parametrize("start", ["Earliest", "earliest ", "beginning", "", "0", 0, True])
def test_a_start_that_is_no_place_is_refused(subscriber: Any, start: Any) -> None:
    """Taken for "latest" it would be committed at once, and what lies before never seen."""
    with pytest.raises(UserError, match='give "earliest" or "latest"'):
        subscriber("127.0.0.1:1", "fulfilment", start=start)


@each_subscriber
@pytest.mark.parametrize("start", ["earliest", "latest", None])
def test_a_start_that_is_one_is_taken(subscriber: Any, start: Any) -> None:
    subscriber("127.0.0.1:1", "fulfilment", start=start)


@each_subscriber
@pytest.mark.parametrize(
    "group",
    ["", None, 5, "g" * 32_768, "ä" * 16_384, " ", "\n", " g", "\tg", "g\ud800", "g\0one"],
)
def test_a_group_that_is_none_is_refused_before_there_is_a_client(
    subscriber: Any, group: Any
) -> None:
    """The client asserts that there is one, which no ``except`` catches. It drops blanks at the
    beginning and all behind a NUL: two names would be one group."""
    with pytest.raises(UserError, match="group_id is "):
        subscriber("127.0.0.1:1", group, start="earliest")
    with pytest.raises(UserError, match="group_id is "):
        subscriber("127.0.0.1:1", "fulfilment", config={"group.id": group})
