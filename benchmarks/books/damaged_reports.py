"""Reports and statements that say something else than happened, and what is made of them.

The damage is done where the gateway or the bank would do it: their files are whole and add up, but
say another thing. Rows are of the first days' reports, lines of the last days' batches, so that
each sum that differs has one cause. Some files are spoilt on the way instead; those are refused.
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import msgspec
from sqlalchemy import text

from benchmarks.books.agreement import (
    ACCOUNT,
    ACTOR,
    breaks_of,
    due_day,
    ledger_events_of,
    reader_of,
    reconciler_of,
    value_dates,
)
from benchmarks.books.carried import GATEWAY, Carried, Say
from benchmarks.books.damaged_payouts import SpoiltPayouts
from benchmarks.books.findings import IMPORT, RECONCILE, Damage, Found, compare
from benchmarks.books.paid_out import book_bank, make_payouts
from benchmarks.books.unreported import unreported_books
from benchmarks.failure import WrongRun
from consumers.reconciliation import Reconciler
from pipeline.domain.clearing import clearing_key
from pipeline.domain.ids import settlement_id
from pipeline.errors import UserError
from pipeline.gateways.notice import our_reference
from pipeline.gateways.reports import ReportFile, read_report
from pipeline.gateways.simulator.bank import Payout, statement
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.gateways.simulator.report_formats import plain_report
from pipeline.gateways.simulator.reports import Report, ReportRow, batch_sums, value_date
from pipeline.gateways.simulator.reports import read_report as report_of
from pipeline.interrupted_queries import InterruptibleConnection
from pipeline.ledger.database import reading

PAYER = GATEWAY.upper()
# One that no order has.
STRANGE_CURRENCY = "CHF"
_CAPTURES = "SELECT settlement_id FROM journal_entries WHERE kind = 'capture'"
_DISPUTES = "SELECT gateway_reference, settlement_id FROM journal_entries WHERE kind = 'dispute'"


@dataclass(eq=False)
class _Line:
    """A row that may be changed; it stays the same line when others before it go."""

    row: ReportRow
    day: _Day
    # Of the dispute that a row is of.
    dispute: str = ""

    def change(self, **fields: object) -> None:
        self.row = replace(self.row, **fields)  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """What the row is called, as it stands now."""
        number = self.day.lines.index(self) + 1
        return clearing_key(GATEWAY, f"{GATEWAY}-{self.day.report_date}", number)

    @property
    def batch(self) -> Found:
        return "batch_differs", f"{self.row.batch_id}:{self.row.currency}"

    @property
    def settled(self) -> str:
        if self.dispute:
            return self.dispute
        found = our_reference(self.row.reference)
        if found is None:
            raise WrongRun(f"{self.row.reference} is no reference of ours.")
        return settlement_id(found.payment_id, found.operation_id, "capture")


@dataclass(eq=False)
class _Day:
    """A report that is being damaged."""

    report_date: str
    lines: list[_Line] = field(default_factory=list)

    def report(self) -> Report:
        rows = (replace(line.row, number=n) for n, line in enumerate(self.lines, 1))
        return Report(self.report_date, tuple(rows))

    def text(self) -> str:
        return plain_report(self.report(), "UTC")


# What was done to a row, and what has to be found. Keys are asked for once all is done, since rows
# that go move those behind them.
Told = Callable[[], tuple[Found, ...]]


def _dropped(line: _Line, _other: _Line) -> Told:
    line.day.lines.remove(line)
    return lambda: (("missing_at_gateway", line.settled), line.batch)


def _doubled(line: _Line, _other: _Line) -> Told:
    again = _Line(line.row, line.day)
    line.day.lines.append(again)
    return lambda: (("duplicate", again.key), line.batch)


def _amount(line: _Line, _other: _Line) -> Told:
    line.change(gross_minor=line.row.gross_minor + 1)
    return lambda: (("amount_differs", line.key), line.batch)


def _fee(line: _Line, _other: _Line) -> Told:
    line.change(fee_minor=line.row.fee_minor + 1)
    return lambda: (("fee_differs", line.key), line.batch)


def _currency(line: _Line, _other: _Line) -> Told:
    batch = line.batch
    line.change(currency=STRANGE_CURRENCY)
    unpaid = "batch_unpaid", line.batch[1]
    return lambda: (("currency_differs", line.key), batch, unpaid)


def _swapped(line: _Line, other: _Line) -> Told:
    one, two = line.row, other.row
    line.change(id=two.id, charge_id=two.charge_id)
    other.change(id=one.id, charge_id=one.charge_id)
    return lambda: (
        *(("missing_at_gateway", each.settled) for each in (line, other)),
        *(("missing_here", each.key) for each in (line, other)),
    )


def _strange(line: _Line, _other: _Line) -> Told:
    strange = _Line(line.row, line.day)
    strange.change(id=f"strange-{line.row.id}", charge_id="", reference="")
    line.day.lines.append(strange)
    return lambda: (("missing_here", strange.key), line.batch)


ROW_KINDS: dict[str, Callable[[_Line, _Line], Told]] = {
    "a row of a report is left out": _dropped,
    "a row stands twice": _doubled,
    "a row has one minor unit more": _amount,
    "a row has another fee": _fee,
    "a row has another currency": _currency,
    "two rows have each other's reference": _swapped,
    "a row of a charge that nobody asked for": _strange,
}


DISPUTE_ROW_KINDS: dict[str, Callable[[_Line, _Line], Told]] = {
    "a row of a dispute is left out": _dropped,
    "a row of a dispute stands twice": _doubled,
    "a row of a dispute has one minor unit more": _amount,
}


def _less(payout: Payout) -> tuple[list[Payout], tuple[Found, ...]]:
    changed = msgspec.structs.replace(payout, amount_minor=payout.amount_minor - 1)
    return [changed], (("batch_differs", _batch(payout)),)


def _gone(payout: Payout) -> tuple[list[Payout], tuple[Found, ...]]:
    return [], (("batch_unpaid", _batch(payout)),)


def _of_another(payout: Payout) -> tuple[list[Payout], tuple[Found, ...]]:
    other = msgspec.structs.replace(payout, batch_id=f"x{payout.batch_id}")
    return [other], (("batch_unpaid", _batch(payout)), ("batch_differs", _batch(other)))


def _twice(payout: Payout) -> tuple[list[Payout], tuple[Found, ...]]:
    return [payout, payout], (("batch_differs", _batch(payout)),)


def _batch(payout: Payout) -> str:
    return f"{payout.batch_id}:{payout.currency}"


LINE_KINDS: dict[str, Callable[[Payout], tuple[list[Payout], tuple[Found, ...]]]] = {
    "the bank has a minor unit less": _less,
    "the bank has no line of a batch": _gone,
    "the bank's line names another batch": _of_another,
    "the bank has a line twice": _twice,
}


def damaged_reports(on: Carried, draw: random.Random, each: int, say: Say) -> list[Damage]:
    """Reconcile books of before any report with damaged files. WrongRun unless all of it is found
    and nothing else."""
    say("Making the books anew from the settlements, as they stood before any report")
    with unreported_books(on) as (engine, catalogue):
        with reading(engine) as connection:
            known = set(connection.execute(text(_CAPTURES)).scalars())
            told = connection.execute(text(_DISPUTES)).all()
            disputes = {row.gateway_reference: row.settlement_id for row in told}
        days = _days(on)
        half = len(days) // 2
        payouts = [
            Payout(batch, currency, minor, value_date(day.report_date, 1))
            for day in days
            for (batch, currency), minor in batch_sums(day.report()).items()
        ]
        whole = {batch for day in days[half:] for batch, _ in batch_sums(day.report())}
        damages = _damage_lines(payouts, whole, draw, each)
        for line in (line for day in days for line in day.lines if line.row.kind == "dispute"):
            line.dispute = disputes[line.row.id]
        damages += _damage_rows(days[:half], payouts, known, draw, each)
        say(f"Reconciling with {len(damages)} damages in reports and statements")
        reconciler = reconciler_of(on, catalogue, engine)
        damages += _spoilt(reconciler, days[half], payouts, on)
        for day in days:
            reconciler.import_report(_read(day.text()))
        damages.append(_contradicted(reconciler, days[half]))
        for value_day in value_dates(on):
            for found in reader_of(on)(statement(ACCOUNT, PAYER, value_day, payouts, 0)):
                reconciler.import_statement(found, ACTOR)
        reconciler.run(as_of=due_day(on), controlled=False)
        made = make_payouts(engine, ledger_events_of(on, catalogue), ACCOUNT)
        spoilt = SpoiltPayouts(ACCOUNT, draw, each)
        book_bank(reconciler, ACCOUNT, reader_of(on), made, spoilt)
        damages += spoilt.damages
        reconciler.run(as_of=due_day(on), controlled=False)
        compare(RECONCILE, damages, ((b.kind, b.subject) for b in breaks_of(engine)))
        return damages


def _damage_rows(
    days: Sequence[_Day], paid: Sequence[Payout], known: set[str], draw: random.Random, each: int
) -> list[Damage]:
    pool = [
        line
        for day in days
        for line in day.lines
        # What succeeded too late is settled under another operation than it was asked for by.
        if line.row.kind == "charge" and line.settled in known
    ]
    disputes = [line for day in days for line in day.lines if line.dispute]
    told: list[tuple[str, str, Told]] = []
    for kinds, of in ((ROW_KINDS, pool), (DISPUTE_ROW_KINDS, disputes)):
        drawn = iter(draw.sample(of, 2 * each * len(kinds)))
        for kind, spoil in kinds.items():
            for line, other in zip(*[islice(drawn, 2 * each)] * 2, strict=True):
                place = f"row {line.key} of {line.row.merchant_id}:{line.row.order_id}"
                told.append((kind, place, spoil(line, other)))
    # Two damages of one batch may cancel each other: then its sum is what the bank paid.
    sums = Counter({key: minor for day in days for key, minor in batch_sums(day.report()).items()})
    even = {("batch_differs", _batch(each)) for each in paid
            if sums[each.batch_id, each.currency] == each.amount_minor}  # fmt: skip
    return [
        Damage(kind, place, {RECONCILE: tuple(each for each in finds() if each not in even)})
        for kind, place, finds in told
    ]


def _damage_lines(
    payouts: list[Payout], whole: set[str], draw: random.Random, each: int
) -> list[Damage]:
    """Changes ``payouts``; only those of ``whole``, the batches whose rows are not damaged."""
    pool = [payout for payout in payouts if payout.batch_id in whole and payout.amount_minor]
    kinds = list(LINE_KINDS.items())
    # There are few batches, three a day.
    each = min(each, len(pool) // len(kinds))
    drawn = iter(draw.sample(pool, each * len(kinds)))
    damages = []
    for kind, spoil in kinds:
        for payout in islice(drawn, each):
            at = payouts.index(payout)
            payouts[at : at + 1], found = spoil(payout)
            place = f"batch {_batch(payout)} of {payout.value_date}"
            damages.append(Damage(kind, place, {RECONCILE: found}))
    return damages


def _spoilt(
    reconciler: Reconciler, day: _Day, payouts: Sequence[Payout], on: Carried
) -> list[Damage]:
    """Files that were damaged on their way: each is refused as a whole, with what is wrong."""
    lines = day.text().splitlines(keepends=True)
    cells = lines[2].split(",")
    cells[8] = str(int(cells[8]) + 1)
    paid = statement(ACCOUNT, PAYER, payouts[-1].value_date, payouts, 0)
    # The first booked line's amount; the balances stand before it.
    head, entry, rest = paid.partition(b"<Ntry>")
    tampered = head + entry + re.sub(rb'(Ccy="...">)', rb"\g<1>9", rest, count=1)
    name = f"report {GATEWAY}-{day.report_date}"
    return [
        _refused("a report lost a line on its way", f"{name} row 2",
                 "row 3 stands where row 2 belongs",
                 lambda: reconciler.import_report(_read("".join(lines[:2] + lines[3:])))),
        _refused("an amount of a report was changed on its way", f"{name} row 2",
                 "row 2: gross less fee is not its net",
                 lambda: reconciler.import_report(
                     _read("".join([*lines[:2], ",".join(cells), *lines[3:]])))),
        _refused("a line of a statement was changed on its way",
                 f"statement of {payouts[-1].value_date}",
                 "do not lead from its opening to its closing balance",
                 lambda: reader_of(on)(tampered)),
    ]  # fmt: skip


def _contradicted(reconciler: Reconciler, day: _Day) -> Damage:
    line = day.lines[0]
    before = line.row
    line.change(fee_minor=before.fee_minor + 1)
    text_ = day.text()
    line.row = before
    return _refused(
        "a report comes again with another row", f"row {line.key}",
        f"row {line.key} came before with another fee_minor",
        lambda: reconciler.import_report(_read(text_)),
    )  # fmt: skip


def _refused(kind: str, place: str, said: str, act: Callable[[], object]) -> Damage:
    """WrongRun unless it is refused in these words."""
    try:
        act()
    except UserError as error:
        if said in str(error):
            return Damage(kind, place, {IMPORT: ((f"refused: {said}", place),)})
        raise WrongRun(f"{kind}: refused for another reason: {error}") from error
    raise WrongRun(f"{kind}, and nobody has noticed.")


def _read(text_: str) -> ReportFile:
    return read_report(text_, gateway=GATEWAY, adapter="simulator")


def _days(on: Carried) -> list[_Day]:
    """The reports as the gateway's own books make them."""
    code = PERSONALITIES[GATEWAY].batch_code
    days = []
    at = f"file:{on.flow.simulator.books}?mode=ro"
    with closing(sqlite3.connect(at, uri=True, factory=InterruptibleConnection)) as db:
        for report_date in on.days:
            report = report_of(db, code, report_date)
            if report is None:
                raise WrongRun(f"the gateway has no report of {report_date}.")
            day = _Day(report_date)
            day.lines = [_Line(row, day) for row in report.rows]
            days.append(day)
    return days
