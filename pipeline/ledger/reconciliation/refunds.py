"""Charges nobody asked for that a person has given back: which may be, and which are to be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, insert, select

from pipeline.domain.breaks import MISSING_HERE, ReconciliationBreak
from pipeline.domain.clearing import clearing_key
from pipeline.domain.ids import payment_id
from pipeline.domain.model import LedgerEvent
from pipeline.domain.posting import CAPTURE, UNASKED_CAPTURE
from pipeline.domain.reconciliation_decisions import (
    BREAK_RESOLUTION,
    RefundOrder,
    resolution_of,
)
from pipeline.errors import UserError
from pipeline.ledger.decisions import event_of
from pipeline.ledger.reconciliation.tables import clearing_rows, ordered_refunds
from pipeline.ledger.tables import journal_entries, ledger_decisions

# What a row says of a charge in one step; a capture has another id than what is given back by.
_CHARGE: Final = "charge"


def refund_of(connection: Connection, found: ReconciliationBreak) -> RefundOrder:
    """The charge of a break as it is given back; UserError where it is none, or may be ours."""
    if found.kind != MISSING_HERE:
        raise UserError(
            f"break {found.break_id} is {found.kind}: only a charge that is missing_here is given "
            "back so. One of a payment of ours is by `paystream payment refund`."
        )
    c = clearing_rows.c
    row = connection.execute(
        select(clearing_rows).where(
            c.gateway == found.gateway,
            c.file_id == found.file_id,
            c.row_number == found.row_number,
        )
    ).one()
    if row.kind != CAPTURE or row.operation_kind != _CHARGE or row.amount_minor <= 0:
        raise UserError(
            f"break {found.break_id} is about a {row.kind} by {row.operation_kind or 'a dispute'}: "
            "only a charge is given back so. Do it at the gateway, and resolve the break as "
            "corrected."
        )
    ours = row.operation_id and row.payment_id == payment_id(row.merchant_id, row.order_id)
    if ours and not row.told:
        raise UserError(
            f"break {found.break_id} names {row.merchant_id}:{row.order_id}, which was not told of "
            "it yet and may know it: let `paystream reconcile run` tell it first."
        )
    e = journal_entries.c
    known = connection.execute(
        select(e.merchant_id, e.order_id)
        .where(
            e.gateway == row.gateway,
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
    return RefundOrder(
        gateway=row.gateway,
        gateway_reference=row.gateway_reference,
        amount_minor=row.amount_minor,
        currency=row.currency,
        business_date=row.report_date,
        row=clearing_key(row.gateway, row.file_id, row.row_number),
    )


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
    """The flow was told of them. Told again, it does nothing."""
    known = set(connection.execute(select(ordered_refunds.c.sequence)).scalars())
    for event in events:
        if event.sequence not in known:
            connection.execute(insert(ordered_refunds).values(sequence=event.sequence))
