"""Planted damage: each kind is found, named, and shown at the right place; nothing else cries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from pipeline.audit.checks import check
from pipeline.audit.ledger_copy import EntrySeen, PostingSeen
from pipeline.audit.render import report_lines
from pipeline.audit.report import GUARANTEES, Finding, Report, Severity
from pipeline.audit.summary import percentiles, summarize
from pipeline.domain.ids import event_id
from tests.support.audit_flow import (
    CATALOGUE,
    PARTITIONS,
    Flow,
    PaymentInFlow,
    Row,
    healthy_flow,
)
from tests.support.raw_record import GZIP, batch_bytes, gzip_zeros
from topics.record_headers import UNREADABLE

# What a damage returns: the record an example must point at, or a word that it must contain.
Place = Row | str
BROKEN, PENDING = Severity.BROKEN, Severity.PENDING


@dataclass(frozen=True)
class Case:
    """``name`` must be found with ``severity`` at the damaged place; ``also`` lists what the same
    damage breaks besides, and nothing else may be found."""

    damage: Callable[[Flow], Place]
    name: str
    also: frozenset[str] = frozenset()
    severity: Severity = BROKEN


CASES: dict[str, Case] = {}


def case(
    name: str, *also: str, severity: Severity = BROKEN
) -> Callable[[Callable[[Flow], Place]], Callable[[Flow], Place]]:
    def add(damage: Callable[[Flow], Place]) -> Callable[[Flow], Place]:
        CASES[damage.__name__] = Case(damage, name, frozenset(also), severity)
        return damage

    return add


def without_payment(flow: Flow, key: str) -> Row:
    """Take away all that followed an order."""
    order = flow.of("orders", key)
    settled = {r.fields["settlement_id"] for r in flow.rows if _is(r, "settlements", key)}
    flow.rows = [r for r in flow.rows if r is order or r.key != key.encode()]
    flow.charges = [c for c in flow.charges if f"{c['merchant_id']}:{c['order_id']}" != key]
    for entry in [e for e in flow.entries if e.settlement_id in settled]:
        flow.entries.remove(entry)
    return order


def _is(row: Row, role: str, key: str) -> bool:
    return row.role == role and row.key == key.encode() and row.fields is not None


def _entry_of(flow: Flow, of: str | Row) -> EntrySeen:
    wanted = (of if isinstance(of, Row) else flow.of("settlements", of)).fields
    assert wanted is not None
    return next(e for e in flow.entries if e.settlement_id == wanted["settlement_id"])


def _set(row: Row, **fields: object) -> Row:
    assert row.fields is not None
    row.fields = {**row.fields, **fields}
    return row


def _again(flow: Flow, row: Row, **fields: object) -> Row:
    assert row.fields is not None
    copy = flow.append(row.role, row.key, {**row.fields, **fields}, partition=row.partition)
    flow.all_processed()
    return copy


# Refused, or succeeded, and rightly


@case("dead_letter_unjustified")
def a_good_order_was_refused(flow: Flow) -> Place:
    order = without_payment(flow, "shop:c3")
    return flow.dead_letter(order, "truncated")


@case("dead_letter_unjustified")
def the_first_order_was_called_a_conflict(flow: Flow) -> Place:
    order = without_payment(flow, "shop:c3")
    return flow.dead_letter(order, "order_conflict")


@case("settlement_without_journal_entry")
def the_ledger_refused_a_settlement(flow: Flow) -> Place:
    row = flow.of("settlements", "shop:c1")
    flow.entries.remove(_entry_of(flow, row))
    flow.dead_letter(row, "settlement_kind_must_be_known")
    return row


@case("dead_letter_repeated", "undecodable_record", severity=Severity.NOTE)
def a_ledger_died_after_its_letter(flow: Flow) -> Place:
    junk = flow.append("settlements", b"shop:junk", raw=b"junk", partition=0)
    flow.all_processed()
    letters = [flow.dead_letter(junk, "not_wire_format") for _ in range(2)]
    for letter in letters:
        letter.headers = tuple((n, b"ledger" if n == "dlq.stage" else v) for n, v in letter.headers)
    return letters[1]


@case("request_instrument_wrong")
def another_card_was_charged(flow: Flow) -> Place:
    return _set(flow.of("payment-requests", "shop:c1"), instrument_token="tok_other")


@case("success_without_settlement", "journal_entry_without_settlement", "settlement_missing",
      "money_not_conserved")  # fmt: skip
def what_a_gateway_said_has_moved_was_forgotten(flow: Flow) -> Place:
    flow.remove("settlements", "shop:c1")
    return flow.of("gateway-results", "shop:c1")


@case("settlement_date_wrong")
def a_sale_was_booked_under_another_day(flow: Flow) -> Place:
    return _set(flow.of("settlements", "shop:c1"), business_date="2027-01-16")


@case("journal_entry_accounts_wrong")
def another_merchant_was_credited(flow: Flow) -> Place:
    entry = _entry_of(flow, "shop:c1")
    debit, credit = entry.postings
    at = flow.entries.index(entry)
    flow.entries[at] = replace(
        entry, postings=(debit, replace(credit, account="merchant_payable:x"))
    )
    return entry.entry_id


@case("journal_entry_accounts_wrong")
def debit_and_credit_were_swapped(flow: Flow) -> Place:
    entry = _entry_of(flow, "shop:c1")
    debit, credit = entry.postings
    at = flow.entries.index(entry)
    flow.entries[at] = replace(
        entry,
        postings=(
            replace(debit, amount_minor=credit.amount_minor),
            replace(credit, amount_minor=debit.amount_minor),
        ),
    )
    return entry.entry_id


# Nothing is lost


@case("order_lost", "money_not_conserved")
def an_order_was_skipped(flow: Flow) -> Place:
    return without_payment(flow, "shop:c3")


@case("order_without_outcome", severity=PENDING)
def an_order_waits_to_be_read(flow: Flow) -> Place:
    return flow.order("shop:new")


@case("order_without_outcome", severity=PENDING)
def a_request_waits_for_its_call(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    committed = flow.committed["gateway"].copy()
    flow.all_processed()
    flow.committed["gateway"] = committed
    return flow.of("payments", payment.key)


@case("order_without_outcome", severity=PENDING)
def an_unknown_outcome_waits_for_its_inquiry(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    payment.unknown()
    flow.all_processed()
    due = flow.of("payment-inquiry-1", payment.key)
    flow.committed["payments"]["payment-inquiry-1", due.partition] = due.offset
    return flow.of("payments", payment.key, -1)


@case("waits_for_a_person", severity=PENDING)
def nobody_could_tell_the_outcome(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    payment.unknown()
    payment.transition("outcome_unknown", "inquiry_exhausted", state="inquiry_exhausted")
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("two_outcomes")
def a_failed_payment_was_captured(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    payment.transition("failed", "failed", state="failed", reason="gateway_unavailable")
    payment.succeed()
    flow.all_processed()
    return flow.of("payment-events", payment.key, -1)


@case("unknown_left_behind")
def an_inquiry_was_never_scheduled(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    payment.unknown()
    flow.remove("payment-inquiry-1", payment.key)
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("processing_left_behind")
def a_retry_was_never_sent(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    payment.not_sent()
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("request_without_result", "order_without_outcome")
def a_result_was_lost(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    flow.all_processed()
    return flow.of("payment-requests", payment.key)


# Charged at most once


@case("charged_twice")
def the_gateway_charged_twice_under_one_key(flow: Flow) -> Place:
    flow.charges.append({**flow.charges[0], "id": "ch_again"})
    return "shop:c1: ch_again"


@case("charged_twice", "charge_without_payment")
def a_second_charge_came_under_another_key(flow: Flow) -> Place:
    reference = flow.charges[0]["reference"].replace(":sim-a:1", ":sim-b:2")
    flow.charges.append({**flow.charges[0], "id": "ch_again", "reference": reference})
    return "shop:c1: ch_again"


@case("two_keys_charged", "charged_twice", "settlement_duplicated", "money_not_conserved",
      "journal_entry_duplicated")  # fmt: skip
def two_attempts_were_both_charged(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 90)
    payment.attempt, payment.tries, payment.gateway = 2, 0, "sim-b"
    payment.request("charge")
    payment.succeed()
    flow.all_processed()
    return flow.of("gateway-results", payment.key, -1)


@case("charge_without_payment")
def the_gateway_charged_somebody_unasked(flow: Flow) -> Place:
    flow.charges.append({**flow.charges[0], "id": "ch_odd", "order_id": "nobody", "reference": "x"})
    return "shop:nobody: ch_odd"


@case("charged_but_not_captured")
def a_failed_payment_has_a_charge(flow: Flow) -> Place:
    request = flow.of("payment-requests", "shop:declined").fields
    assert request is not None
    flow.charges.append(
        {
            **flow.charges[0],
            "id": "ch_late",
            "order_id": "declined",
            "reference": request["idempotency_key"],
            "amount_minor": 500,
        }
    )
    return "shop:declined: ch_late"


@case("more_than_one_request_in_flight", "order_without_outcome")
def a_second_request_did_not_wait(flow: Flow) -> Place:
    payment = flow.started("shop:new")
    second = payment.request("charge")
    committed = flow.committed["gateway"].copy()
    flow.all_processed()
    flow.committed["gateway"] = committed
    return second


@case("more_than_one_request_in_flight", "order_without_outcome", "notice_of_another_payment")
def a_second_request_did_not_wait_for_a_foreign_notice(flow: Flow) -> Place:
    """A webhook may be faster than an answer; one of another payment says nothing."""
    payment = flow.started("shop:new")
    payment.attempt = 2
    payment.tries = 0
    second = payment.request("charge")
    notice = _set(payment.notified("operation", operation_id="new"), payment_id="another")
    flow.dead_letter(notice, "unknown_payment")
    committed = flow.committed["gateway"].copy()
    flow.all_processed()
    flow.committed["gateway"] = committed
    return second


@case("request_duplicated")
def a_request_is_in_the_log_twice(flow: Flow) -> Place:
    return _again(flow, flow.of("payment-requests", "shop:c2"))


@case("result_duplicated")
def a_result_is_in_the_log_twice(flow: Flow) -> Place:
    return _again(flow, flow.of("gateway-results", "shop:c2"))


@case("request_amount_wrong")
def a_request_asks_for_more(flow: Flow) -> Place:
    return _set(flow.of("payment-requests", "shop:declined"), amount_minor=501)


@case("idempotency_key_wrong")
def a_request_has_a_key_of_its_own(flow: Flow) -> Place:
    return _set(flow.of("payment-requests", "shop:declined"), idempotency_key="once")


@case("conflict_not_named")
def a_contradicting_order_was_swallowed(flow: Flow) -> Place:
    order = flow.order("shop:c4", 999_999)
    flow.all_processed()
    return order


# The books balance


@case("captured_without_charge")
def the_gateway_knows_nothing_of_a_capture(flow: Flow) -> Place:
    flow.charges = [c for c in flow.charges if c["order_id"] != "c5"]
    return flow.of("settlements", "shop:c5")


@case(
    "settlement_missing",
    "money_not_conserved",
    "journal_entry_without_settlement",
    "success_without_settlement",
)
def a_settlement_was_removed(flow: Flow) -> Place:
    flow.remove("settlements", "shop:c5")
    return flow.of("payments", "shop:c5", -1)


@case("settlement_duplicated", "money_not_conserved")
def a_settlement_was_doubled(flow: Flow) -> Place:
    return _again(flow, flow.of("settlements", "shop:c5"))


@case("reference_settled_twice", "settlement_amount_wrong", "settlement_without_journal_entry",
      "money_not_conserved", "derived_id_wrong")  # fmt: skip
def one_charge_was_settled_for_two_operations(flow: Flow) -> Place:
    return _again(flow, flow.of("settlements", "shop:c5"), settlement_id="x", operation_id="t1")


@case("reference_settled_twice", "settlement_amount_wrong", "success_without_settlement")
def one_refund_was_settled_twice(flow: Flow) -> Place:
    first, second = (flow.of("settlements", "shop:refunded", n) for n in (1, 2))
    assert first.fields is not None
    return _set(second, gateway_reference=first.fields["gateway_reference"])


@case("reference_settled_twice", "captured_without_charge", "charged_but_not_captured",
      "settlement_without_evidence", "success_without_settlement")  # fmt: skip
def one_charge_was_settled_for_two_payments(flow: Flow) -> Place:
    first, second = (flow.of("settlements", key) for key in ("shop:c5", "shop:c7"))
    assert first.fields is not None
    return _set(second, gateway_reference=first.fields["gateway_reference"])


@case("settlement_amount_wrong", "money_not_conserved", "journal_entry_amount_wrong")
def a_settlement_is_of_another_amount(flow: Flow) -> Place:
    return _set(flow.of("settlements", "shop:c5"), amount_minor=1)


@case("settlement_amount_wrong", "charge_amount_wrong")
def the_gateway_charged_another_amount(flow: Flow) -> Place:
    charge = next(c for c in flow.charges if c["order_id"] == "c5")
    charge["amount_minor"] += 10
    return flow.of("settlements", "shop:c5")


@case("settlement_without_order", "payment_without_order", "request_without_order")
def an_order_was_removed(flow: Flow) -> Place:
    flow.remove("orders", "shop:c6")
    return flow.of("settlements", "shop:c6")


@case("settlement_without_captured_payment", "two_outcomes", "money_not_conserved")
def a_settled_payment_was_failed(flow: Flow) -> Place:
    payment = flow.captured("shop:new")
    payment.authorized_minor = payment.captured_minor = 0
    payment.transition("failed", "failed", state="failed", reason="gateway_unavailable")
    flow.all_processed()
    return flow.of("settlements", "shop:new")


@case(
    "settlement_without_evidence",
    "captured_without_charge",
    "charged_but_not_captured",
    "success_without_settlement",
)
def a_settlement_names_another_charge(flow: Flow) -> Place:
    return _set(flow.of("settlements", "shop:c7"), gateway_reference="ch_none")


@case("settlement_without_journal_entry")
def an_entry_was_removed(flow: Flow) -> Place:
    entry = _entry_of(flow, "shop:c8")
    flow.entries.remove(entry)
    return flow.of("settlements", "shop:c8")


@case("settlement_without_journal_entry", severity=PENDING)
def the_ledger_is_behind(flow: Flow) -> Place:
    an_entry_was_removed(flow)
    settlement = flow.of("settlements", "shop:c8")
    later = [
        r for r in flow.rows
        if r.role == "settlements" and r.partition == settlement.partition
        and r.offset > settlement.offset
    ]  # fmt: skip
    for row in later:
        entry = _entry_of(flow, row)
        flow.entries.remove(entry)
    flow.ledger_offsets[settlement.topic, settlement.partition] = settlement.offset
    return settlement if not later else "shop:"


@case("journal_entry_without_settlement")
def an_entry_was_invented(flow: Flow) -> Place:
    entry = replace(flow.entries[0], entry_id="entry-odd", settlement_id="nothing")
    flow.entries.append(entry)
    return "entry-odd"


@case("journal_entry_duplicated")
def a_settlement_was_booked_twice(flow: Flow) -> Place:
    entry = replace(flow.entries[0], entry_id="entry-odd")
    flow.entries.append(entry)
    return "entry-odd"


@case("journal_entry_amount_wrong")
def an_entry_books_another_amount(flow: Flow) -> Place:
    old = flow.entries[0]
    new = replace(old, postings=tuple(replace(p, amount_minor=p.amount_minor * 2)
                                      for p in old.postings))  # fmt: skip
    flow.entries[0] = new
    return old.entry_id


@case("journal_entry_beyond_offset")
def the_ledgers_offset_fell_back(flow: Flow) -> Place:
    rows = [r for r in flow.rows if r.role == "settlements"]
    last = [r for r in rows if r.partition == rows[0].partition][-1]
    flow.ledger_offsets[last.topic, last.partition] = last.offset
    return f"[{last.partition}]@{last.offset}, but"


@case("journal_entry_source_wrong")
def an_entry_names_another_record(flow: Flow) -> Place:
    old = flow.entries[0]
    flow.entries[0] = replace(old, source_offset=old.source_offset + 1)
    return old.entry_id


@case("journal_unbalanced", "journal_entry_accounts_wrong")
def an_entry_lacks_a_penny(flow: Flow) -> Place:
    old = flow.entries[0]
    debit, credit = old.postings
    new = replace(old, postings=(debit, replace(credit, amount_minor=credit.amount_minor + 1)))
    flow.entries[0] = new
    return old.entry_id


@case("balance_differs_from_postings")
def a_balance_was_touched(flow: Flow) -> Place:
    flow.touched["merchant_payable:shop", "GBP"] += 5
    return "merchant_payable:shop"


@case("journal_unbalanced", "journal_entry_amount_wrong")
def a_posting_is_in_another_currency(flow: Flow) -> Place:
    old = flow.entries[0]
    new = replace(old, postings=(PostingSeen("x", "USD", 7), *old.postings))
    flow.entries[0] = new
    return old.entry_id


@case("money_not_conserved", "payment_differs_from_order")
def a_failed_payment_lost_a_penny(flow: Flow) -> Place:
    for role in ("payments", "payment-events", "payment-requests"):
        for row in flow.rows:
            if _is(row, role, "shop:declined"):
                _set(row, amount_minor=499)
    return flow.of("orders", "shop:declined")


# After the charge


@case("amounts_out_of_order")
def more_was_refunded_than_captured(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.commanded("refund", "r-1", 60)
    payment.commanded("refund", "r-2", 60)
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("amounts_out_of_order")
def more_was_captured_than_held(flow: Flow) -> Place:
    payment = flow.authorized("shop:new", 100)
    payment.commanded("capture", "c-1", 60)
    payment.authorized_minor = 59
    payment.step("captured", "authorization_lapsed")
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case(
    "settlement_missing",
    "refund_without_settlement",
    "journal_entry_without_settlement",
    "success_without_settlement",
)
def the_settlement_of_the_only_refund_was_removed(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.commanded("refund", "r-1", 60)
    flow.all_processed()
    flow.remove("settlements", payment.key, 1)
    return flow.of("payments", payment.key, -1)


@case(
    "settlement_amount_wrong",
    "refund_without_settlement",
    "journal_entry_without_settlement",
    "success_without_settlement",
)
def the_settlement_of_one_refund_was_removed(flow: Flow) -> Place:
    flow.remove("settlements", "shop:refunded", 1)
    return flow.of("settlements", "shop:refunded", -1)


@case("settlement_amount_wrong", "journal_entry_amount_wrong")
def a_refund_is_settled_with_another_amount(flow: Flow) -> Place:
    _set(flow.of("settlements", "shop:refunded", 1), amount_minor=-301)
    return flow.of("settlements", "shop:refunded", -1)


@case("settlement_amount_wrong")
def the_gateway_refunded_another_amount(flow: Flow) -> Place:
    entry = next(c for c in flow.charges if c["kind"] == "refund" and c["order_id"] == "refunded")
    entry["amount_minor"] += 10
    return flow.of("settlements", "shop:refunded", 1)


@case("refund_without_settlement")
def a_refund_of_the_gateway_is_settled_under_another_id(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    entry_id = payment.commanded("refund", "r-1", 60)
    entry = next(c for c in flow.charges if c["id"] == entry_id)
    flow.charges.append({**entry, "id": "re_again"})
    flow.all_processed()
    return "shop:new: re_again"


@case("settlement_without_refund")
def the_gateway_knows_nothing_of_a_refund(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    entry_id = payment.commanded("refund", "r-1", 60)
    flow.charges = [c for c in flow.charges if c["id"] != entry_id]
    flow.all_processed()
    return flow.of("settlements", payment.key, 1)


@case("settlement_without_refund")
def the_gateway_knows_nothing_of_a_failed_refund(flow: Flow) -> Place:
    flow.charges = [c for c in flow.charges if c["kind"] != "refund_failed"]
    return flow.of("settlements", "shop:refunded", -1)


@case("operation_without_request")
def the_gateway_refunded_unasked(flow: Flow) -> Place:
    entry = next(c for c in flow.charges if c["kind"] == "refund")
    flow.charges.append({**entry, "id": "re_odd", "reference": "x"})
    return "shop:refunded: re_odd"


@case("request_amount_wrong")
def a_refund_asks_for_more(flow: Flow) -> Place:
    return _set(flow.of("payment-requests", "shop:refunded", 1), amount_minor=301)


@case("notice_outstanding", severity=PENDING)
def nobody_told_that_a_refund_failed(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.commanded("refund", "r-1", 60)
    payment.entry("refund_failed", payment.reference_of("r-1"), 60, payment.charge_id)
    flow.all_processed()
    return f"{payment.key}: refund_failed_"


@case("notice_outstanding", severity=PENDING)
def nobody_told_of_a_dispute(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.entry("dispute", "dp9", 100, payment.charge_id)
    flow.all_processed()
    return f"{payment.key}: dispute_"


@case("settlement_without_dispute")
def the_gateway_knows_nothing_of_a_dispute(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.disputed("dp9", 100, 15)
    flow.charges = [c for c in flow.charges if c["kind"] != "dispute" or c["order_id"] != "new"]
    flow.all_processed()
    return flow.of("settlements", payment.key, 1)


@case("settlement_missing", "journal_entry_without_settlement", "notice_outstanding")
def a_disputes_settlement_was_removed(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.disputed("dp9", 100, 15)
    flow.remove("settlements", payment.key, 1)
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("settlement_without_evidence")
def a_dispute_was_settled_without_a_notice(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.disputed("dp9", 100, 15)
    flow.remove("gateway-notifications", payment.key)
    flow.all_processed()
    return flow.of("settlements", payment.key, 1)


@case("settlement_without_evidence")
def a_credit_was_booked_unasked(flow: Flow) -> Place:
    flow.remove("payment-commands", "shop:C1-line-1")
    return flow.of("settlements", "shop:C1-line-1")


@case("charged_but_not_captured", "settlement_amount_wrong", "journal_entry_without_settlement",
      "money_not_conserved", "success_without_settlement")  # fmt: skip
def the_settlement_of_a_partial_capture_was_removed(flow: Flow) -> Place:
    flow.remove("settlements", "shop:manual", 1)
    return "shop:manual: capture_"


@case("void_and_capture", "charged_but_not_captured")
def the_gateway_captured_what_it_had_voided(flow: Flow) -> Place:
    void = next(c for c in flow.charges if c["kind"] == "void")
    request = flow.of("payment-requests", "shop:voided", 1).fields
    assert request is not None
    flow.charges.append({**void, "kind": "capture", "id": "ca_odd"})
    return f"shop:voided: {void['id']}"


@case("movement_of_another_charge")
def the_gateway_refunded_another_customer(flow: Flow) -> Place:
    refund = next(c for c in flow.charges if c["kind"] == "refund")
    order = refund["order_id"]
    other = next(c for c in flow.charges if c["kind"] == "charge" and c["order_id"] != order)
    refund["charge_id"] = other["id"]
    return f"shop:{order}: {refund['id']}"


@case("movement_of_another_charge")
def the_gateway_captured_what_nobody_knows(flow: Flow) -> Place:
    capture = next(c for c in flow.charges if c["kind"] == "capture")
    capture["charge_id"] = "ch_of_nobody"
    return f"shop:{capture['order_id']}: {capture['id']}"


@case("late_success_not_reversed", "settlement_missing", "refund_without_settlement",
      "journal_entry_without_settlement", "success_without_settlement")  # fmt: skip
def the_refund_of_a_late_charge_was_removed(flow: Flow) -> Place:
    flow.remove("settlements", "shop:late", 1)
    return flow.of("settlements", "shop:late", 0)


@case("late_success_not_reversed")
def a_late_charge_was_kept(flow: Flow) -> Place:
    payment = flow.started("shop:new", 70)
    payment.transition("failed", "failed", state="failed", reason="gateway_unavailable")
    late = payment.came_too_late()
    del payment.operations[late]
    flow.remove("payment-requests", payment.key, 1)
    payment.step("failed", "late_success")
    flow.all_processed()
    return flow.of("settlements", payment.key)


@case("waits_for_a_person", severity=PENDING)
def a_late_charge_could_not_be_given_back(flow: Flow) -> Place:
    payment = flow.started("shop:new", 70)
    payment.transition("failed", "failed", state="failed", reason="gateway_unavailable")
    late = payment.came_too_late()
    payment.answered(late, "declined")
    payment.state_of(late, "declined")
    payment.step("failed", "operation_declined", operation_id=late)
    flow.all_processed()
    return flow.of("settlements", payment.key)


@case("late_success_not_reversed")
def a_cancelled_payment_is_still_held(flow: Flow) -> Place:
    payment = flow.authorized("shop:new", 70)
    payment.authorized_minor = 0
    payment.step("cancelled", "cancelled")
    flow.all_processed()
    return f"{payment.key}: ch_"


@case("operation_left_behind")
def a_refund_waits_for_nothing(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 70)
    payment.begin("refund", "r-1", 20)
    payment.answered("r-1", "unknown")
    payment.state_of("r-1", "inquiry_waiting")
    payment.step("captured", "outcome_unknown", operation_id="r-1")
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("waits_for_the_customer", severity=PENDING)
def a_customer_has_not_come_back(flow: Flow) -> Place:
    payment = flow.started("shop:new", 70)
    payment.result("charge", "pending", code="customer_action_required")
    payment.timer()
    payment.transition("requires_customer_action", "requires_customer_action", state="pending")
    flow.all_processed()
    return flow.of("payments", payment.key, -1)


@case("order_without_outcome", severity=PENDING)
def a_timer_may_have_fired_meanwhile(flow: Flow) -> Place:
    payment = flow.authorized("shop:new", 70)
    payment.begin("void", "expiry-new", 70)
    flow.all_processed()
    flow.committed["gateway"] = {}
    flow.untouched = {place: offset + 99 for place, offset in flow.untouched.items()}
    flow.rows = [row for row in flow.rows if row.key == payment.key.encode()]
    flow.charges = [c for c in flow.charges if c["order_id"] == "new"]
    flow.entries = []
    return flow.of("payments", payment.key, -1)


# Commands


@case("command_without_outcome", severity=PENDING)
def a_command_waits_to_be_read(flow: Flow) -> Place:
    payment = flow.captured("shop:new")
    flow.all_processed()
    return payment.command("refund", "r-1")


@case("command_without_outcome")
def a_command_was_swallowed(flow: Flow) -> Place:
    payment = flow.captured("shop:new")
    command = payment.command("refund", "r-1")
    flow.all_processed()
    return command


@case("command_without_outcome")
def a_command_was_taken_and_nothing_came_of_it(flow: Flow) -> Place:
    payment = flow.captured("shop:new")
    command = payment.command("refund", "r-1")
    payment.command_ids = ["r-1"]
    payment.step("captured", "command_waiting", operation_id="r-1")
    flow.all_processed()
    return command


@case("command_answered_twice")
def a_command_was_rejected_and_done(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.commanded("refund", "r-1", 60)
    payment.step("captured", "command_rejected", reason="x", operation_id="r-1")
    flow.all_processed()
    return flow.of("payment-commands", payment.key)


@case("command_answered_twice")
def a_command_was_rejected_twice(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    command = payment.command("refund", "r-1")
    payment.rejected("r-1", "payment_must_be_captured")
    payment.step("captured", "command_rejected", reason="x", operation_id="r-1")
    flow.all_processed()
    return command


@case("conflict_not_named")
def another_command_under_a_known_id_was_taken_for_the_same(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.commanded("refund", "r-1", 60)
    other = payment.command("refund", "r-1", amount_minor=61)
    flow.all_processed()
    return other


@case("commands_wait_for_their_order", severity=PENDING)
def a_command_came_before_its_order(flow: Flow) -> Place:
    row = flow.captured("shop:new").command("refund", "r-1", amount_minor=5, currency="GBP")
    flow.rows = [r for r in flow.rows if r.key != b"shop:new" or r is row]
    flow.charges = [c for c in flow.charges if c["order_id"] != "new"]
    flow.entries.pop()
    payment = PaymentInFlow(flow, "shop:new", row)
    payment.currency, payment.amount_minor = "", 0
    payment.command_ids = ["r-1"]
    payment.waiting = [dict(row.fields or {})]
    payment.timer()
    payment.step("awaiting_order", "awaiting_order", operation_id="r-1")
    flow.all_processed()
    return flow.of("payments", payment.key)


@case("bad_command_not_dead_lettered")
def a_bad_command_vanished(flow: Flow) -> Place:
    row = flow.append("payment-commands", b"shop:odd", raw=b"\x00\x00")
    flow.all_processed()
    return row


# Order per payment, and the table


@case("event_sequence_gap")
def an_event_was_removed(flow: Flow) -> Place:
    flow.remove("payment-events", "shop:retry", 1)
    return flow.of("payment-events", "shop:retry", 1)


@case("event_sequence_gap")
def the_first_event_was_removed(flow: Flow) -> Place:
    flow.remove("payment-events", "shop:retry", 0)
    return flow.of("payment-events", "shop:retry", -1)


@case("event_sequence_not_monotonic", "snapshot_differs_from_events")
def an_old_event_came_again(flow: Flow) -> Place:
    return _again(flow, flow.of("payment-events", "shop:retry", 0))


@case("snapshot_differs_from_events")
def the_last_event_is_missing(flow: Flow) -> Place:
    flow.remove("payment-events", "shop:declined", -1)
    return flow.of("payments", "shop:declined", -1)


@case("payment_regressed", "snapshot_differs_from_events", "processing_left_behind")
def an_old_snapshot_was_written_again(flow: Flow) -> Place:
    return _again(flow, flow.of("payments", "shop:declined", 0))


@case("payment_erased", "order_lost", "snapshot_differs_from_events", "money_not_conserved")
def a_payment_was_erased(flow: Flow) -> Place:
    row = flow.append("payments", b"shop:declined")
    flow.all_processed()
    return row


@case("payment_differs_from_order", "money_not_conserved")
def an_order_was_changed(flow: Flow) -> Place:
    _set(flow.of("orders", "shop:declined"), amount_minor=5)
    return flow.of("payments", "shop:declined", -1)


@case("result_without_request")
def a_result_answers_nothing(flow: Flow) -> Place:
    return _again(flow, flow.of("gateway-results", "shop:declined"), attempt=9)


@case("misplaced_key", "journal_entry_source_wrong")
def a_settlement_lies_in_another_partition(flow: Flow) -> Place:
    row = flow.of("settlements", "shop:c5")
    row.partition = (row.partition + 1) % PARTITIONS
    row.offset = flow._next["settlements", row.partition]
    flow._next["settlements", row.partition] += 2
    flow.all_processed()
    return row


@case("misplaced_key")
def a_misrouted_order_was_swallowed(flow: Flow) -> Place:
    row = flow.of("orders", "shop:misplaced")
    flow.rows = [r for r in flow.rows if r.role != "dead-letters" or r.key != row.key]
    return row


@case("key_differs_from_payload", "settlement_missing", "money_not_conserved",
      "journal_entry_without_settlement", "success_without_settlement")  # fmt: skip
def a_settlement_lies_under_another_key(flow: Flow) -> Place:
    row = flow.of("settlements", "shop:c5")
    row.key = b"shop:c6"
    return row


@case("derived_id_wrong")
def an_event_has_another_events_id(flow: Flow) -> Place:
    row = flow.of("payment-events", "shop:c5")
    assert row.fields is not None
    return _set(row, event_id=event_id(row.fields["payment_id"], 77))


# Bad input


@case("bad_order_not_dead_lettered")
def a_bad_order_vanished(flow: Flow) -> Place:
    row = flow.append("orders", b"shop:odd", raw=b"\x00\x00")
    flow.all_processed()
    return row


@case("order_without_outcome", severity=PENDING)
def a_bad_order_waits_to_be_read(flow: Flow) -> Place:
    return flow.append("orders", b"shop:odd", raw=b"\x00\x00")


@case("undecodable_record")
def our_own_topic_holds_junk(flow: Flow) -> Place:
    row = flow.append("payment-events", b"shop:c1", raw=b"\x00\x00")
    flow.all_processed()
    return row


@case("dead_letter_without_lineage", "conflict_not_named")
def a_dead_letter_has_no_cause(flow: Flow) -> Place:
    row = flow.of("dead-letters")
    row.headers = tuple(h for h in row.headers if h[0] != "dlq.cause")
    return row


@case("dead_letter_without_lineage")
def a_dead_letter_names_nothing(flow: Flow) -> Place:
    letter = flow.dead_letter(flow.of("orders", "shop:c1"), "order_conflict")
    letter.headers = tuple(
        (name, b"99991" if name == "dlq.offset" else value) for name, value in letter.headers
    )
    return letter


@case("dead_letter_without_lineage")
def a_dead_letter_was_altered(flow: Flow) -> Place:
    row = flow.of("dead-letters", "shop:junk")
    row.raw = b"not the record"
    return row


@case("unreadable_batch")
def a_batch_that_cannot_be_read_was_passed_over(flow: Flow) -> Place:
    batch = flow.unreadable_batch("orders", b"zstd")
    flow.all_processed()
    return batch


@case("unreadable_batch", severity=PENDING)
def a_batch_that_cannot_be_read_waits(flow: Flow) -> Place:
    return flow.unreadable_batch("orders", b"zstd")


@case("unreadable_batch")
def our_own_events_cannot_be_read(flow: Flow) -> Place:
    return flow.unreadable_batch("payment-events", b"zstd")


@case("unreadable_batch", severity=PENDING)
def settlements_cannot_be_read_and_are_not_booked(flow: Flow) -> Place:
    return flow.unreadable_batch("settlements", b"zstd")


@case("dead_letter_without_lineage")
def the_letter_of_a_batch_holds_something_else(flow: Flow) -> Place:
    letter = flow.dead_letter(flow.unreadable_batch("orders", b"zstd"), "unreadable_batch")
    flow.all_processed()
    letter.raw = b"other"
    return letter


@case("dead_letter_without_lineage")
def a_batch_was_buried_that_can_be_read(flow: Flow) -> Place:
    junk = flow.append("orders", None, raw=b"junk", partition=0)
    flow.rows.remove(junk)
    letter = flow.dead_letter(junk, "unreadable_batch")
    flow.all_processed()
    return letter


@case("dead_letter_duplicated")
def an_input_was_dead_lettered_twice(flow: Flow) -> Place:
    return flow.dead_letter(flow.of("orders", "shop:junk"), "not_wire_format")


@case("dead_letter_closed_twice")
def a_letter_was_discarded_twice(flow: Flow) -> Place:
    letter = flow.of("dead-letters", "shop:junk")
    flow.close_letter(letter, "discarded")
    return flow.close_letter(letter, "discarded")


@case("input_redriven_twice", "dead_letter_closed_twice")
def a_letter_was_redriven_twice(flow: Flow) -> Place:
    letter = flow.of("dead-letters", "shop:junk")
    for _ in range(2):
        again = flow.redrive(letter)
        flow.dead_letter(again, "not_wire_format")
    flow.all_processed()
    return again


@case("redriven_input_missing")
def a_marker_was_written_without_its_input(flow: Flow) -> Place:
    letter = flow.of("dead-letters", "shop:junk")
    flow.redrive(letter, again=False)
    return flow.of("dead-letter-markers")


def foreign_notice(flow: Flow) -> Row:
    """A genuine notice that names ``shop:c1`` and another order's payment."""
    other = flow.of("payments", "shop:c2").fields
    assert other is not None
    payment = PaymentInFlow(flow, "shop:c1", flow.of("orders", "shop:c1"))
    return _set(
        payment.notified("dispute", dispute_id="dp9", dispute_state="opened"),
        payment_id=other["payment_id"],
    )


@case("notice_of_another_payment", severity=Severity.NOTE)
def a_notice_of_another_payment_was_refused(flow: Flow) -> Place:
    notice = foreign_notice(flow)
    flow.dead_letter(notice, "unknown_payment")
    flow.all_processed()
    return notice


@case("notice_of_another_payment", severity=PENDING)
def a_notice_of_another_payment_has_just_come(flow: Flow) -> Place:
    return foreign_notice(flow)


@case("notice_not_dead_lettered")
def a_notice_of_another_payment_was_passed_over(flow: Flow) -> Place:
    notice = foreign_notice(flow)
    flow.all_processed()
    return notice


@case("settlement_without_evidence", "notice_of_another_payment")
def a_capture_rests_on_the_notice_of_another_payment(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    result = flow.remove("gateway-results", payment.key)
    assert result.fields is not None
    payment.result("charge", "unknown", code="timeout")
    notice = payment.notified(
        "operation",
        operation_id="new",
        attempt=1,
        kind="charge",
        outcome="succeeded",
        gateway_reference=result.fields["gateway_reference"],
    )
    flow.dead_letter(_set(notice, payment_id="another"), "unknown_payment")
    flow.all_processed()
    return flow.of("settlements", payment.key)


@case("settlement_without_evidence", "notice_of_another_payment", "settlement_without_dispute")
def a_dispute_was_settled_by_the_notice_of_another_payment(flow: Flow) -> Place:
    payment = flow.captured("shop:new", 100)
    payment.disputed("dp9", 100, 15)
    notice = _set(flow.of("gateway-notifications", payment.key), payment_id="another")
    flow.dead_letter(notice, "unknown_payment")
    flow.charges = [c for c in flow.charges if c["kind"] != "dispute" or c["order_id"] != "new"]
    flow.all_processed()
    return flow.of("settlements", payment.key, 1)


# The machinery


@case("consumer_offset_beyond_end")
def a_group_is_ahead_of_the_log(flow: Flow) -> Place:
    flow.committed["payments"]["orders", 2] += 1_000
    return CATALOGUE.name("orders")


@case("consumer_offset_beyond_end")
def the_ledger_is_ahead_of_the_log(flow: Flow) -> Place:
    flow.ledger_offsets[CATALOGUE.name("settlements"), 1] += 1_000
    return CATALOGUE.name("settlements")


@case("partitions_unequal")
def a_topic_has_more_partitions(flow: Flow) -> Place:
    flow.partitions["settlements"] = PARTITIONS + 1
    return CATALOGUE.name("settlements")


@case("open_transaction", severity=PENDING)
def a_transaction_stays_open(flow: Flow) -> Place:
    flow.blind.add(("settlements", 2))
    return CATALOGUE.name("settlements")


def test_a_healthy_flow_has_no_findings() -> None:
    """Captures, declines, retries, inquiries, conflicts and junk in good order are all right."""
    assert healthy_flow().audit() == []


def test_a_letter_whose_key_held_a_card_number_is_no_finding() -> None:
    """It was masked there; with any other key it is not that input's letter."""
    flow = healthy_flow()
    junk = flow.append("orders", b"shop:4111111111111111 x", raw=b"junk", partition=0)
    letter = flow.dead_letter(junk, "key_mismatch")
    flow.all_processed()
    letter.key = b"shop:411111******1111 x"
    assert [f for f in flow.audit() if f.severity is not Severity.NOTE] == []
    letter.key = b"shop:511111******1111 x"
    assert [f.name for f in flow.audit() if f.severity is Severity.BROKEN] == [
        "dead_letter_without_lineage"
    ]


def test_a_strangers_letter_that_was_set_aside_is_acknowledged() -> None:
    """Letters are kept for ever, and so would the finding be; what names an input falsely may be
    of our own making, and stays broken."""
    flow = healthy_flow()
    junk = [flow.append("dead-letters", None, raw=b"junk", partition=0) for _ in range(3)]
    flow.all_processed()

    def found() -> list[tuple[str, int, str]]:
        name = "dead_letter_without_lineage"
        told = [f for f in flow.audit() if f.severity is not Severity.NOTE]
        assert {f.name for f in told} == {name}
        return [(f.severity.value, f.count, f.example.detail) for f in told]

    assert found() == [("broken", 3, "has no header dlq.topic")]
    entry = {
        "entry_id": "e-1",
        "actor": "anna",
        "action": "dead_letters_discard",
        "subject": "dead-letters",
        "reason": "a tool's test",
        "detail": "",
        "occurred_at_ms": 0,
    }
    flow.append("audit", b"dead-letters", entry)
    for letter in junk[:2]:
        flow.close_letter(letter, "discarded", "e-1")
    told = "has no header dlq.topic; discarded by anna: a tool's test"
    assert found() == [("broken", 1, "has no header dlq.topic"), ("acknowledged", 2, told)]
    flow.close_letter(junk[2], "discarded", "e-1")
    assert found() == [("acknowledged", 3, told)]
    assert summarize(flow.evidence())["dead_letters"]["no_lineage"] == 3
    false = a_dead_letter_names_nothing(flow)
    flow.close_letter(false, "discarded", "e-1")
    assert [each[:2] for each in found()] == [("broken", 1), ("acknowledged", 3)]


def test_a_strangers_letter_stands_for_no_input() -> None:
    """One that names an input and lacks a header is not ours: what it names is judged as if it were
    not there, also once it was set aside."""
    flow = healthy_flow()
    letter = flow.of("dead-letters", "shop:junk")
    letter.headers = tuple(each for each in letter.headers if each[0] != "dlq.timestamp_ms")
    flow.close_letter(letter, "discarded", "e-1")
    assert {
        (f.name, f.severity.value) for f in flow.audit() if f.severity is not Severity.NOTE
    } == {
        ("bad_order_not_dead_lettered", "broken"),
        ("dead_letter_without_lineage", "acknowledged"),
    }
    real = flow.dead_letter(flow.of("orders", "shop:junk"), "truncated")
    assert real.offset != letter.offset
    assert {f.name for f in flow.audit() if f.severity is Severity.BROKEN} == set()


@pytest.mark.parametrize("held", [b"zstd", b""], ids=["whole", "without its bytes"])
@pytest.mark.parametrize("role", ["orders", "payment-requests", "settlements"])
def test_a_batch_that_cannot_be_read_and_has_its_letter_is_no_finding(
    role: str, held: bytes
) -> None:
    """Whatever stage reads it."""
    flow = healthy_flow()
    letter = flow.dead_letter(flow.unreadable_batch(role, b"zstd"), "unreadable_batch")
    letter.raw = held
    flow.all_processed()
    assert flow.audit() == []


def test_what_a_notice_calls_pending_is_asked_about_before_its_answer_comes() -> None:
    """The worker that had the call was gone before it could say what it heard. Of another operation
    the notice says nothing: there nobody asks before the answer is known."""
    for told, broken in (("new", set()), ("other", {"more_than_one_request_in_flight"})):
        flow = healthy_flow()
        payment = flow.started("shop:new")
        payment.notified("operation", operation_id=told, outcome="pending")
        payment.request("inquire")
        committed = flow.committed["gateway"].copy()
        flow.all_processed()
        flow.committed["gateway"] = committed
        found = {f.name for f in flow.audit() if f.severity is BROKEN}
        assert found == broken


@pytest.mark.parametrize(
    ("said", "rule", "found"),
    [("returned", None, False), ("returned", "refund_must_be_made", True), ("charged", None, True)],
)
def test_that_a_refund_came_back_rests_on_a_word_that_says_so(
    said: str, rule: str | None, found: bool
) -> None:
    """A person's word of the same refund that says something else, or was refused, is none."""
    flow = healthy_flow()
    payment = flow.captured("shop:new", 100)
    entry_id = payment.commanded("refund", "r-1", 60)
    payment.refund_failed("r-1", entry_id)
    flow.remove("gateway-notifications", payment.key)
    words = {"decision": said, "operation_id": "r-1", "gateway_reference": entry_id}
    payment.command("resolve", "p-1", **words)
    if rule is None:
        payment.command_ids = [*payment.command_ids, "p-1"]
        payment.step(payment.status, "review_approved")
    else:
        payment.rejected("p-1", rule)
    flow.all_processed()
    assert ("settlement_without_evidence" in {f.name for f in flow.audit()}) is found


@pytest.mark.parametrize("first", ["dead letter", "taken"])
def test_a_dead_letter_is_no_command_that_has_an_id(first: str) -> None:
    """It held what no record may; the person put it right and gave the same id. The other way round
    what was taken stays taken, and what is a dead letter says nothing."""
    flow = healthy_flow()
    payment = flow.captured("shop:new", 100)
    for refund in ("r-1", "r-9"):
        entry_id = payment.commanded("refund", refund, 30)
        payment.refund_failed(refund, entry_id)
        flow.remove("gateway-notifications", payment.key)
    words = {"decision": "returned", "gateway_reference": entry_id}
    operations = ("r-9", "r-1") if first == "dead letter" else ("r-1", "r-9")
    told = [payment.command("resolve", "p-1", operation_id=each, **words) for each in operations]
    flow.dead_letter(told[0 if first == "dead letter" else 1], "card_number")
    payment.command_ids = [*payment.command_ids, "p-1"]
    payment.step(payment.status, "review_approved")
    flow.all_processed()
    (found,) = (f for f in flow.audit() if f.name == "settlement_without_evidence")
    unheard = [row for row in flow.rows if row.role == "settlements"][-1]
    assert (found.count, found.example.offset) == (1, unheard.offset), "of r-9 nobody was heard"


@pytest.mark.parametrize("answer", ["unknown", "pending", "not_found"])
def test_an_answer_that_tells_nothing_is_no_word_that_a_refund_came_back(answer: str) -> None:
    """Its call was lost, or it was not through by then: it was made, as was seen afterwards."""
    flow = healthy_flow()
    payment = flow.captured("shop:new", 100)
    entry_id = payment.commanded("refund", "r-1", 60)
    payment.refund_failed("r-1", entry_id)
    flow.remove("gateway-notifications", payment.key)
    payment.result("refund", answer, operation_id="r-1", heard="late_answer")
    flow.all_processed()
    assert "settlement_without_evidence" in {f.name for f in flow.audit()}


@pytest.mark.parametrize("first", ["notice", "result"])
@pytest.mark.parametrize(("again", "found"), [("ch_9", False), ("ch_8", True)])
def test_a_contradiction_has_one_letter(first: str, again: str, found: bool) -> None:
    """Whatever says the same again has none; what says something else is missed without."""
    flow = healthy_flow()
    payment = flow.captured("shop:new")
    if first == "notice":
        words = {"operation_id": "new", "outcome": "succeeded", "gateway_reference": "ch_9"}
        told = payment.notified("operation", **words)
    else:
        told = payment.result("charge", "succeeded", "ch_9", heard="late_answer")
    flow.dead_letter(told, "contradictory_evidence")
    payment.result("charge", "succeeded", again, heard="late_answer")
    flow.all_processed()
    broken = {f.name for f in flow.audit() if f.severity is BROKEN}
    assert ("success_without_settlement" in broken) is found


@pytest.mark.parametrize("processed", [True, False])
def test_a_late_word_is_not_the_result_of_its_request(processed: bool) -> None:
    """A result that is gone is missed though what its call heard afterwards was told; before the
    gateway stage is done with the request it may be there first."""
    flow = healthy_flow()
    payment = flow.started("shop:new")
    committed = flow.committed["gateway"].copy()
    payment.result("charge", "declined", heard="late_answer")
    flow.all_processed()
    if not processed:
        flow.committed["gateway"] = committed
    found = {f.name for f in flow.audit()}
    assert found == {"order_without_outcome", *["request_without_result"] * processed}


def test_a_late_word_may_lead_on_before_the_result_is_there() -> None:
    """It was decided by, so the next request is no second one in flight."""
    flow = healthy_flow()
    payment = flow.started("shop:new")
    committed = flow.committed["gateway"].copy()
    payment.result("charge", "declined", heard="late_answer")
    payment.attempt += 1
    payment.tries = 0
    payment.request("charge")
    flow.all_processed()
    flow.committed["gateway"] = committed
    assert {f.name for f in flow.audit() if f.severity is BROKEN} == set()


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [20, 1], ids=["too much", "not much"])
def test_a_batch_that_is_too_much_for_a_worker_has_one_letter_for_all_its_records(
    mebibytes: int,
) -> None:
    """An audit that has the memory is handed them; what any worker could have read is none."""
    flow = healthy_flow()
    first, second = (flow.append("orders", None, raw=b"junk", partition=0) for _ in range(2))
    letter = flow.dead_letter(first, "unreadable_batch")
    count = second.offset - first.offset + 1
    letter.raw = batch_bytes(gzip_zeros(mebibytes), GZIP, count=count, first=first.offset)
    letter.headers = (*letter.headers, ("dlq.last_offset", str(second.offset).encode()))
    flow.all_processed()
    found = [f.name for f in flow.audit()]
    if mebibytes == 20:
        assert found == []
    else:
        assert "bad_order_not_dead_lettered" in found


def test_an_order_may_be_named_like_a_reversal() -> None:
    """Its own charge is no charge that came too late, and need not be given back."""
    flow = healthy_flow()
    flow.captured("shop:late-1", 450)
    flow.all_processed()
    assert flow.audit() == []


@pytest.mark.parametrize("name", CASES)
def test_planted_damage_is_named_and_located(name: str) -> None:
    """The audit names the guarantee that a damage breaks, shows where, and accuses nothing else."""
    flow, planted = healthy_flow(), CASES[name]
    place = planted.damage(flow)
    found = flow.audit()
    names = {finding.name for finding in found}
    finding = next((f for f in found if f.name == planted.name), None)
    assert finding is not None, f"{planted.name} was not found, only {names}"
    assert finding.severity is planted.severity
    assert_shows(finding, place)
    assert names == {planted.name} | planted.also


def assert_shows(finding: Finding, place: Place) -> None:
    example = finding.example
    if isinstance(place, Row):
        assert (example.topic, example.partition, example.offset) == (
            place.topic,
            place.partition,
            place.offset,
        )
    else:
        assert place in str(example)


def test_what_was_redriven_is_judged_in_place_of_what_was_refused() -> None:
    """An order, a result, a request and a settlement that were refused, mended and redriven are
    one effect each, and the letters are counted by what became of them."""
    flow = healthy_flow()
    order = flow.order("shop:redriven", 900)
    letter = flow.dead_letter(order, "unknown_schema_id")
    flow.redrive(letter)
    payment = PaymentInFlow(flow, "shop:redriven", order)
    request = payment.request("charge")
    payment.transition("processing", "payment_started", state="started")
    flow.redrive(flow.dead_letter(request, "unknown_schema_id"))
    charge_id = payment.charge()
    result = payment.result("charge", "succeeded", charge_id)
    flow.redrive(flow.dead_letter(result, "unknown_schema_id"))
    payment.authorized_minor = payment.captured_minor = 900
    settlement = payment.settle(charge_id)
    flow.dead_letter(settlement, "unknown_schema_id")
    again = flow.redrive(flow.of("dead-letters", "shop:redriven", -1))
    flow.entries[-1] = replace(flow.entries[-1], source_offset=again.offset)
    payment.transition("captured", "captured", state="charged")
    flow.close_letter(flow.of("dead-letters", "shop:junk"), "discarded")
    flow.all_processed()
    assert [f for f in flow.audit() if f.severity is not Severity.NOTE] == []
    states = summarize(flow.evidence())["dead_letters_by_state"]
    assert (states["redriven"], states["discarded"]) == (4, 1)
    assert states["open"] == len(flow.evidence().dead_letters) - 5


def test_another_command_under_a_known_id_is_no_finding_when_it_was_refused() -> None:
    """The conflict is named, as often as it comes; the command that was taken is not concerned."""
    flow = healthy_flow()
    payment = flow.captured("shop:new", 100)
    payment.commanded("refund", "r-1", 60)
    for amount_minor in (61, 62):
        payment.command("refund", "r-1", amount_minor=amount_minor)
        rule = "content_of_a_command_id_must_not_change"
        payment.step("captured", "command_rejected", reason=rule, operation_id="r-1")
    flow.all_processed()
    assert [f for f in flow.audit() if f.severity is not Severity.NOTE] == []


def test_a_command_that_a_full_memory_forgot_is_no_finding() -> None:
    """Of so many commands the payment may have forgotten this one, which was taken."""
    flow = healthy_flow()
    payment = flow.captured("shop:new", 100)
    payment.command("resolve", "p-1", decision="charged")
    payment.command_ids = [f"x-{n}" for n in range(256)]
    payment.step("captured", "command_rejected", reason="x", operation_id="x-255")
    flow.all_processed()
    assert [f for f in flow.audit() if f.severity is not Severity.NOTE] == []


def test_a_header_alone_takes_no_input_away() -> None:
    """Whoever writes orders could claim that one stands for another: a charge made twice for two
    orders with different amounts is still seen."""
    flow = healthy_flow()
    first = flow.of("orders", "shop:c1")
    forged = flow.order("shop:c1", 9_999)
    forged.headers = (("redrive.offset", str(first.offset).encode()),)
    flow.all_processed()
    assert "conflict_not_named" in {f.name for f in flow.audit()}


def test_headers_that_cannot_be_read_are_noted() -> None:
    """The order is judged as one without headers."""
    flow = healthy_flow()
    flow.of("orders", "shop:c1").headers = UNREADABLE  # type: ignore[assignment]
    found = flow.audit()
    assert {(f.name, f.severity) for f in found} == {("headers_unreadable", Severity.NOTE)}


@pytest.mark.parametrize("damage", [
    one_charge_was_settled_for_two_operations, one_refund_was_settled_twice,
    one_charge_was_settled_for_two_payments,
])  # fmt: skip
def test_one_movement_settled_twice_is_found_without_books(damage: Callable[[Flow], Place]) -> None:
    """The log alone shows it: a gateway's books need not be given."""
    flow = healthy_flow()
    damage(flow)
    assert "reference_settled_twice" in {f.name for f in check(flow.evidence(), flow.cut())}


def test_captures_of_one_hold_may_have_its_id() -> None:
    """Some gateways know a capture by the id of its authorization alone."""
    for shared, found in ((hold_of(healthy_flow()), False), ("ca_1", True)):
        flow = healthy_flow()
        for n in (0, 1):
            _set(flow.of("settlements", "shop:manual", n), gateway_reference=shared)
        assert ("reference_settled_twice" in {f.name for f in flow.audit()}) == found


def test_refunds_of_one_charge_may_have_its_id() -> None:
    """Some gateways know a refund by the id of its charge alone; another id is one refund's."""
    flow = healthy_flow()
    charge = flow.of("settlements", "shop:refunded").fields
    assert charge is not None
    for shared, found in ((charge["gateway_reference"], False), ("re_1", True)):
        flow = healthy_flow()
        for n in (1, 2):
            _set(flow.of("settlements", "shop:refunded", n), gateway_reference=shared)
        assert ("reference_settled_twice" in {f.name for f in flow.audit()}) == found


def hold_of(flow: Flow) -> str:
    """The gateway's id of the authorization that is captured in two parts."""
    result = flow.of("gateway-results", "shop:manual").fields
    assert result is not None
    assert result["kind"] == "authorize"
    return str(result["gateway_reference"])


def test_every_guarantee_of_the_list_is_tried() -> None:
    """No name in the list of guarantees goes without a damage that raises it."""
    tried = {c.name for c in CASES.values()} | {n for c in CASES.values() for n in c.also}
    elsewhere = {
        "history_deleted", "history_deleted_meanwhile", "headers_unreadable",
        # In test_audit_terms, over a flow that has fees and a closed month.
        "journal_entry_fees_wrong", "journal_entry_day_wrong", "journal_entry_without_decision",
        "tier_correction_wrong", "clearing_wrong", "decision_not_booked",
        # In test_unasked_charges, over a charge that was given back.
        "charge_of_two_payments",
        # In test_audit_payouts.
        "payout_decision_wrong",
    }  # fmt: skip
    assert set(GUARANTEES) == tried | elsewhere


def test_one_damage_is_counted_as_often_as_it_was_done() -> None:
    """The count beside the example says how far the damage goes."""
    flow = healthy_flow()
    for key in ("shop:c1", "shop:c2", "shop:c3"):
        flow.remove("settlements", key)
    missing = [f for f in flow.audit() if f.name == "settlement_missing"]
    assert [f.count for f in missing] == [3]


def test_effects_of_a_transaction_seen_in_part_are_not_missed() -> None:
    """A snapshot whose settlement lies beyond the settlements' end is pending: its result lies
    beyond the committed offset."""
    flow = healthy_flow()
    payment = flow.captured("shop:new")
    flow.remove("settlements", payment.key)
    flow.entries.pop()
    assert {f.name for f in flow.audit() if f.severity is BROKEN} == set()


def test_a_charge_newer_than_the_log_copy_is_not_an_orphan() -> None:
    """Books are read on after the log: their newest charges may have requests nobody read yet."""
    flow = healthy_flow()
    flow.charges.append(
        {**flow.charges[0], "id": "ch_new", "order_id": "new", "reference": "r", "recent": True}
    )
    assert flow.audit() == []


def test_nothing_is_accused_behind_an_open_transaction() -> None:
    """What hides behind an open transaction is not called lost."""
    flow = healthy_flow()
    settlement = flow.of("settlements", "shop:c5")
    hidden = [
        r for r in flow.rows
        if r.role == "settlements" and r.partition == settlement.partition
        and r.offset >= settlement.offset
    ]  # fmt: skip
    flow.rows = [r for r in flow.rows if r not in hidden]
    flow.blind.add(("settlements", settlement.partition))
    assert {f.name for f in flow.audit()} == {"open_transaction"}


def test_deleted_history_is_noted_and_not_accused() -> None:
    """Records that retention took are not missed, and the audit says that they are gone."""
    flow = healthy_flow()
    order = flow.of("orders", "shop:c5")
    for role in ("orders", "payment-requests", "gateway-results", "payment-events"):
        in_lane = [r for r in flow.rows if r.role == role and r.partition == order.partition]
        kept_from_ms = order.at_ms + 60
        flow.rows = [r for r in flow.rows if r not in in_lane or r.at_ms >= kept_from_ms]
        kept = [r for r in in_lane if r.at_ms >= kept_from_ms]
        flow.lows[role, order.partition] = (
            kept[0].offset if kept else flow._next[role, order.partition]
        )
        if kept:
            flow.first_at_ms[role, order.partition] = kept[0].at_ms
    assert order not in flow.rows
    found = flow.audit()
    assert {(f.name, f.severity) for f in found} == {("history_deleted", Severity.NOTE)}


def test_without_books_only_the_log_is_judged() -> None:
    """An audit without a ledger and a gateway accuses neither."""
    flow = healthy_flow()
    flow.entries.clear()
    flow.charges.clear()
    assert check(flow.evidence(), flow.cut()) == []


def test_the_summary_adds_up() -> None:
    """Counts, sums and dead letters in the summary are those of the flow."""
    flow = healthy_flow()
    summary = summarize(flow.evidence(), flow.ledger(), flow.gateway())
    assert summary["payments"] == {
        "captured": 15,
        "failed": 2,
        "no_payment_due": 1,
        "rejected": 1,
        "authorized": 1,
        "cancelled": 1,
        "credit_held": 1,
    }
    settlements = summary["settlements"]
    assert {kind: each["count"] for kind, each in settlements.items()} == {
        "capture": 17,
        "credit": 1,
        "dispute": 1,
        "dispute_fee": 1,
        "refund": 3,
        "refund_failed": 1,
        "reversal": 1,
    }
    # What the gateways owe is what was settled, but for credits, which no gateway knows.
    settled = dict(summary["settled_minor"])
    settled["GBP"] -= settlements["credit"]["amount_minor"]["GBP"]
    assert settled == summary["gateway"]["owed_minor"]
    assert settlements["capture"]["amount_minor"] == summary["gateway"]["charged_minor"]
    assert summary["gateway"]["refunded_minor"] == {"GBP": 300 + 650}
    assert summary["settled_minor"]["EUR"] == 1002 + 1004 + 1006 + 1008
    assert summary["commands"] == {
        "by_type": {"cancel": 1, "capture": 2, "credit": 1, "refund": 3},
        "waiting": 0,
        "rejected": {"refund_must_not_exceed_captured": 1},
    }
    assert summary["orders_repeated"] == 2
    assert summary["dead_letters"]["order_conflict"] == 1
    assert summary["ledger"]["balances"]["merchant_payable:shop"]["EUR"] == -4020
    latency = summary["order_to_settlement_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert latency["count"] == 17


def test_what_others_write_freely_is_not_printed_as_it_is() -> None:
    """Types that there are not are counted as one; ids cannot steer a terminal, and a reason that
    somebody gave in words is no name."""
    flow = healthy_flow()
    for type_ in ("\x1b[2J", "x" * 10_000):
        command = flow.of("orders", "shop:c1")
        payment = PaymentInFlow(flow, "shop:c1", command)
        payment.command(type_, "a\x1bb")
    _set(flow.of("payments", "shop:rejected", -1), currency="\x1b[31m")
    _set(flow.of("payments", "shop:voided", -1), reason="customer called \x1b[1m twice")
    findings = flow.audit()
    summary = summarize(flow.evidence(), flow.ledger(), flow.gateway())
    assert summary["commands"]["by_type"]["unknown_type"] == 1, "the same id once"
    assert summary["reasons"]["cancelled"] == {"in_words": 1}
    lines = list(report_lines(Report(findings, {**summary, "not_judged": []})))
    assert any("unknown_type a?b" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) < 1_000


def test_percentiles_by_nearest_rank() -> None:
    """Of 1 to 200 ms half are at most 100 ms; of nothing there is no percentile."""
    assert percentiles(list(range(200, 0, -1))) == {
        "count": 200,
        "p50": 100,
        "p95": 190,
        "p99": 198,
        "max": 200,
    }
    assert percentiles([])["p50"] is None
