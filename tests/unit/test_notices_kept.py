"""What is kept of a gateway's notice, and how one that waits for its reference is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from pipeline.domain.ids import payment_id
from pipeline.domain.keys import reference_key
from pipeline.gateways.notice import Notice
from producers.notice_book import NoticeBook, parked_key
from producers.webhook_endpoint import notification_of


def test_a_gateways_own_text_is_kept_as_that_of_an_answer() -> None:
    """Cut, and without the card number that somebody put into it."""
    told = Notice(
        notification_id="n1", gateway="north", type="operation", outcome="declined",
        amount_minor=1, currency="GBP",
        gateway_code="refused 4111 1111 1111 1111 " + "x" * 1_000,
    )  # fmt: skip
    kept = notification_of(told, 1).gateway_code
    assert kept is not None
    assert len(kept) <= 255
    assert "4111 1111 1111 1111" not in kept
    assert kept.startswith("refused ")


def test_a_notice_goes_by_the_order_only_where_that_is_the_payments_own() -> None:
    """With a refund its gateway repeats whom the charge was made for, and our reference beside it
    names another payment: then the gateway's own id says whose it is."""
    ours = Notice(
        notification_id="n1", gateway="north", type="operation", outcome="failed", amount_minor=1,
        currency="GBP", payment_id=payment_id("shop", "1"), merchant_id="shop", order_id="1",
        gateway_reference="re_1",
    )  # fmt: skip
    assert notification_of(ours, 1).merchant_id == "shop"
    for strangers in (
        replace(ours, merchant_id="somebody", order_id="else"),
        replace(ours, payment_id=payment_id("unasked", "x")),
    ):
        told = notification_of(strangers, 1)
        assert (told.merchant_id, told.order_id, told.gateway_reference) == ("", "", "re_1")
        # Without an id of the gateway's there is nothing else to go by.
        named = notification_of(replace(strangers, gateway_reference=None), 1)
        assert named.merchant_id == strangers.merchant_id


@pytest.mark.parametrize("told", ["n1", "n\n1", "n1\n", "\n", "n\\n1"])
def test_a_parked_notice_is_found_whatever_its_id_holds(tmp_path: Path, told: str) -> None:
    """Some gateways' ids are JSON texts, in which a line may end."""
    book = NoticeBook(tmp_path / "notices.sqlite", "cluster")
    reference = reference_key("north", "tx_1")
    key = parked_key(reference, told)
    book.take_parked("parked-notices", [(0, 0, key, b"value", 1)])
    assert [row[0] for row in book.waiting_for(reference)] == [key]
    assert len({parked_key(reference, each) for each in (told, "n\\n2", "n\n2")}) == 3
