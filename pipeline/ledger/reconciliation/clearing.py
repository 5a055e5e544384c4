"""One look at everything that is not cleared: what matches is decided, the rest becomes breaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from tempfile import TemporaryFile
from typing import Self

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.domain.breaks import (
    AMOUNT_DIFFERS,
    BANK_LINE_UNKNOWN,
    BATCH_DIFFERS,
    BATCH_UNPAID,
    CURRENCY_DIFFERS,
    DUPLICATE,
    FEE_DIFFERS,
    MISSING_AT_GATEWAY,
    MISSING_HERE,
    PAYOUT_UNCONFIRMED,
    ReconciliationBreak,
)
from pipeline.domain.clearing import ClearedRow
from pipeline.domain.matching import ReportedSide
from pipeline.domain.reconciliation_decisions import ROWS_MAX
from pipeline.domain.reconciliation_rules import ReconciliationRules
from pipeline.errors import UserError, why_unread
from pipeline.ledger.database import reading
from pipeline.ledger.reconciliation.breaks import Changes, keep
from pipeline.ledger.reconciliation.findings import (
    Clocks,
    left_row,
    missing_at_gateway,
    of_batches,
    of_pair,
)
from pipeline.ledger.reconciliation.following import decide_clearing
from pipeline.ledger.reconciliation.lines_unknown import unknown_lines
from pipeline.ledger.reconciliation.matching import (
    Matched,
    OnlyHere,
    Result,
    for_sorting,
    matched,
)
from pipeline.ledger.reconciliation.payouts_unconfirmed import unconfirmed_payouts
from pipeline.ledger.reconciliation.tables import cleared_rows, clearing_rows

# The kinds that a look judges anew each time. FEE_DIFFERS is not one: a row that was booked with
# another fee says so once, and nothing that comes later unsays it.
JUDGED = frozenset(
    {
        MISSING_AT_GATEWAY, MISSING_HERE, AMOUNT_DIFFERS, CURRENCY_DIFFERS, DUPLICATE,
        BATCH_DIFFERS, BATCH_UNPAID, BANK_LINE_UNKNOWN, PAYOUT_UNCONFIRMED,
    }
)  # fmt: skip


@dataclass
class Look:
    """What a look has found. ``fees``: of the cleared, those with another fee than was accrued.
    ``untold``: rows of ours that no settlement has come for, and whose payment was not told of
    them. ``clocks``: by what day it looked."""

    clocks: Clocks
    cleared: int = 0
    fees: int = 0
    waiting: int = 0
    breaks: list[ReconciliationBreak] = field(default_factory=list)
    untold: list[ReportedSide] = field(default_factory=list)


class _Decided(Struct, array_like=True, gc=False):
    """What one decision will hold, and what is told with it."""

    gateway: str
    rows: list[ClearedRow]
    fees: list[ReconciliationBreak]


class Clearer:
    """Collects what matches, for each gateway apart, and decides it once the look is over: as
    long as it reads, SQLite cannot fold into its file what is decided meanwhile, and its log would
    grow with every row. Until then it lies in a temporary file.
    """

    def __init__(self, engine: Engine, now_ms: int, *, dry_run: bool = False) -> None:
        self._engine = engine
        self._now_ms = now_ms
        self._dry_run = dry_run
        self._open: dict[str, _Decided] = {}
        self._sizes: list[int] = []

    def __enter__(self) -> Self:
        with _kept_in_a_file():
            self._kept = TemporaryFile()
        return self

    def __exit__(self, *_error: object) -> None:
        # What could not be written is tried once more, for nothing.
        with suppress(OSError):
            self._kept.close()

    def add(self, found: Matched) -> None:
        row = found.row
        made = self._open.get(row.gateway)
        if made is None:
            made = self._open[row.gateway] = _Decided(row.gateway, [], [])
        made.rows.append(
            ClearedRow(
                row.file_id,
                row.row_number,
                found.booked.settlement_id,
                row.amount_minor,
                row.fee_minor,
                row.report_date,
            )
        )
        if FEE_DIFFERS in found.differs:
            made.fees += of_pair(found)
        if len(made.rows) == ROWS_MAX:
            self._keep(self._open.pop(row.gateway))

    def _keep(self, made: _Decided) -> None:
        if not self._dry_run:
            with _kept_in_a_file():
                self._sizes.append(self._kept.write(msgspec.msgpack.encode(made)))

    def decide(self) -> None:
        """Decide all of it. UserError when another run was faster."""
        for made in self._open.values():
            self._keep(made)
        with _kept_in_a_file():
            # All of it, before any of it is decided.
            self._kept.seek(0)
        for size in self._sizes:
            with _kept_in_a_file():
                some = self._kept.read(size)
            self._decide(msgspec.msgpack.decode(some, type=_Decided))

    def _decide(self, made: _Decided) -> None:
        def also(connection: Connection) -> None:
            # With the decision: once it is made, no look finds the difference again.
            if made.fees:
                keep(connection, made.fees, self._now_ms, judged=())

        try:
            decide_clearing(self._engine, made.gateway, made.rows, self._now_ms, also)
        except IntegrityError as error:
            raise UserError(
                "another run clears the same rows at this moment; run it again."
            ) from error


@contextmanager
def _kept_in_a_file() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"what matches cannot be kept in a temporary file: {why_unread(error)}; set TMPDIR to "
            "a directory that can be written to and has room, and run it again."
        ) from error


def look(
    engine: Engine,
    topics: tuple[str, str],
    rules: ReconciliationRules,
    clocks: Clocks,
    now_ms: int,
    *,
    dry_run: bool = False,
) -> Look:
    """Match all that is not cleared and decide what it clears; what is left is in the result.

    The decisions have still to be published and booked. With ``dry_run`` nothing is decided.
    """
    done = Look(clocks)
    with Clearer(engine, now_ms, dry_run=dry_run) as clearer:
        with reading(engine) as connection, for_sorting(connection):
            for found in matched(connection, topics, cache(lambda name: rules.of(name).tolerance)):
                _sort(found, done, clearer, clocks)
            # Of the same moment.
            done.breaks += of_batches(connection, clocks)
            done.breaks += unknown_lines(connection)
            done.breaks += unconfirmed_payouts(connection, clocks)
        clearer.decide()
    return done


def _sort(found: Result, done: Look, clearer: Clearer, clocks: Clocks) -> None:
    if isinstance(found, Matched):
        if not found.differs or found.clears:
            done.cleared += 1
            done.fees += FEE_DIFFERS in found.differs
            clearer.add(found)
        else:
            done.breaks += of_pair(found)
        return
    if isinstance(found, OnlyHere):
        broken = missing_at_gateway(found, clocks)
    else:
        broken = left_row(found, clocks)
        if not found.cleared_by and not found.row.told and found.row.payment_id:
            done.untold.append(found.row)
    if broken is None:
        done.waiting += 1
    else:
        done.breaks.append(broken)


def keep_breaks(engine: Engine, done: Look, now_ms: int) -> Changes:
    """Bring the kept breaks in line with a look."""
    with engine.begin() as connection:
        return keep(connection, done.breaks, now_ms, judged=JUDGED, due=done.clocks.is_due)


def mark_told(engine: Engine, rows: list[ReportedSide]) -> None:
    """Their payments were told; they are not told by these rows again."""
    c = clearing_rows.c
    with engine.begin() as connection:
        for row in rows:
            connection.execute(
                update(clearing_rows)
                .where(
                    c.gateway == row.gateway,
                    c.file_id == row.file_id,
                    c.row_number == row.row_number,
                )
                .values(told=1)
            )


def counts(connection: Connection) -> tuple[int, int]:
    """Rows taken in, and rows that have cleared something."""
    taken = connection.execute(select(func.count()).select_from(clearing_rows)).scalar_one()
    cleared = connection.execute(select(func.count()).select_from(cleared_rows)).scalar_one()
    return taken, cleared
