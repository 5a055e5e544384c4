"""What a settlement becomes in the books, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.posting import (
    AMOUNT_MINOR_MAX,
    RULES,
    JournalEntry,
    Posting,
    PostingRefused,
    balanced,
    journal_entry,
)
from tests.support.ledger import entry_of, settlement


def test_a_capture_is_owed_by_the_gateway_and_owed_to_the_merchant() -> None:
    """Debit the gateway's receivable, credit the merchant's payable, in the same currency."""
    assert entry_of(1, currency="JPY", amount_minor=700).postings == (
        Posting("gateway_receivable:simulator", "JPY", 700),
        Posting("merchant_payable:m1", "JPY", -700),
    )


def test_a_refund_is_the_reverse() -> None:
    """Debit the merchant's payable, credit the gateway's receivable."""
    assert entry_of(1, kind="refund", amount_minor=-700).postings == (
        Posting("gateway_receivable:simulator", "GBP", -700),
        Posting("merchant_payable:m1", "GBP", 700),
    )


def test_an_entry_is_the_same_each_time() -> None:
    """A redelivered settlement makes the very same entry, so it is found by its id."""
    assert entry_of(1) == entry_of(1)
    assert entry_of(1).entry_id == f"settlement:{settlement(1).settlement_id}"


@given(
    kind=st.sampled_from(["capture", "refund"]),
    amount_minor=st.integers(1, AMOUNT_MINOR_MAX),
    currency=st.sampled_from(sorted(MINOR_UNITS)),
)
def test_every_entry_balances(kind: str, amount_minor: int, currency: str) -> None:
    """Whatever is booked, debits and credits are equal integers in its one currency."""
    signed = amount_minor if kind == "capture" else -amount_minor
    postings = entry_of(1, kind=kind, amount_minor=signed, currency=currency).postings
    assert sum(p.amount_minor for p in postings) == 0
    assert {p.currency for p in postings} == {currency}
    assert all(type(p.amount_minor) is int for p in postings)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"kind": "dispute"}, "settlement_kind_must_be_known"),
        ({"kind": ""}, "settlement_kind_must_be_known"),
        ({"amount_minor": 0}, "capture_amount_must_be_positive"),
        ({"amount_minor": -1}, "capture_amount_must_be_positive"),
        ({"kind": "refund", "amount_minor": 1}, "refund_amount_must_be_negative"),
        ({"amount_minor": AMOUNT_MINOR_MAX + 1}, "settlement_amount_must_not_exceed_limit"),
        (
            {"kind": "refund", "amount_minor": -AMOUNT_MINOR_MAX - 1},
            "settlement_amount_must_not_exceed_limit",
        ),
        ({"currency": "gbp"}, "settlement_currency_must_be_iso_4217"),
        ({"business_date": "2010-13-01"}, "settlement_business_date_must_be_a_date"),
        ({"merchant_id": "a:b"}, "settlement_ids_must_be_well_formed"),
        ({"order_id": "x\x00"}, "settlement_ids_must_be_well_formed"),
        ({"gateway": "a/b"}, "settlement_ids_must_be_well_formed"),
        ({"operation_id": ""}, "settlement_ids_must_be_well_formed"),
        ({"settlement_id": "1"}, "settlement_ids_must_be_well_formed"),
        ({"gateway_reference": "a\x00b"}, "settlement_gateway_reference_must_be_printable"),
        ({"gateway_reference": "x" * 256}, "settlement_gateway_reference_must_be_printable"),
    ],
)
def test_what_cannot_be_booked_is_refused_by_name(changed: dict[str, Any], rule: str) -> None:
    """No guess and no exception: a rule's name, which becomes the dead letter's cause."""
    refused = journal_entry(settlement(1, **changed))
    assert isinstance(refused, PostingRefused)
    assert refused.rule == rule
    assert refused.rule in RULES
    assert refused.detail


@pytest.mark.parametrize(
    "postings",
    [
        (),
        (Posting("a", "GBP", 1),),
        (Posting("a", "GBP", 1), Posting("b", "GBP", -2)),
        (Posting("a", "GBP", 1), Posting("b", "EUR", -1)),
        (Posting("a", "GBP", 1.0), Posting("b", "GBP", -1.0)),  # type: ignore[arg-type]
    ],
)
def test_an_unbalanced_entry_is_a_bug(postings: tuple[Posting, ...]) -> None:
    """A rule that made money would stop the process before anything is committed."""
    entry = entry_of(1)
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    with pytest.raises(InvariantBroken):
        balanced(JournalEntry(**{**fields, "postings": postings}))
