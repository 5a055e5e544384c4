"""Charges nobody asked for, from the break to the books, whatever database they are in."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, inspect

from pipeline.domain.breaks import REFUND_AFTER_REVIEW
from pipeline.domain.clearing import Clearing
from pipeline.domain.ids import payment_id
from pipeline.domain.model import PaymentCommand, Settlement
from pipeline.domain.reconciliation_decisions import (
    BREAK_RESOLUTION,
    RefundOrder,
    refund_command,
    resolution_of,
)
from pipeline.errors import UserError
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import decide, decisions_of
from pipeline.ledger.reconciliation.clearing import mark_told
from pipeline.ledger.reconciliation.following import decide_resolution
from pipeline.ledger.reconciliation.refunds import mark_ordered, unordered_refunds
from pipeline.ledger.reconciliation.tables import ordered_refunds, prepare
from pipeline.ledger.verification import verify_books
from pipeline.processors.driver import FlowDriver
from tests.support.ledger import settlement
from tests.support.ledger_rules import announce
from tests.support.ledger_suite import OnEachDatabase
from tests.support.payment_story import POLICY, yes
from tests.support.reconciliation import DAY, NOW_MS, TERMS, Books, row_of

DUE = "2023-11-20"


def unknown_row(number: int = 1, **changed: Any) -> Clearing:
    """A charge of 12.50 whose reference is none of ours, of which the gateway keeps 0.12."""
    none_of_ours = {"payment_id": "", "operation_id": "", "attempt": 0, "merchant_id": "",
                    "order_id": "", "gateway_reference": "ch_77"}  # fmt: skip
    return row_of(number, settlement(1), **{**none_of_ours, **changed})


class UnaskedChargesSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def books(self, engine: Engine) -> Books:
        return Books(engine)

    def test_it_is_given_back_and_nothing_is_left(self, books: Books) -> None:
        """By hand: 12.50 were taken, of which the gateway kept 0.12; they go back for nothing. It
        owes us 0.12 less, our cost; no merchant has gained or lost, though terms are in force."""
        announce(books.engine, TERMS)
        books.book()
        books.report(unknown_row())
        books.run(DUE)
        asked = resolved(books)
        assert (asked.gateway_reference, asked.amount_minor, asked.currency) == (
            "ch_77", 1250, "GBP",
        )  # fmt: skip
        assert [b.kind for b in books.breaks()] == ["batch_unpaid"]
        taken, back = settled_by(asked)
        books.settle(taken)
        # Another run meanwhile: the row has its settlement now, and its break stays as resolved.
        books.run(DUE)
        assert books.balances() == {
            "gateway_receivable:simulator": 1238, "gateway_cost:simulator": 12,
            "suspense:simulator": -1250,
        }  # fmt: skip
        books.settle(back)
        books.report(row_of(2, back, kind="refund", operation_kind="refund", fee_minor=0))
        assert books.run(DUE).cleared == 1
        assert books.balances() == {
            "gateway_receivable:simulator": -12, "gateway_cost:simulator": 12,
        }  # fmt: skip
        assert [b.kind for b in books.breaks()] == ["batch_unpaid"]
        (kept,) = books.breaks(state="resolved")
        assert (kept.kind, kept.resolution, kept.actor) == (
            "missing_here", "refund_after_review", "anna",
        )  # fmt: skip
        with reading(books.engine) as connection:
            assert verify_books(connection).damages == ()

    def test_a_second_charge_of_a_payment_is_given_back_by_itself(self, books: Books) -> None:
        """It names an operation of ours under another id of the gateway: its payment was told and
        did not take it, so a person has it given back, and the sale is not touched."""
        sale = settlement(1)
        books.settle(sale)
        books.report(row_of(1, sale, fee_minor=0),
                     row_of(2, sale, fee_minor=5, gateway_reference="ch_second"))  # fmt: skip
        done = books.run(DUE)
        with pytest.raises(UserError, match="was not told of it yet"):
            resolved(books)
        mark_told(books.engine, done.untold)
        asked = resolved(books)
        assert (asked.merchant_id, asked.gateway_reference) == ("unasked", "ch_second")
        books.settle(*settled_by(asked))
        # Its row names the sale's payment, and is known by the gateway's own id all the same.
        assert books.run(DUE).cleared == 1
        assert books.balances() == {
            "gateway_receivable:simulator": 1250 - 5, "gateway_cost:simulator": 5,
            "merchant_available:m1": -1250,
        }  # fmt: skip

    def test_the_flow_is_told_once_the_topic_has_the_decision(self, books: Books) -> None:
        """Not before it is published, and until it is noted; the same command each time."""
        books.report(unknown_row())
        books.run(DUE)
        decide_refund(books)
        with reading(books.engine) as connection:
            assert unordered_refunds(connection) == []
        books.book()
        with reading(books.engine) as connection:
            (event,) = unordered_refunds(connection)
            assert unordered_refunds(connection) == [event]
        with books.engine.begin() as connection:
            mark_ordered(connection, [event])
            mark_ordered(connection, [event])
            assert unordered_refunds(connection) == []
        # Tables that are made anew tell it again: the command has the same id.
        asked = refund_command(event)
        assert asked is not None
        assert (asked.actor, asked.reason) == ("anna", "nobody knows it")
        assert asked.evidence is not None
        assert f"row simulator:simulator-{DAY}:1" in asked.evidence

    def test_a_resolution_of_before_asks_for_nothing(self, books: Books) -> None:
        """When people gave it back at the gateway, the decision held no charge."""
        body = '{"break_id": "b", "resolution": "refund_after_review", "figures": ""}'
        with books.engine.begin() as connection:
            event = decide(connection, kind=BREAK_RESOLUTION, body=body, actor="a", reason="r",
                           now_ms=NOW_MS)  # fmt: skip
        books.book()
        assert refund_command(event) is None
        with reading(books.engine) as connection:
            assert unordered_refunds(connection) == []

    def test_only_a_charge_that_is_nobodys_is_given_back(self, books: Books) -> None:
        """Not what goes out, not a capture, which goes back by another id; not a sale of ours,
        whatever the row says; not what differs in another way."""
        sale = settlement(1)
        books.settle(sale)
        books.report(
            unknown_row(1, kind="refund", operation_kind="refund", amount_minor=-5, fee_minor=0),
            unknown_row(2, operation_kind="capture"),
            row_of(3, sale, fee_minor=0),
            unknown_row(4, gateway_reference=sale.gateway_reference),
        )
        books.run(DUE)
        refused = {}
        for found in books.breaks():
            with pytest.raises(UserError) as refusal:
                decide_refund(books, found.break_id)
            refused[found.kind, found.row_number] = str(refusal.value)
        assert "only a charge that is missing_here" in refused.pop(("batch_unpaid", 0))
        assert "about a refund" in refused.pop(("missing_here", 1))
        assert "about a capture by capture" in refused.pop(("missing_here", 2))
        assert "is the charge of m1:o1" in refused.pop(("missing_here", 4))
        assert refused == {}
        with reading(books.engine) as connection:
            assert list(decisions_of(connection, [BREAK_RESOLUTION])) == []

    def test_tables_of_before_get_what_they_lack(self, books: Books) -> None:
        """A ledger that was reconciled by an earlier version has every table but the newest."""
        ordered_refunds.drop(books.engine)
        prepare(books.engine)
        assert inspect(books.engine).has_table("ordered_refunds")


def decide_refund(books: Books, break_id: str | None = None) -> RefundOrder:
    if break_id is None:
        break_id = next(b.break_id for b in books.breaks() if b.kind == "missing_here")
    event = decide_resolution(books.engine, break_id, REFUND_AFTER_REVIEW, actor="anna",
                              reason="nobody knows it", now_ms=NOW_MS)  # fmt: skip
    refund = resolution_of(event).refund
    assert refund is not None
    return refund


def resolved(books: Books) -> PaymentCommand:
    """What the flow is told once a person has resolved the break so."""
    decide_refund(books)
    books.book()
    with reading(books.engine) as connection:
        (event,) = unordered_refunds(connection)
    asked = refund_command(event)
    assert asked is not None
    return asked


def settled_by(asked: PaymentCommand) -> list[Settlement]:
    """What the flow makes of it, where the gateway does as it is asked."""
    flow = FlowDriver(POLICY, now_ms=NOW_MS)
    flow.command(asked)
    flow.answer(yes)
    payment = flow.payment(asked.merchant_id, asked.order_id)
    assert payment is not None
    assert payment.payment_id == payment_id("unasked", asked.order_id)
    return flow.settlements()
