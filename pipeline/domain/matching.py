"""Which report row tells of which settlement, and in what they differ.

Both sides come in groups of one (gateway, gateway's own reference, kind). Within a group a row that
carries our reference belongs to the settlement of that operation and to no other; rows without one
(disputes) are paired with what those leave, as they happened. Amounts, orders and dates never
decide what belongs together: amounts only say which of several rows about one settlement it is that
agrees with it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Final

from msgspec import Struct

from pipeline.domain.breaks import AMOUNT_DIFFERS, CURRENCY_DIFFERS, FEE_DIFFERS
from pipeline.domain.ids import reversal_operation_id


class BookedSide(Struct, frozen=True, gc=False):
    """A settlement as the ledger has it. ``priced``: a cost was worked out, if only of nothing."""

    settlement_id: str
    gateway: str
    gateway_reference: str
    kind: str
    payment_id: str
    operation_id: str
    merchant_id: str
    order_id: str
    currency: str
    amount_minor: int
    cost_minor: int
    priced: bool
    settled_at_ms: int
    place: str
    # Of a charge nobody asked for, whose row names no operation of ours, or another payment.
    unasked: bool = False


class ReportedSide(Struct, frozen=True, gc=False):
    """A report's row as it is stored."""

    gateway: str
    gateway_reference: str
    kind: str
    payment_id: str
    operation_id: str
    attempt: int
    file_id: str
    row_number: int
    report_date: str
    merchant_id: str
    order_id: str
    currency: str
    amount_minor: int
    fee_minor: int
    batch_id: str
    operation_kind: str
    told: int
    place: str


class Tolerance(Struct, frozen=True):
    """By how many minor units a row may differ before it is a break."""

    amount_minor: int = 0
    fee_minor: int = 0


NO_TOLERANCE: Final = Tolerance()
_Fits = Callable[[BookedSide, ReportedSide], bool]


class Paired(Struct, frozen=True):
    """A group taken apart. ``repeated``: rows about a settlement that another row, which does not
    agree with it, is paired with; neither do they."""

    pairs: tuple[tuple[BookedSide, ReportedSide], ...]
    booked: tuple[BookedSide, ...]
    reported: tuple[ReportedSide, ...]
    repeated: tuple[tuple[BookedSide, ReportedSide], ...] = ()


def pair(
    booked: Sequence[BookedSide],
    reported: Sequence[ReportedSide],
    tolerance: Tolerance = NO_TOLERANCE,
) -> Paired:
    """Put together what belongs together of one group; each side is used once. What agrees comes
    first, so that a corrected row clears what an earlier, wrong one could not; and of that what
    names its settlement, wherever it stands in a report."""
    if len(booked) == 1 and len(reported) == 1 and is_same(booked[0], reported[0]):
        return Paired(((booked[0], reported[0]),), (), ())

    def agrees(settled: BookedSide, row: ReportedSide) -> bool:
        return is_cleared(differences(settled, row, tolerance))

    left = sorted(booked, key=lambda each: (each.settled_at_ms, each.settlement_id))
    rows = sorted(reported, key=lambda r: (r.report_date, r.file_id, r.row_number))
    agreed, rows = _take_named(left, rows, agrees)
    named = [row for row in rows if row.operation_id]
    # What no row names that has found nothing yet.
    free = {b.settlement_id for b in left if not any(is_same(b, row) for row in named)}
    unnamed, rows = _take_unnamed(left, rows, free, agrees)
    agreed += unnamed
    differing, rows = _take_named(left, rows, lambda _b, _r: True)
    unnamed, rows = _take_unnamed(left, rows, free, lambda _b, _r: True)
    differing += unnamed
    rest: list[ReportedSide] = []
    repeated: list[tuple[BookedSide, ReportedSide]] = []
    for row in rows:
        # About what is cleared now it is a duplicate, whatever else it could be about.
        cleared = any(is_same(each, row) for each, _ in agreed)
        other = next((each for each, _ in differing if not cleared and is_same(each, row)), None)
        if other is None:
            rest.append(row)
        else:
            repeated.append((other, row))
    return Paired((*agreed, *differing), tuple(left), tuple(rest), tuple(repeated))


def _take_named(
    left: list[BookedSide],
    rows: Sequence[ReportedSide],
    fits: _Fits,
) -> tuple[list[tuple[BookedSide, ReportedSide]], list[ReportedSide]]:
    """Like ``_take``, of rows that name their settlement by our reference, and so no other."""
    named = [row for row in rows if row.operation_id]
    pairs, _ = _take(left, named, lambda b, r: not b.unasked and fits(b, r))
    taken = {(row.file_id, row.row_number) for _, row in pairs}
    return pairs, [row for row in rows if (row.file_id, row.row_number) not in taken]


def _take_unnamed(
    left: list[BookedSide],
    rows: Sequence[ReportedSide],
    free: Container[str],
    fits: _Fits,
) -> tuple[list[tuple[BookedSide, ReportedSide]], list[ReportedSide]]:
    """Like ``_take``, of rows that name no settlement: each leaves what others name, if it can be
    about anything else, and what only a row of that payment can be about. A charge nobody asked for
    is the earliest's that is about nothing else, whatever it names."""
    turns: tuple[_Fits, ...] = (
        lambda b, r: bool(r.payment_id) and not b.unasked and b.settlement_id in free,
        lambda b, _r: not b.unasked and b.settlement_id in free,
        lambda b, _r: b.unasked,
        lambda _b, r: bool(r.payment_id),
        lambda _b, _r: True,
    )

    def in_turn(turn: _Fits) -> _Fits:
        return lambda b, r: turn(b, r) and fits(b, r)

    pairs: list[tuple[BookedSide, ReportedSide]] = []
    left_over = list(rows)
    for turn in turns:
        found, left_over = _take(left, left_over, in_turn(turn))
        pairs += found
    return pairs, left_over


def _take(
    left: list[BookedSide],
    rows: Sequence[ReportedSide],
    fits: _Fits,
) -> tuple[list[tuple[BookedSide, ReportedSide]], list[ReportedSide]]:
    """Pairs of what is the same movement and fits, and the rows without one; what is paired is
    taken out of ``left``."""
    pairs: list[tuple[BookedSide, ReportedSide]] = []
    rest: list[ReportedSide] = []
    for row in rows:
        fitting = [each for each in left if is_same(each, row) and fits(each, row)]
        if not fitting:
            rest.append(row)
            continue
        # An attempt's own settlement is no other attempt's, which may be about the operation's.
        found = next((each for each in fitting if _is_late(each, row)), fitting[0])
        left.remove(found)
        pairs.append((found, row))
    return pairs, rest


def differences(
    booked: BookedSide, row: ReportedSide, tolerance: Tolerance = NO_TOLERANCE
) -> tuple[str, ...]:
    """In what a row and its settlement differ, as names of breaks."""
    if row.currency != booked.currency:
        return (CURRENCY_DIFFERS,)
    if abs(row.amount_minor - booked.amount_minor) > tolerance.amount_minor:
        return (AMOUNT_DIFFERS,)
    if booked.priced and abs(row.fee_minor - booked.cost_minor) > tolerance.fee_minor:
        return (FEE_DIFFERS,)
    return ()


def is_cleared(found: Sequence[str]) -> bool:
    """Whether a row with these differences is booked: what the gateway took as its fee it has
    taken, but another amount or currency is another movement until a person says what it is."""
    return AMOUNT_DIFFERS not in found and CURRENCY_DIFFERS not in found


def is_same(booked: BookedSide, row: ReportedSide) -> bool:
    """Whether a row of one group can be about this settlement of it."""
    if booked.unasked:
        # It was found by the gateway's own reference, which is all that is known of it.
        return True
    if row.payment_id and row.payment_id != booked.payment_id:
        return False
    return not row.operation_id or booked.operation_id == row.operation_id or _is_late(booked, row)


def _is_late(booked: BookedSide, row: ReportedSide) -> bool:
    """Whether it is what this attempt did too late, which was settled under an operation of its
    own, of today or of before."""
    return bool(row.operation_id) and booked.operation_id in (
        reversal_operation_id(booked.order_id, row.operation_id, row.attempt),
        f"late-{row.operation_id}-{row.attempt}",
    )
