"""Charges nobody asked for, from the break to the books, whatever database they are in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, inspect, text

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.breaks import CORRECTED, REFUND_AFTER_REVIEW
from pipeline.domain.clearing import Clearing
from pipeline.domain.ids import payment_id
from pipeline.domain.model import Payment, PaymentCommand, Settlement
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
from pipeline.ledger.reconciliation.refunds import (
    FlowSeen,
    charge_of,
    charged_twice,
    mark_ordered,
    may_be,
    refunded_orders,
    unordered_refunds,
)
from pipeline.ledger.reconciliation.tables import ordered_refunds, prepare
from pipeline.ledger.verification import verify_books
from pipeline.processors.driver import FlowDriver
from producers.clearings import words_of
from tests.support.ledger import settlement
from tests.support.ledger_rules import announce
from tests.support.ledger_suite import OnEachDatabase
from tests.support.payment_story import (
    DECLINED,
    ORDER,
    PENDING,
    POLICY,
    TIMED_OUT,
    Story,
    unasked,
    yes,
)
from tests.support.reconciliation import DAY, NOW_MS, TERMS, Books, row_of
from tests.support.waiting import WAIT_S, wait_until

DUE = "2023-11-20"
# Payments and the ledger have read everything, and the row names no payment that there is.
CAUGHT_UP = FlowSeen(answered=True, booked=True, payment=None)


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
        with reading(books.engine) as connection:
            assert refunded_orders(connection) == {back.payment_id: asked.order_id}
        (kept,) = books.breaks(state="resolved")
        assert (kept.kind, kept.resolution, kept.actor) == (
            "missing_here", "refund_after_review", "anna",
        )  # fmt: skip
        with reading(books.engine) as connection:
            assert verify_books(connection).damages == ()

    def test_its_dispute_is_known_by_the_gateways_id_of_it(self, books: Books) -> None:
        """Its rows name the payment of the charge's own reference, or nobody; what its customer's
        bank took is cleared all the same, and no merchant bears it."""
        books.report(unknown_row(fee_minor=0))
        books.run(DUE)
        (taken, *_) = settled_by(resolved(books))
        disputed = [
            settlement(1, merchant_id="unasked", order_id=taken.order_id, kind=kind,
                       gateway_reference="dp_1", operation_id="dispute-1", amount_minor=minor)
            for kind, minor in (("unasked_dispute", -1250), ("unasked_dispute_fee", -15),
                                ("unasked_reversal", 1250))
        ]  # fmt: skip
        books.settle(taken, *disputed)
        books.report(*(
            unknown_row(
                number, kind=each.kind.removeprefix("unasked_"), operation_kind="", fee_minor=0,
                gateway_reference="dp_1", amount_minor=each.amount_minor,
                payment_id=settlement(1).payment_id,
            )
            for number, each in enumerate(disputed, 2)
        ))  # fmt: skip
        assert books.run(DUE).cleared == 4
        assert books.balances() == {
            "gateway_receivable:simulator": 1235, "suspense:simulator": -1235,
        }  # fmt: skip

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
        assert resolutions(books) == []

    @pytest.mark.parametrize(
        ("flow", "why"),
        [
            (None, "payments have not read all yet"),
            (FlowSeen(answered=False, booked=False, payment=None), "try again when the payments"),
            (FlowSeen(answered=True, booked=False, payment=None), "try again when the ledger's"),
        ],
    )
    def test_what_the_flow_may_still_know_is_refused(
        self, books: Books, flow: FlowSeen | None, why: str
    ) -> None:
        """A sale of ours whose payment was told of it, and has not answered, or not in the books:
        nothing is decided, and once it is booked the row clears it."""
        sale = settlement(1)
        books.report(row_of(1, sale, fee_minor=0))
        mark_told(books.engine, books.run(DUE).untold)
        with pytest.raises(UserError, match=why):
            decide_refund(books, flow=flow)
        assert resolutions(books) == []
        books.settle(sale)
        books.run(DUE)
        assert books.balances()["merchant_available:m1"] == -1250

    @pytest.mark.parametrize(
        ("answer", "may_know"),
        [
            # Contradicted: another amount than was asked for, under this very id.
            (GatewayAnswer(outcome="succeeded", gateway_reference="ch_77", amount_minor=600), True),
            # It is its own, and the ledger has not booked it.
            (GatewayAnswer(outcome="succeeded", gateway_reference="ch_77", amount_minor=500), True),
            # Nobody knows yet what became of the operation that the row names.
            (TIMED_OUT, True),
            # It took another one, or none: the gateway has charged a second time, or for nothing.
            (yes, False),
            (DECLINED, False),
        ],
    )
    def test_what_its_payment_may_know_is_refused(
        self, books: Books, answer: Any, may_know: bool
    ) -> None:
        """What a person may yet resolve as charged is not given back beside that."""
        story = Story(ORDER)
        story.flow.answer(answer)
        operation = story.payment.attempts[0]
        books.report(unknown_row(
            payment_id=story.payment.payment_id, operation_id=operation.operation_id,
            attempt=operation.attempt, merchant_id="shop", order_id="1",
        ))  # fmt: skip
        mark_told(books.engine, books.run(DUE).untold)
        why = "ch_77 may be the charge of shop:1" if may_know else None
        assert_refused(books, story.payment, why)

    @pytest.mark.parametrize("answer", [TIMED_OUT, DECLINED])
    def test_what_is_given_back_is_told_to_no_other_payment(
        self, books: Books, answer: Any
    ) -> None:
        """A later row says that an operation made it, which would take it for its own and give it
        back a second time; it stays a break, before the refund is booked and after."""
        story = Story(ORDER)
        story.flow.answer(answer)
        books.report(unknown_row(fee_minor=0))
        books.run(DUE)
        asked = resolved(books)
        named: dict[str, Any] = {"payment_id": story.payment.payment_id, "operation_id": "1",
                                 "attempt": 1, "merchant_id": "shop", "order_id": "1"}  # fmt: skip
        books.report(unknown_row(2, fee_minor=0, **named),
                     unknown_row(3, fee_minor=0, **named, gateway_reference="ch_78"))  # fmt: skip
        for settled in ([], settled_by(asked)):
            books.settle(*settled)
            untold = books.run(DUE).untold
            with reading(books.engine) as connection:
                unasked_orders = refunded_orders(connection)
            words = words_of(untold, NOW_MS, unasked_orders)
            assert [word.gateway_reference for word, _ in words] == ["ch_78"]
            rows = {b.row_number: b for b in books.breaks() if b.kind == "missing_here"}
            assert 2 in rows
        with pytest.raises(UserError, match="was resolved as refund_after_review before"):
            decide_refund(books, rows[2].break_id)
        assert resolutions(books) == ["refund_after_review"]

    def test_a_dispute_of_one_of_two_charges_is_not_booked_against_the_sale(
        self, books: Books
    ) -> None:
        """Its row names the payment and not which charge: a person says, nothing is guessed."""
        sale, other = settlement(1), settlement(2)
        books.settle(sale, other)
        disputed: dict[str, Any] = {
            "kind": "dispute", "operation_id": "", "attempt": 0, "operation_kind": "",
            "amount_minor": -1250, "fee_minor": 0,
        }  # fmt: skip
        books.report(
            row_of(1, sale), row_of(2, sale, gateway_reference="ch_second"), row_of(3, other),
            row_of(4, sale, gateway_reference="dp_1", **disputed),
            row_of(5, other, gateway_reference="dp_2", **disputed),
        )  # fmt: skip
        untold = books.run(DUE).untold
        with reading(books.engine) as connection:
            twice = charged_twice(connection)
        assert twice == {("simulator", sale.payment_id)}
        told = [word for word, _ in words_of(untold, NOW_MS, {}, twice)]
        assert [(w.type, w.payment_id) for w in told] == [
            ("operation", sale.payment_id), ("dispute", other.payment_id),
        ]  # fmt: skip
        assert "simulator:simulator-2023-11-14:4" in {b.subject for b in books.breaks()}

    @pytest.mark.parametrize(
        ("named", "later"),
        [
            ({"operation_id": "9", "attempt": 1}, {}),
            ({"operation_id": "1", "attempt": 2}, {}),
            ({"operation_id": "", "attempt": 0, "payment_id": ""}, {}),
            # Only a row that came afterwards names the payment, and not its order.
            ({"operation_id": "", "attempt": 0, "payment_id": "", "merchant_id": "",
              "order_id": ""}, {"operation_id": "9", "merchant_id": "", "order_id": ""}),
        ],
    )  # fmt: skip
    def test_a_dispute_of_what_was_given_back_is_not_booked_against_a_sale(
        self, books: Books, named: dict[str, Any], later: dict[str, Any]
    ) -> None:
        """The charge's row named the payment by an operation that it never had, or its order alone;
        so does the dispute's, which says nothing of which charge it is."""
        story = Story(ORDER)
        story.flow.answer(yes)
        (sale,) = story.flow.settlements()
        other = settlement(2)
        books.settle(sale, other)
        books.report(row_of(1, sale), row_of(2, other),
                     row_of(3, sale, gateway_reference="ch_second", **named))  # fmt: skip
        mark_told(books.engine, books.run(DUE).untold)
        found = next(b.break_id for b in books.breaks() if b.row_number == 3)
        decide_refund(books, found, FlowSeen(answered=True, booked=True, payment=story.payment))
        disputed: dict[str, Any] = {
            "kind": "dispute", "operation_id": "", "attempt": 0, "operation_kind": "",
            "amount_minor": -500, "fee_minor": 0,
        }  # fmt: skip
        books.report(row_of(4, sale, gateway_reference="dp_1", **disputed),
                     row_of(5, other, gateway_reference="dp_2", **disputed))  # fmt: skip
        if later:
            books.report(row_of(6, sale, gateway_reference="ch_second", **later))
        untold = books.run(DUE).untold
        with reading(books.engine) as connection:
            words = words_of(untold, NOW_MS, refunded_orders(connection), charged_twice(connection))
        assert [(w.type, w.payment_id) for w, _ in words] == [("dispute", other.payment_id)]
        assert 4 in {b.row_number for b in books.breaks() if b.kind == "missing_here"}

    def test_what_the_flow_has_taken_already_is_not_ordered_again(self, books: Books) -> None:
        """By a command of another ledger's, and booked: the break has not ended yet."""
        books.report(unknown_row())
        books.run(DUE)
        (taken, _) = settled_by(unasked("ch_77"))
        books.settle(taken)
        with pytest.raises(UserError, match="is the charge of unasked:"):
            decide_refund(books)
        assert resolutions(books) == []

    def test_what_was_paid_back_otherwise_is_missing_in_no_report(self, books: Books) -> None:
        """The gateway knows nothing of it."""
        books.report(unknown_row(fee_minor=0))
        books.run(DUE)
        (taken, back) = settled_by(resolved(books))
        paid = settlement(1, merchant_id="unasked", order_id=taken.order_id, operation_id="x",
                          kind="unasked_external_refund", amount_minor=-1250,
                          gateway_reference="TRF-9")  # fmt: skip
        books.settle(taken, paid)
        assert back.kind == "unasked_refund"
        books.run(DUE)
        assert [b.kind for b in books.breaks()] == ["batch_unpaid"]

    def test_two_may_note_at_once_that_the_flow_was_told(self, books: Books) -> None:
        """A run and a person's command: each has told it, which is once, and neither fails."""
        books.report(unknown_row())
        books.run(DUE)
        resolved(books)
        with reading(books.engine) as connection:
            told = unordered_refunds(connection)

        def note() -> None:
            with books.engine.begin() as connection:
                mark_ordered(connection, told)

        with ThreadPoolExecutor(1) as pool:
            if books.engine.dialect.name == "postgresql":
                with books.engine.begin() as connection:
                    mark_ordered(connection, told)
                    other = pool.submit(note)
                    wait_until(lambda: _waits(books.engine), WAIT_S, "the other one waits for it")
            else:
                note()
                other = pool.submit(note)
            other.result(30)
        with reading(books.engine) as connection:
            assert unordered_refunds(connection) == []

    @pytest.mark.parametrize(("answer", "refused"), [(TIMED_OUT, True), (PENDING, True),
                                                     (None, True), (DECLINED, False)])  # fmt: skip
    @pytest.mark.parametrize("operation", ["", "9"])
    def test_what_may_be_an_operation_of_the_named_order_is_refused(
        self, books: Books, answer: Any, operation: str, refused: bool
    ) -> None:
        """The row names the order, and no operation or one that the payment never had; a charge of
        it at that gateway is under way, and may be the one that the row is about."""
        story = Story(ORDER)
        if answer is not None:
            story.flow.answer(answer)
        named: dict[str, Any] = (
            {"payment_id": story.payment.payment_id, "operation_id": operation, "attempt": 1}
            if operation else {}
        )  # fmt: skip
        books.report(unknown_row(merchant_id="shop", order_id="1", **named))
        mark_told(books.engine, books.run(DUE).untold)
        why = "ch_77 may be the charge of shop:1, of which operati" if refused else None
        assert_refused(books, story.payment, why)

    def test_what_names_an_operation_of_ours_and_no_order_is_refused(self, books: Books) -> None:
        """Its columns are blank, so its payment can never be told."""
        books.report(row_of(1, settlement(1), merchant_id="", order_id="", fee_minor=0))
        assert words_of(books.run(DUE).untold, NOW_MS) == []
        with pytest.raises(UserError, match="but not its order"):
            decide_refund(books)
        assert resolutions(books) == []

    @pytest.mark.parametrize("told", [True, False])
    @pytest.mark.parametrize(
        "named", [{"payment_id": "p", "operation_id": "1", "attempt": 1}, {"payment_id": "p"},
                  {"merchant_id": "m1", "order_id": "o1"}, {"operation_id": "1"}],
    )  # fmt: skip
    def test_what_another_row_of_the_charge_names_is_refused(
        self, books: Books, named: dict[str, Any], told: bool
    ) -> None:
        """Its payment may know the charge, told by that row or not, though this row names nobody.
        A row that repeats what this one says is none, nor one that says nothing."""
        books.report(
            unknown_row(1), unknown_row(2, fee_minor=0, **named),
            unknown_row(3, merchant_id="other", order_id="system", gateway_reference="ch_78"),
            unknown_row(4, merchant_id="other", order_id="system", gateway_reference="ch_78"),
            unknown_row(5, gateway_reference="ch_78"),
        )  # fmt: skip
        done = books.run(DUE)
        if told:
            mark_told(books.engine, done.untold)
        rows = {b.row_number: b.break_id for b in books.breaks() if b.kind == "missing_here"}
        with pytest.raises(UserError, match=f"row simulator:simulator-{DAY}:2 names .* of ch_77"):
            decide_refund(books, rows[1])
        assert resolutions(books) == []
        assert decide_refund(books, rows[3]).gateway_reference == "ch_78"

    def test_what_a_person_has_decided_about_is_refused_in_another_row(self, books: Books) -> None:
        """Given back by hand, or ordered already with another amount: never a second time."""
        books.report(unknown_row(1), unknown_row(2, amount_minor=1300, fee_minor=0),
                     unknown_row(3, gateway_reference="ch_78", fee_minor=0),
                     unknown_row(4, gateway_reference="ch_78", amount_minor=5))  # fmt: skip
        books.run(DUE)
        rows = {b.row_number: b.break_id for b in books.breaks() if b.kind == "missing_here"}
        decide_refund(books, rows[1])
        with pytest.raises(UserError, match="ch_77 was resolved as refund_after_review before"):
            decide_refund(books, rows[2])
        decide_resolution(books.engine, rows[3], CORRECTED, actor="bert", reason="by hand",
                          now_ms=NOW_MS)  # fmt: skip
        with pytest.raises(UserError, match="ch_78 was resolved as corrected before, by bert"):
            decide_refund(books, rows[4])
        assert resolutions(books) == ["refund_after_review", "corrected"]

    def test_what_another_gateway_does_is_no_matter(self, books: Books) -> None:
        """Its charge of this id was decided about; it has one of the named order under way."""
        other = {"gateway": "pacific", "file_id": "p", "fee_minor": 0}
        books.report(unknown_row(1, **other, merchant_id="m1", order_id="o1"),
                     unknown_row(2, merchant_id="shop", order_id="1"))  # fmt: skip
        books.run(DUE)
        rows = {b.gateway: b.break_id for b in books.breaks() if b.kind == "missing_here"}
        decide_resolution(books.engine, rows["pacific"], CORRECTED, actor="bert", reason="by hand",
                          now_ms=NOW_MS)  # fmt: skip
        payment = Story(ORDER).payment
        (under_way,) = payment.attempts
        elsewhere = replace(
            payment, attempts=(replace(under_way, gateway="pacific", gateway_reference="ch_78"),)
        )
        flow = FlowSeen(answered=True, booked=True, payment=elsewhere)
        assert decide_refund(books, rows["simulator"], flow).gateway == "simulator"

    def test_a_sale_of_ours_under_another_name_of_its_gateway_is_refused(
        self, books: Books
    ) -> None:
        """The gateway was renamed: our reference names the payment and the old name, the columns
        name the order, or its payment knows the very id."""
        sale = settlement(1, gateway="before")
        books.settle(sale)
        named = {"merchant_id": "m1", "order_id": "o1"}
        for number, wanted, said in (
            (1, {"payment_id": sale.payment_id, "gateway_reference": "ch_a"}, "at another gateway"),
            (2, {**named, "gateway_reference": sale.gateway_reference}, "is the charge of m1:o1"),
        ):
            books.report(unknown_row(number, fee_minor=0, **wanted))
            books.run(DUE)
            found = next(b for b in books.breaks() if b.row_number == number)
            assert ("our reference for another gateway" in found.detail) == (number == 1)
            with pytest.raises(UserError, match=said):
                decide_refund(books, found.break_id)
        story = Story(ORDER)
        (under_way,) = story.payment.attempts
        books.report(unknown_row(3, merchant_id="shop", order_id="1"))
        books.run(DUE)
        found = next(b for b in books.breaks() if b.row_number == 3)
        known = replace(under_way, gateway="before", gateway_reference="ch_77", state="succeeded")
        flow = FlowSeen(
            answered=True, booked=True, payment=replace(story.payment, attempts=(known,))
        )
        with pytest.raises(UserError, match="may be the charge of shop:1"):
            decide_refund(books, found.break_id, flow)
        assert resolutions(books) == []

    @pytest.mark.parametrize(
        "named", [{}, {"merchant_id": "shop"}, {"order_id": "1"},
                  {"merchant_id": "shop", "order_id": "1x"}],
    )  # fmt: skip
    def test_what_may_be_of_an_unknown_outcome_is_refused(
        self, books: Books, named: dict[str, str]
    ) -> None:
        """A payment's charge of that amount at that gateway has no outcome yet: an inquiry may
        still bring this very id, whatever the row names. One of another amount, a later one or one
        that ended may not."""
        story = Story(ORDER)
        story.flow.answer(TIMED_OUT)
        (waits,) = story.payment.attempts
        books.report(unknown_row(amount_minor=story.payment.amount_minor, fee_minor=0,
                                 occurred_at_ms=waits.started_at_ms, **named))  # fmt: skip
        books.run(DUE)
        (found,) = [b for b in books.breaks() if b.kind == "missing_here"]
        with reading(books.engine) as connection:
            charge = charge_of(connection, found)
        assert charge is not None
        assert may_be(charge, story.payment)
        later = waits.started_at_ms + 3 * 86_400_000
        for changed in (
            {"amount_minor": 1}, {"gateway": "pacific"}, {"gateway_reference": "ch_78"},
            {"started_at_ms": later}, {"state": "declined"}, {"kind": "refund"},
        ):  # fmt: skip
            assert not may_be(charge, replace(story.payment, attempts=(replace(waits, **changed),)))
        assert not may_be(charge, replace(story.payment, currency="EUR"))
        with pytest.raises(UserError, match="may be the charge of shop:1, of which nobody"):
            decide_refund(books, flow=replace(CAUGHT_UP, unknown="shop:1"))
        assert resolutions(books) == []
        assert decide_refund(books).gateway_reference == "ch_77"

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            ({"reason": "x" * 1_001}, "texts_must_be_at_most_1000_characters"),
            ({"actor": "x" * 256}, "the name has 256 characters and can have 255"),
            ({"actor": ""}, "actor_must_be_given"),
            ({"reason": "it is 4111 1111 1111 1111"}, "a card number stands in reason"),
        ],
    )
    def test_what_the_flow_would_refuse_is_not_decided(
        self, books: Books, said: dict[str, str], why: str
    ) -> None:
        """The person is told, the break stays open, and a mended word is taken."""
        books.report(unknown_row())
        books.run(DUE)
        (found,) = [b for b in books.breaks() if b.kind == "missing_here"]
        word = {"actor": "anna", "reason": "nobody knows it", **said}
        with pytest.raises(UserError, match=why):
            decide_resolution(books.engine, found.break_id, REFUND_AFTER_REVIEW, now_ms=NOW_MS,
                              flow=CAUGHT_UP, **word)  # fmt: skip
        assert resolutions(books) == []
        assert found.break_id in {b.break_id for b in books.breaks()}
        assert decide_refund(books).gateway_reference == "ch_77"

    def test_tables_of_before_get_what_they_lack(self, books: Books) -> None:
        """A ledger that was reconciled by an earlier version has every table but the newest."""
        ordered_refunds.drop(books.engine)
        prepare(books.engine)
        assert inspect(books.engine).has_table("ordered_refunds")


def assert_refused(books: Books, payment: Payment | None, why: str | None) -> None:
    """The desk refuses by this sentence and decides nothing; without one it gives back."""
    flow = FlowSeen(answered=True, booked=True, payment=payment)
    if why is None:
        assert decide_refund(books, flow=flow).gateway_reference == "ch_77"
        return
    with pytest.raises(UserError, match=why):
        decide_refund(books, flow=flow)
    assert resolutions(books) == []


def decide_refund(
    books: Books, break_id: str | None = None, flow: FlowSeen | None = CAUGHT_UP
) -> RefundOrder:
    if break_id is None:
        break_id = next(b.break_id for b in books.breaks() if b.kind == "missing_here")
    event = decide_resolution(books.engine, break_id, REFUND_AFTER_REVIEW, actor="anna",
                              reason="nobody knows it", now_ms=NOW_MS, flow=flow)  # fmt: skip
    refund = resolution_of(event).refund
    assert refund is not None
    return refund


def _waits(engine: Engine) -> bool:
    """Whether a transaction waits for another one's end."""
    asked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with engine.connect() as connection:
        return connection.execute(asked).scalar_one() > 0


def resolutions(books: Books) -> list[str]:
    """What people have decided about breaks."""
    with reading(books.engine) as connection:
        decided = list(decisions_of(connection, [BREAK_RESOLUTION]))
    return [resolution_of(event).resolution for event in decided]


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
