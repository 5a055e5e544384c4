"""Charges nobody asked for that a person has given back: which may be, and which are to be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, Select, and_, func, or_, select, text

from pipeline.domain.breaks import MISSING_HERE, ReconciliationBreak
from pipeline.domain.card_numbers import fields_with_card_numbers
from pipeline.domain.clearing import clearing_key
from pipeline.domain.commands import broken_by_itself
from pipeline.domain.ids import payment_id
from pipeline.domain.model import LedgerEvent, Payment
from pipeline.domain.payment import amount_of, is_unfinished
from pipeline.domain.policy import Policy
from pipeline.domain.posting import CAPTURE, UNASKED_CAPTURE
from pipeline.domain.reconciliation_decisions import (
    BREAK_RESOLUTION,
    RefundOrder,
    refund_command,
    resolution_of,
)
from pipeline.errors import UserError
from pipeline.ledger.decisions import decisions_of, event_of
from pipeline.ledger.reconciliation.tables import breaks, clearing_rows, ordered_refunds
from pipeline.ledger.tables import journal_entries, ledger_decisions

# What a row says of a charge in one step; a capture has another id than what is given back by.
_CHARGE: Final = "charge"
# How far a report's times may be off: it may know no more than the day, in a zone of its own.
_CLOCKS_APART_MS: Final = 2 * 86_400_000


class FlowSeen(Struct, frozen=True):
    """How far the flow was when it was asked about a charge. ``answered``: payments had read all
    that gateways and people had said by then; ``booked``: what settled by then was in the ledger;
    ``payment``: the one that the row names, as it stood; ``unknown``: where it names nobody, a
    payment (merchant:order) of which a charge may be this one, "" where there is none."""

    answered: bool
    booked: bool
    payment: Payment | None
    unknown: str = ""


class ChargeSeen(Struct, frozen=True):
    """A charge as its row tells of it."""

    gateway: str
    gateway_reference: str
    amount_minor: int
    currency: str
    occurred_at_ms: int
    names_nobody: bool


def named_order(connection: Connection, found: ReconciliationBreak) -> tuple[str, str]:
    """Merchant and order that the row of a break names; ("", "") where there is no row."""
    row = connection.execute(_row_of(found)).one_or_none()
    return ("", "") if row is None else (row.merchant_id, row.order_id)


def charge_of(connection: Connection, found: ReconciliationBreak) -> ChargeSeen | None:
    """What the row of a break tells of a charge; None where there is no row."""
    row = connection.execute(_row_of(found)).one_or_none()
    if row is None:
        return None
    return ChargeSeen(
        row.gateway,
        row.gateway_reference,
        row.amount_minor,
        row.currency,
        row.occurred_at_ms,
        not any(_names(row)),
    )


def may_be(charge: ChargeSeen, payment: Payment) -> bool:
    """Whether an operation whose outcome nobody knows yet may have made this charge: the amount it
    asked for, at that gateway, begun by then, and known by no other id."""
    return payment.currency == charge.currency and any(
        attempt.gateway == charge.gateway
        and attempt.kind == _CHARGE
        and amount_of(payment, attempt) == charge.amount_minor
        and attempt.gateway_reference in (None, charge.gateway_reference)
        and attempt.started_at_ms < charge.occurred_at_ms + _CLOCKS_APART_MS
        and is_unfinished(attempt)
        for attempt in payment.attempts
    )


def refund_of(
    connection: Connection, found: ReconciliationBreak, flow: FlowSeen | None
) -> RefundOrder:
    """The charge of a break as it is given back; UserError where it is none, or may be ours."""
    if found.kind != MISSING_HERE:
        raise UserError(
            f"break {found.break_id} is {found.kind}: only a charge that is missing_here is given "
            "back so. One of a payment of ours is by `paystream payment refund`."
        )
    row = connection.execute(_row_of(found)).one()
    if row.kind != CAPTURE or row.operation_kind != _CHARGE or row.amount_minor <= 0:
        raise UserError(
            f"break {found.break_id} is about a {row.kind} by {row.operation_kind or 'a dispute'}: "
            "only a charge is given back so. Do it at the gateway, and resolve the break as "
            "corrected."
        )
    _require_new(connection, found)
    _require_nobodys(connection, found, row, flow)
    return RefundOrder(
        gateway=row.gateway,
        gateway_reference=row.gateway_reference,
        amount_minor=row.amount_minor,
        currency=row.currency,
        business_date=row.report_date,
        row=clearing_key(row.gateway, row.file_id, row.row_number),
    )


def _row_of(found: ReconciliationBreak) -> Select[Any]:
    c = clearing_rows.c
    return select(clearing_rows).where(
        c.gateway == found.gateway,
        c.file_id == found.file_id,
        c.row_number == found.row_number,
    )


def _require_nobodys(
    connection: Connection, found: ReconciliationBreak, row: Any, flow: FlowSeen | None
) -> None:
    """A payment that was told of a charge may take it: it has to have answered, and what it made
    of that has to be booked. Then the books and the payment itself say whether it is theirs."""
    if row.payment_id and not row.operation_id:
        raise UserError(
            f"break {found.break_id} carries our reference for a charge of payment "
            f"{row.payment_id} at another gateway: the report was imported under a wrong name, or "
            f"{row.gateway} had another one. Import it as that gateway's, and resolve the break as "
            "corrected."
        )
    if row.operation_id and not row.told:
        if row.payment_id == payment_id(row.merchant_id, row.order_id):
            raise UserError(
                f"break {found.break_id} names {row.merchant_id}:{row.order_id}, which was not "
                "told of it yet and may know it: let `paystream reconcile run` tell it first."
            )
        raise UserError(
            f"break {found.break_id} names an operation of payment {row.payment_id} of ours, but "
            "not its order, which cannot be told of it and may know it: look whose it is, give it "
            "back by `paystream payment refund` or at the gateway, and resolve the break as "
            "corrected."
        )
    if flow is None or not flow.answered:
        raise UserError(
            "payments have not read all yet that gateways and people have said, so one may know "
            f"{row.gateway_reference}: try again when the payments workers run and have caught up."
        )
    if not flow.booked:
        raise UserError(
            "the ledger has not booked all yet that has settled, so "
            f"{row.gateway_reference} may be a sale: try again when the ledger's worker runs and "
            "has caught up."
        )
    e = journal_entries.c
    known = connection.execute(
        select(e.merchant_id, e.order_id)
        .where(
            or_(
                e.gateway == row.gateway,
                # Under a name that this gateway had before.
                and_(e.merchant_id == row.merchant_id, e.order_id == row.order_id),
            ),
            e.gateway_reference == row.gateway_reference,
            e.kind.in_((CAPTURE, UNASKED_CAPTURE)),
        )
        .limit(1)
    ).one_or_none()
    if known is not None:
        raise UserError(
            f"{row.gateway_reference} is the charge of {known.merchant_id}:{known.order_id}: look "
            "at that with `paystream payment show`."
        )
    _require_named_alike(connection, row)
    for attempt in () if flow.payment is None else flow.payment.attempts:
        if attempt.gateway_reference == row.gateway_reference or (
            attempt.gateway == row.gateway and is_unfinished(attempt)
        ):
            raise UserError(
                f"{row.gateway_reference} may be the charge of {row.merchant_id}:{row.order_id}, "
                f"of which operation {attempt.operation_id} is {attempt.state}: say first what "
                "became of that with `paystream payment resolve`."
            )
    if flow.unknown:
        raise UserError(
            f"{row.gateway_reference} names nobody and may be the charge of {flow.unknown}, of "
            f"which nobody knows yet what became of the same amount at {row.gateway}: wait for its "
            "outcome, or say it with `paystream payment resolve`."
        )


def _require_named_alike(connection: Connection, row: Any) -> None:
    """What any other row of the charge names may know it, though this one does not say so."""
    c = clearing_rows.c
    others = connection.execute(
        select(clearing_rows)
        .where(c.gateway == row.gateway, c.gateway_reference == row.gateway_reference)
        .order_by(c.file_id, c.row_number)
    )
    for other in others:
        if any(_names(other)) and _names(other) != _names(row):
            whose = f"{other.merchant_id}:{other.order_id}" if other.order_id else other.payment_id
            raise UserError(
                f"row {clearing_key(other.gateway, other.file_id, other.row_number)} names "
                f"{whose or other.operation_id} as that of {row.gateway_reference}, which may know "
                "it: look whose it is, and resolve that row's break. Where both are open, give it "
                "back at the gateway, and resolve them as corrected."
            )


def _names(row: Any) -> tuple[Any, ...]:
    """What a row says of whose it is: our reference, our order, or nothing."""
    return row.payment_id, row.operation_id, row.attempt, row.merchant_id, row.order_id


def _require_new(connection: Connection, found: ReconciliationBreak) -> None:
    """Nobody has decided about this charge before, by whatever row."""
    b = breaks.c
    same = set(
        connection.execute(
            select(b.break_id).where(
                b.kind == MISSING_HERE,
                b.gateway == found.gateway,
                b.gateway_reference == found.gateway_reference,
            )
        ).scalars()
    )
    for event in decisions_of(connection, [BREAK_RESOLUTION]):
        decided = resolution_of(event)
        refund = decided.refund
        if decided.break_id in same or (
            refund is not None
            and (refund.gateway, refund.gateway_reference)
            == (found.gateway, found.gateway_reference)
        ):
            raise UserError(
                f"{found.gateway_reference} was resolved as {decided.resolution} before, by "
                f"{event.actor} in break {decided.break_id}, and may have been given back: look at "
                "the gateway, give back there what is left, and resolve the break as corrected."
            )


def require_takeable(event: LedgerEvent) -> None:
    """UserError where the flow would refuse what a decision asks of it."""
    command = refund_command(event)
    if command is None:
        return
    fields = fields_with_card_numbers(command)
    if fields:
        raise UserError(
            f"a card number stands in {', '.join(fields)}, and must not be kept: say it without."
        )
    rule = broken_by_itself(command, Policy())
    if rule is not None:
        raise UserError(
            f"the flow would refuse it ({rule}), and nothing would be given back: say it so that "
            "it keeps that rule, or give the charge back at the gateway and resolve the break as "
            "corrected."
        )


def refunded_orders(connection: Connection) -> dict[str, str]:
    """The orders of the payments that decided refunds are made by, by the ids of those payments."""
    asked = map(refund_command, decisions_of(connection, [BREAK_RESOLUTION]))
    return {
        payment_id(each.merchant_id, each.order_id): each.order_id
        for each in asked
        if each is not None
    }


def charged_twice(connection: Connection) -> frozenset[tuple[str, str]]:
    """Gateways and payments of which reports have two charges: by one operation of ours, or one
    that was given back as nobody's and whose rows name the payment all the same."""
    c = clearing_rows.c
    rows = connection.execute(
        select(c.gateway, c.payment_id)
        .where(c.kind == CAPTURE, c.operation_kind == _CHARGE, c.operation_id != "")
        .group_by(c.gateway, c.payment_id, c.operation_id, c.attempt)
        .having(func.count(c.gateway_reference.distinct()) > 1)
    )
    twice = {(row.gateway, row.payment_id) for row in rows}
    for refund in _given_back(connection):
        rows = connection.execute(
            select(c.gateway, c.payment_id, c.merchant_id, c.order_id).where(
                c.gateway == refund.gateway, c.gateway_reference == refund.gateway_reference
            )
        )
        for row in rows:
            twice.add((row.gateway, row.payment_id))
            twice.add((row.gateway, payment_id(row.merchant_id, row.order_id)))
    return frozenset(twice)


def _given_back(connection: Connection) -> Iterator[RefundOrder]:
    """What people had given back, whether the flow was told of it yet or not."""
    for event in decisions_of(connection, [BREAK_RESOLUTION]):
        refund = resolution_of(event).refund
        if refund is not None:
            yield refund


def unordered_refunds(connection: Connection) -> list[LedgerEvent]:
    """Decisions of which the flow was not told yet; only those that the topic has."""
    c = ledger_decisions.c
    rows = connection.execute(
        select(ledger_decisions)
        .where(
            c.kind == BREAK_RESOLUTION,
            c.published_offset.is_not(None),
            c.sequence.not_in(select(ordered_refunds.c.sequence)),
        )
        .order_by(c.sequence)
    )
    return [event for event in map(event_of, rows) if resolution_of(event).refund is not None]


def mark_ordered(connection: Connection, events: Sequence[LedgerEvent]) -> None:
    """The flow was told of them. Told again, it does nothing; two may tell it at once."""
    marked = text(f"INSERT INTO {ordered_refunds.name} VALUES (:sequence) ON CONFLICT DO NOTHING")
    for event in events:
        connection.execute(marked, {"sequence": event.sequence})
