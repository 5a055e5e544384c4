"""Decisions of reconciliation followed into its tables, and made: one transaction each.

What was decided elsewhere (a ledger that is restored or made anew) is followed like one's own. The
decisions are what counts: rows that the tables lack of them are put back before a run decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, select, text, union_all
from sqlalchemy.exc import IntegrityError

from pipeline.domain.breaks import REFUND_AFTER_REVIEW, figures
from pipeline.domain.clearing import NUMBERED, RELEASED_KINDS, BankLine, ClearedRow
from pipeline.domain.model import LedgerEvent
from pipeline.domain.posting import NO_GATEWAY
from pipeline.domain.reconciliation_decisions import (
    BANK_STATEMENT,
    BREAK_RESOLUTION,
    CLEARING,
    KINDS,
    POSTING_KINDS,
    RELEASE,
    ROWS_MAX,
    BankStatement,
    check_fits,
    check_resolution,
    clearing_body,
    clearing_of,
    release_body,
    release_of,
    resolution_body,
    statement_body,
    statement_of,
    statement_parts,
)
from pipeline.errors import UserError
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import decide, decisions_at, event_of, lock_decisions
from pipeline.ledger.reconciliation.breaks import find_break, may_be_resolved, resolve_by_hand
from pipeline.ledger.reconciliation.by_hand import clear_by_hand
from pipeline.ledger.reconciliation.payouts_by_bank import with_payouts
from pipeline.ledger.reconciliation.refunds import FlowSeen, refund_of, require_takeable
from pipeline.ledger.reconciliation.tables import (
    bank_lines,
    cleared_rows,
    followed_decisions,
    insert_cleared,
)
from pipeline.ledger.tables import ledger_decisions

_log = logging.getLogger(__name__)

AUTOMATIC = "reconcile"
# Bodies that are in memory together while the rows of all decisions are counted.
_COUNTED_TOGETHER: Final = 10
_UNRELEASED: Final = text(
    "SELECT e.entry_id FROM journal_entries e WHERE e.kind IN :kinds AND NOT EXISTS ("
    "SELECT 1 FROM cleared_rows c WHERE c.settlement_id = e.entry_id) "
    "ORDER BY e.entry_number LIMIT :limit"
).bindparams(bindparam("kinds", sorted(RELEASED_KINDS), expanding=True))


def catch_up(engine: Engine) -> None:
    """Take over what was decided, and put back what somebody took out of the tables since: what a
    decision has cleared would be decided a second time."""
    with engine.begin() as connection:
        follow(connection)
    with reading(engine) as connection:
        lacking = _lacking(connection)
    if not lacking:
        return
    with engine.begin() as connection:
        lock_decisions(connection)
        back = sum(_put_back(connection, sequence) for sequence in lacking)
    if back:
        _log.warning(
            "%d rows of decisions that were made were not in the tables of reconciliation and "
            "are put back", back,
        )  # fmt: skip


def _lacking(connection: Connection) -> list[int]:
    """Decisions that were followed, of which fewer rows or lines are kept than they have."""
    followed = select(func.coalesce(func.max(followed_decisions.c.sequence), 0)).scalar_subquery()
    kept = union_all(
        *(
            select(table.c.sequence, func.count()).group_by(table.c.sequence)
            for table in (cleared_rows, bank_lines)
        )
    )
    counted = {sequence: int(count) for sequence, count in connection.execute(kept)}
    c = ledger_decisions.c
    rows = connection.execution_options(yield_per=_COUNTED_TOGETHER).execute(
        select(ledger_decisions)
        .where(c.kind.in_(POSTING_KINDS), c.sequence <= followed)
        .order_by(c.sequence)
    )
    return [row.sequence for row in rows if counted.get(row.sequence, 0) < _rows_in(row.body)]


class _Held(Struct):
    """What bodies of ``POSTING_KINDS`` hold, one of these each; counted and not read."""

    rows: list[msgspec.Raw] = []
    entries: list[msgspec.Raw] = []
    lines: list[msgspec.Raw] = []


def _rows_in(body: str) -> int:
    try:
        held = msgspec.json.decode(body, type=_Held)
    except msgspec.DecodeError:
        # Not as it was decided: `paystream ledger verify` tells.
        return 0
    return len(held.rows) + len(held.entries) + len(held.lines)


def _put_back(connection: Connection, sequence: int) -> int:
    (event,) = decisions_at(connection, [sequence])
    if event.kind in (CLEARING, RELEASE):
        try:
            with connection.begin_nested():
                return _insert_what_is_new(connection, _cleared_by(event))
        except IntegrityError:
            _log.error(
                "decision %d clears by another row what an earlier one has cleared: it was made "
                "while what is cleared was not in its table, and counts twice in the books",
                sequence,
            )
            return 0
    left = connection.execute(
        select(func.count()).select_from(bank_lines).where(bank_lines.c.sequence == sequence)
    ).scalar_one()
    _apply(connection, event, just_made=False)
    return _rows_in(event.body) - int(left)


def follow(connection: Connection, *, just_made: bool = False) -> int:
    """Take over what was decided since the last time; how many decisions.

    A row that an earlier decision has cleared just so is passed over. IntegrityError where two
    contradict each other; also for the same row twice where the decisions were ``just_made`` in
    this transaction: another run was faster, and they are not to be made.
    """
    lock_decisions(connection)
    c = ledger_decisions.c
    last = connection.execute(
        select(func.coalesce(func.max(followed_decisions.c.sequence), 0))
    ).scalar_one()
    newest = connection.execute(select(func.coalesce(func.max(c.sequence), 0))).scalar_one()
    if newest == last:
        return 0
    rows = connection.execute(
        select(ledger_decisions).where(c.sequence > last, c.kind.in_(KINDS)).order_by(c.sequence)
    ).all()
    for row in rows:
        _apply(connection, event_of(row), just_made=just_made)
    connection.execute(delete(followed_decisions))
    connection.execute(insert(followed_decisions).values(sequence=newest))
    return len(rows)


def decide_clearing(
    engine: Engine,
    gateway: str,
    rows: Sequence[ClearedRow],
    now_ms: int,
    also: Callable[[Connection], None] = lambda _connection: None,
) -> LedgerEvent:
    """Decide that these rows clear these settlements. IntegrityError when one of them is cleared
    already: another run was faster. ``also`` is done in the same transaction."""
    with engine.begin() as connection:
        follow(connection)
        event = decide(
            connection, kind=CLEARING, body=clearing_body(gateway, rows), actor=AUTOMATIC,
            reason=f"rows of {gateway}", now_ms=now_ms,
        )  # fmt: skip
        follow(connection, just_made=True)
        also(connection)
    return event


def decide_releases(engine: Engine, now_ms: int) -> int:
    """Decide that what waits for no gateway's funds is available; how many entries that is. They
    count under the day it is decided, by UTC, whatever day is looked at."""
    day = datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
    released = 0
    while True:
        with engine.begin() as connection:
            follow(connection)
            waiting = connection.execute(_UNRELEASED, {"limit": ROWS_MAX}).scalars().all()
            if not waiting:
                return released
            decide(
                connection, kind=RELEASE, body=release_body(day, waiting), actor=AUTOMATIC,
                reason="no gateway reports it", now_ms=now_ms,
            )  # fmt: skip
            follow(connection, just_made=True)
        released += len(waiting)


def decide_statement(
    engine: Engine, statement: BankStatement, actor: str, now_ms: int
) -> list[LedgerEvent]:
    """Take over a bank statement, in as many decisions as it needs, all or none; none when it was
    before. UserError when it said something else then: a statement never changes."""
    # Which payouts have their lines is known from the tables.
    catch_up(engine)
    with engine.begin() as connection:
        follow(connection)
        left = _left_of(connection, statement)
        if left is None:
            return []
        events = [
            decide(
                connection, kind=BANK_STATEMENT, body=statement_body(part), actor=actor,
                reason=_reason(statement), now_ms=now_ms,
            )
            for part in statement_parts(with_payouts(connection, left, actor, now_ms))
        ]  # fmt: skip
        follow(connection, just_made=True)
    return events


def _left_of(connection: Connection, statement: BankStatement) -> BankStatement | None:
    """What is to be decided of it: all, nothing (None), or its rest.

    Its parts are decided together and published one by one. A ledger that follows the topic of
    another, which was lost in between, has the first of them.
    """
    # By what the books called the account then: a rule may have named it otherwise since.
    decided: dict[str, list[BankStatement]] = {}
    for part in _decided(connection, statement):
        decided.setdefault(part.account, []).append(part)
    said = _said(statement)
    before = {
        account: [line for each in parts for line in _said(each)]
        for account, parts in decided.items()
    }
    known = [
        account
        for account, parts in decided.items()
        if any(_one_account(each, statement) for each in parts)
    ]
    if any(before[account] == said for account in known):
        return None
    if not known:
        if statement.account in decided:
            raise UserError(
                f"{statement.account} was another account of the bank when its statement "
                f"{statement.file_id} was decided: give {statement.number} another name in the "
                "rules (`[bank_accounts]`)."
            )
        for account, parts in decided.items():
            # It may be this one: the bank's own number of its account was not kept then.
            if said and before[account] == said and not all(each.number for each in parts):
                raise UserError(
                    f"statement {statement.file_id} has the lines of one that is booked for "
                    f"account {account}: where it is that one, it is booked. Otherwise the bank "
                    "has to give it another id."
                )
        return statement
    account = known[0]
    begun, of = before[account], max(each.of for each in decided[account])
    if of == len(said) and begun == said[: len(begun)]:
        left = statement.lines[len(begun) :]
        return replace(statement, account=account, lines=left, first=len(begun) + 1, of=of)
    raise UserError(
        f"statement {statement.file_id} of {account} came before with other "
        "lines: a statement never changes. Ask the bank which is true."
    )


def named_too_late(connection: Connection, statement: BankStatement) -> int:
    """Lines of a statement that were nobody's when it was decided, and that the names of today
    give to a gateway: they stay as they were decided."""
    theirs = [line for line in statement.lines if line.gateway]
    if not theirs:
        return 0
    late = 0
    for each in _decided(connection, statement):
        if _one_account(each, statement):
            # The bank's number of an account is kept since lines have been told apart by their ids.
            known_by = _line_id if each.number else _line
            named = {known_by(line) for line in theirs}
            late += sum(
                known_by(line) in named and not line.gateway and not line.payout
                for line in each.lines
            )
    return late


def _decided(connection: Connection, statement: BankStatement) -> list[BankStatement]:
    """What was decided of statements with its id, of whatever account, in its order."""
    c = ledger_decisions.c
    rows = connection.execute(
        select(ledger_decisions)
        .where(c.kind == BANK_STATEMENT, c.reason == _reason(statement))
        .order_by(c.sequence)
    )
    return [statement_of(event_of(row)) for row in rows]


def _one_account(decided: BankStatement, statement: BankStatement) -> bool:
    """Whether they are of one account: by the bank's number, or where that was not kept by what the
    books call it, which is the number where no rule says anything else."""
    if decided.number:
        return decided.number == statement.number
    return decided.account in (statement.account, statement.number)


def _reason(statement: BankStatement) -> str:
    return f"statement {statement.file_id}"


def decide_resolution(
    engine: Engine,
    break_id: str,
    resolution: str,
    *,
    actor: str,
    reason: str,
    now_ms: int,
    flow: FlowSeen | None = None,
) -> LedgerEvent:
    """A person says what was made of an open break, as its figures are now: with others it opens
    again. What that clears is decided with it (``by_hand``), and what it has given back is in it:
    that needs to know how far the ``flow`` was, looked at before this.
    UserError when it is not there or not open, or is no charge that may be given back."""
    if not reason.strip():
        raise UserError("a break is resolved with a reason: say why.")
    # What is cleared already is known from the tables.
    catch_up(engine)
    with engine.begin() as connection:
        follow(connection)
        check_resolution(resolution)
        found = find_break(connection, break_id)
        if found is None or not may_be_resolved(found, resolution):
            raise UserError(f"there is no open break {break_id}; see `paystream reconcile breaks`.")
        check_fits(found.kind, resolution)
        looked_at = figures(found.at_risk_minor, found.detail)
        asked = refund_of(connection, found, flow) if resolution == REFUND_AFTER_REVIEW else None
        event = decide(
            connection, kind=BREAK_RESOLUTION,
            body=resolution_body(break_id, resolution, looked_at, asked), actor=actor,
            reason=reason, now_ms=now_ms,
        )  # fmt: skip
        require_takeable(event)
        if not resolve_by_hand(connection, event):
            raise UserError(
                f"break {break_id} has changed at this moment; see `paystream reconcile breaks`."
            )
        clear_by_hand(connection, found, resolution, actor=actor, reason=reason, now_ms=now_ms)
        follow(connection, just_made=True)
    return event


def _said(statement: BankStatement) -> list[tuple[str, int, str, str]]:
    # Whose batch a line is may be known better now than it was; what the bank says may not change.
    return [(_line(x), x.amount_minor, x.currency, x.value_date) for x in statement.lines]


def _line_id(line: BankLine) -> str:
    return line.line_id


def _line(line: BankLine) -> str:
    # Earlier versions wrote the number of a line without a reference as it is.
    return line.line_id.removeprefix(NUMBERED)


def _cleared_by(event: LedgerEvent) -> list[tuple[str, str, str, int, int]]:
    """The rows of ``cleared_rows`` that a decision makes."""
    if event.kind == CLEARING:
        decided = clearing_of(event)
        return [
            (row.settlement_id, decided.gateway, row.file_id, row.row_number, event.sequence)
            for row in decided.rows
        ]
    # Each is its own row: no report has one of it.
    return [(entry, NO_GATEWAY, entry, 0, event.sequence) for entry in release_of(event).entries]


def _insert_what_is_new(
    connection: Connection, rows: Sequence[tuple[str, str, str, int, int]]
) -> int:
    """All but those that an earlier decision has just so; how many. IntegrityError where an earlier
    one says another thing of the same settlement or row."""
    try:
        with connection.begin_nested():
            insert_cleared(connection, rows)
        return len(rows)
    except IntegrityError:
        c = cleared_rows.c
        known = {
            tuple(row)
            for row in connection.execute(
                select(c.settlement_id, c.gateway, c.file_id, c.row_number).where(
                    c.settlement_id.in_([row[0] for row in rows])
                )
            )
        }
        new = [row for row in rows if row[:-1] not in known]
        insert_cleared(connection, new)
        return len(new)


def _apply(connection: Connection, event: LedgerEvent, *, just_made: bool) -> None:
    if event.kind in (CLEARING, RELEASE):
        rows = _cleared_by(event)
        if just_made:
            insert_cleared(connection, rows)
            return
        new = _insert_what_is_new(connection, rows)
        if new < len(rows):
            _log.warning(
                "decision %d says of %d rows what an earlier one says; they are passed over",
                event.sequence, len(rows) - new,
            )  # fmt: skip
    elif event.kind == BANK_STATEMENT:
        _insert_lines(connection, statement_of(event), event.sequence)
    else:
        resolve_by_hand(connection, event)


def _insert_lines(connection: Connection, statement: BankStatement, sequence: int) -> None:
    if not statement.lines:
        return
    lines = [
        {
            "account": statement.account,
            "file_id": statement.file_id,
            "line_id": line.line_id,
            "gateway": line.gateway,
            "batch_id": line.batch_id,
            "currency": line.currency,
            "amount_minor": line.amount_minor,
            "value_date": line.value_date,
            "text": line.text,
            "payout": int(line.payout),
            "sequence": sequence,
        }
        for line in statement.lines
    ]
    try:
        with connection.begin_nested():
            connection.execute(insert(bank_lines), lines)
    except IntegrityError:
        # A decision that is followed again has left its own; another's are no reason to go on.
        connection.execute(delete(bank_lines).where(bank_lines.c.sequence == sequence))
        connection.execute(insert(bank_lines), lines)
