"""A row that a person has looked at clears its settlement, though the two tell other amounts, or
amounts of other currencies."""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import Connection, or_, select

from pipeline.domain.breaks import (
    ACCEPTED,
    AMOUNT_DIFFERS,
    CONVERTED,
    CORRECTED,
    ReconciliationBreak,
)
from pipeline.domain.clearing import ClearedRow
from pipeline.domain.matching import BookedSide, ReportedSide, differences
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.reconciliation_decisions import CLEARING, clearing_body
from pipeline.errors import UserError
from pipeline.ledger.decisions import decide
from pipeline.ledger.reconciliation.breaks import keep
from pipeline.ledger.reconciliation.findings import of_pair
from pipeline.ledger.reconciliation.matching import Matched, settlement_at
from pipeline.ledger.reconciliation.tables import cleared_rows, clearing_rows


def clear_by_hand(
    connection: Connection,
    found: ReconciliationBreak,
    resolution: str,
    *,
    actor: str,
    reason: str,
    now_ms: int,
) -> None:
    """Decide what a resolution of an ``amount_differs`` clears, or of a ``currency_differs`` that
    is ``converted``; nothing for any other.

    ``accepted``: the gateway's amount holds, and the difference is nobody's (`rounding`).
    ``corrected``: the books have been set right beside it, so the settlement's own amount holds.
    Nothing either where the row or the settlement is cleared by now. The fee is booked as it was
    taken, and told where it is another than the terms make.
    """
    if resolution == CONVERTED:
        _convert(connection, found, actor=actor, reason=reason, now_ms=now_ms)
        return
    if found.kind != AMOUNT_DIFFERS or resolution not in (ACCEPTED, CORRECTED):
        return
    booked = settlement_at(connection, found.settlement_place)
    if booked is None or _is_cleared(connection, found, booked):
        return
    row = _row(connection, found)
    settled = replace(row, amount_minor=booked.amount_minor)
    cleared = ClearedRow(
        found.file_id,
        found.row_number,
        booked.settlement_id,
        (row if resolution == ACCEPTED else settled).amount_minor,
        row.fee_minor,
        row.report_date,
    )
    decide(
        connection, kind=CLEARING, body=clearing_body(found.gateway, [cleared]), actor=actor,
        reason=reason, now_ms=now_ms,
    )  # fmt: skip
    fees = of_pair(Matched(booked, row, differences(booked, settled)))
    keep(connection, fees, now_ms, judged=())


def _convert(
    connection: Connection, found: ReconciliationBreak, *, actor: str, reason: str, now_ms: int
) -> None:
    """The row holds as it is, amount and fee. What the terms made of the fee is in the settlement's
    currency, so the two are not compared. UserError where there is nothing that can be converted:
    the person would be told that it was."""
    booked = settlement_at(connection, found.settlement_place)
    if booked is None or _is_cleared(connection, found, booked):
        raise UserError(
            f"what break {found.break_id} is about is cleared by now, or not booked here: see "
            "`paystream reconcile run`."
        )
    row = _row(connection, found)
    if row.currency not in MINOR_UNITS or row.amount_minor * booked.amount_minor <= 0:
        raise UserError(f"{found.detail}: one cannot have become the other. Ask the gateway.")
    cleared = ClearedRow(
        found.file_id,
        found.row_number,
        booked.settlement_id,
        row.amount_minor,
        row.fee_minor,
        row.report_date,
    )
    decide(
        connection, kind=CLEARING, body=clearing_body(found.gateway, [cleared], row.currency),
        actor=actor, reason=reason, now_ms=now_ms,
    )  # fmt: skip


def _row(connection: Connection, found: ReconciliationBreak) -> ReportedSide:
    c = clearing_rows.c
    row = connection.execute(
        select(*(c[name] for name in ReportedSide.__struct_fields__ if name != "place")).where(
            c.gateway == found.gateway,
            c.file_id == found.file_id,
            c.row_number == found.row_number,
        )
    ).one()
    return ReportedSide(**{**row._mapping, "place": found.clearing_place})


def _is_cleared(connection: Connection, found: ReconciliationBreak, booked: BookedSide) -> bool:
    c = cleared_rows.c
    this_row = (
        (c.gateway == found.gateway)
        & (c.file_id == found.file_id)
        & (c.row_number == found.row_number)
    )
    known = select(c.sequence).where(or_(c.settlement_id == booked.settlement_id, this_row))
    return connection.execute(known.limit(1)).first() is not None
