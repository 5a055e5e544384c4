"""The gateway's books in SQLite: operations, the entries of what moved, keys, notices, faults.

One file, one writer (``GroupCommit`` runs every write method inside its transactions), any number
of readers. An operation has a status that may change; an entry tells of something that has
happened, is only ever added, and is numbered in the order of its commit.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.gateways.simulator.bank_payments import SCHEMA as PAYMENTS_SCHEMA
from pipeline.gateways.simulator.faults import BEFORE_CHARGE, FaultKind
from pipeline.gateways.simulator.operations import (
    ACTION_REQUIRED,
    AUTHORIZE,
    CAPTURE,
    CHARGE,
    EXPIRED,
    FAILED,
    FIRST,
    PENDING,
    REFUND,
    RETURNED,
    SUCCEEDED,
    VOID,
    VOIDED,
    Asked,
    Call,
    Dispute,
    Execution,
    Operation,
    Terms,
    Wire,
)
from pipeline.gateways.simulator.reports import SCHEMA as REPORTS_SCHEMA
from pipeline.gateways.simulator.tokens import FORCED, Forced, forced_by, inherited

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS book (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    reference TEXT NOT NULL,
    charge_id TEXT NOT NULL,
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    currency TEXT NOT NULL,
    merchant_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    instrument_token TEXT,
    idempotency_key TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    fee_minor INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS operations (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    reference TEXT NOT NULL,
    parent_id TEXT,
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    currency TEXT NOT NULL,
    merchant_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    instrument_token TEXT,
    idempotency_key TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    status TEXT NOT NULL,
    code TEXT,
    due_at_ms INTEGER,
    due_status TEXT,
    closed TEXT,
    expires_at_ms INTEGER,
    forced_token TEXT
);
CREATE INDEX IF NOT EXISTS operations_by_reference ON operations (reference, kind);
CREATE INDEX IF NOT EXISTS operations_by_parent ON operations (parent_id)
    WHERE parent_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS operations_due ON operations (due_at_ms) WHERE due_at_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS disputes (
    id TEXT PRIMARY KEY,
    charge_id TEXT NOT NULL,
    reference TEXT NOT NULL,
    state TEXT NOT NULL,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    fee_minor INTEGER NOT NULL,
    withdrawn_minor INTEGER NOT NULL,
    rounds INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    changes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notices (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    subject_id TEXT NOT NULL,
    reference TEXT NOT NULL,
    fault_key TEXT NOT NULL,
    forced_token TEXT,
    body BLOB NOT NULL,
    tries INTEGER NOT NULL,
    next_at_ms INTEGER,
    delivered INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS notices_waiting ON notices (next_at_ms) WHERE next_at_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY,
    payload_hash BLOB NOT NULL,
    faulted_calls INTEGER NOT NULL,
    status INTEGER,
    body BLOB,
    first_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS faulted_inquiries (
    reference TEXT PRIMARY KEY, faulted INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fault_counts (
    kind TEXT NOT NULL, code TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (kind, code)
) WITHOUT ROWID;
"""
    + REPORTS_SCHEMA
    + PAYMENTS_SCHEMA
)

_Result = TypeVar("_Result")

# Books of before there were operations: their entries could be charges and refunds only.
_MIGRATION = """
BEGIN IMMEDIATE;
ALTER TABLE entries RENAME TO old_entries;
DROP INDEX IF EXISTS entries_by_reference;
DROP INDEX IF EXISTS refunds_by_charge;
{schema}
INSERT INTO entries SELECT seq, kind, id, reference, charge_id, amount_minor, currency,
    merchant_id, order_id, instrument_token, idempotency_key, created_at_ms, 0 FROM old_entries;
INSERT INTO operations SELECT seq, kind, id, reference,
    CASE kind WHEN 'refund' THEN charge_id END, amount_minor, currency, merchant_id, order_id,
    instrument_token, idempotency_key, created_at_ms, created_at_ms, 'succeeded',
    NULL, NULL, NULL, NULL, NULL, NULL FROM old_entries;
DROP TABLE old_entries;
COMMIT;
"""

# Offenders named in the summary: enough to start looking; the count beside them is complete.
SUMMARY_EXAMPLES_MAX = 100

# Names of entries where they differ from the operation's kind.
AUTHORIZATION = "authorization"
EXPIRY = "expiry"
REFUND_FAILED = "refund_failed"
DISPUTE = "dispute"
DISPUTE_FEE = "dispute_fee"
DISPUTE_WON = "dispute_won"

DISPUTE_STATES = ("inquiry", "opened", "won", "lost", "pre_arbitration")
# The gateway holds the money back in these.
_WITHDRAWN_IN = frozenset({"opened", "lost", "pre_arbitration"})

_ID_PREFIX = {CHARGE: "ch", AUTHORIZE: "au", CAPTURE: "ca", VOID: "vo", REFUND: "re"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the books. ``charge_id`` is the id of the charge or authorization it belongs to
    (a charge's own); ``reference`` is the caller's for the operation that moved the money;
    ``fee_minor`` is what the gateway keeps of it."""

    seq: int
    kind: str
    id: str
    reference: str
    charge_id: str
    amount_minor: int
    currency: str
    merchant_id: str
    order_id: str
    instrument_token: str | None
    idempotency_key: str
    created_at_ms: int
    fee_minor: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice that waits to be taken."""

    seq: int
    id: str
    subject_id: str
    reference: str
    fault_key: str
    forced_token: str | None
    body: bytes
    tries: int


_ENTRY_COLUMNS = ", ".join(field.name for field in fields(Entry))
_OPERATION_COLUMNS = ", ".join(field.name for field in fields(Operation))
_DISPUTE_COLUMNS = ", ".join(field.name for field in fields(Dispute))
_NOTICE_COLUMNS = ", ".join(field.name for field in fields(Notice))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the gateway will not do it. ``kept``: the answer is kept under the key."""

    code: str
    message: str
    kept: bool = True


class Books:
    """The write side; every method belongs inside one transaction of the only writer.

    ``idempotent`` False: keys mean nothing, so every call that arrives is executed.
    ``fee_minor`` says what the gateway keeps of a charge or capture.
    """

    def __init__(
        self,
        path: Path,
        *,
        key_retention_ms: int,
        wire: Wire,
        idempotent: bool = True,
        fee_minor: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self._db = _connect(path)
        self._wire = wire
        self._idempotent = idempotent
        self._fee_minor = fee_minor
        self._key_retention_ms = key_retention_ms
        self._counts: Counter[tuple[FaultKind, str]] = Counter()
        _prepare(self._db)
        row = self._db.execute("SELECT id FROM book").fetchone()
        if row is None:
            row = (secrets.token_hex(4),)
            self._db.execute("INSERT INTO book VALUES (?)", row)
        # Part of every id, so that two simulators never give out the same one.
        self._book_id: str = row[0]
        self._last_seq = 0
        self._last_operation = 0
        # Whether changes are told at all: without an address nothing would ever take the notices.
        self.tells = False
        self.notice_delay_ms = 0

    def begin(self) -> None:
        """Open a transaction; what a failed one left in memory is forgotten."""
        self._db.execute("BEGIN IMMEDIATE")
        self._counts.clear()
        (self._last_seq,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        (self._last_operation,) = self._db.execute(
            "SELECT coalesce(max(seq), 0) FROM operations"
        ).fetchone()

    def commit(self) -> None:
        """Make the transaction durable."""
        self._db.executemany(
            "INSERT INTO fault_counts VALUES (?, ?, ?) "
            "ON CONFLICT (kind, code) DO UPDATE SET count = count + excluded.count",
            [(kind.value, code, n) for (kind, code), n in self._counts.items()],
        )
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the open transaction, if there is one."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file, and fold its write-ahead log in."""
        self._db.close()

    # Operations ---------------------------------------------------------------------------------

    def operate(self, call: Call, asked: Asked) -> Execution:
        """Do what is asked, or refuse it; the same key again returns the stored answer."""
        parent = self._parent(asked)
        forced = _forced(asked, parent)
        made: list[Operation] = []

        def execute() -> tuple[int, bytes, bool]:
            terms = call.terms(forced)
            refusal = self._refusal(asked, parent, call.now_ms)
            if refusal is None and terms.decline_code is not None:
                self._counts[FaultKind.DECLINE, terms.decline_code] += 1
                if terms.keeps_declines:
                    made.append(self._make(call, asked, parent, terms, forced))
                    reply = self._wire.answer(made[-1])
                    return reply.status, reply.body, True
                message = f"The card was declined: {terms.decline_code}."
                refusal = Refusal(f"declined:{terms.decline_code}", message)
            if refusal is not None:
                reply = self._wire.refusal(refusal.code, refusal.message, asked)
                return reply.status, reply.body, refusal.kept
            made.append(self._make(call, asked, parent, terms, forced))
            reply = self._wire.answer(made[-1])
            return reply.status, reply.body, True

        execution = self._once(call, forced, asked, execute)
        return replace(execution, operation=made[-1]) if made else execution

    def run_due(self, now_ms: int) -> int:
        """Let everything happen that is due by itself; returns how many operations changed."""
        rows = self._db.execute(
            f"SELECT {_OPERATION_COLUMNS} FROM operations WHERE due_at_ms <= ? ORDER BY due_at_ms "
            "LIMIT 500",
            (now_ms,),
        ).fetchall()
        for row in rows:
            operation = Operation(*row)
            self.settle(operation, operation.due_status or SUCCEEDED, now_ms)
        return len(rows)

    def complete(self, reference: str, kind: str | None, status: str, now_ms: int) -> Operation:
        """Bring what waits, for the customer or for time, to its end. Raises ValueError by name."""
        rows = self._db.execute(
            f"SELECT {_OPERATION_COLUMNS} FROM operations WHERE reference = ? "
            "AND (? IS NULL OR kind = ?) ORDER BY seq",
            (reference, kind, kind),
        ).fetchall()
        for row in rows:
            operation = Operation(*row)
            if operation.status in (PENDING, ACTION_REQUIRED):
                return self.settle(operation, status, now_ms)
        raise ValueError(f"no operation with the reference {reference} waits")

    def settle(self, operation: Operation, status: str, now_ms: int) -> Operation:
        """Give an operation its (next) final status, write its entry and tell."""
        if status == EXPIRED:
            changed = replace(
                operation, closed=EXPIRED, changed_at_ms=now_ms, due_at_ms=None, due_status=None
            )
            if operation.closed is not None or self._captured(operation.id, open_too=True):
                self._update(replace(operation, due_at_ms=None, due_status=None))
                return operation
            self._update(changed)
            self._enter(changed, EXPIRY, f"{changed.id}-expiry")
            return changed
        had_succeeded = operation.status == SUCCEEDED
        code = operation.code
        if status == FAILED:
            code = code or ("do_not_honor" if operation.kind in FIRST else "processing_error")
        else:
            code = None
        changed = replace(
            operation,
            status=status,
            code=code,
            changed_at_ms=now_ms,
            due_at_ms=None,
            due_status=None,
            closed=RETURNED if had_succeeded and status == FAILED else operation.closed,
        )
        if status == SUCCEEDED and operation.kind == AUTHORIZE:
            changed = replace(changed, due_at_ms=operation.expires_at_ms, due_status=EXPIRED)
        forced = forced_on(operation)
        if status == SUCCEEDED and forced is not None and forced.fails_later:
            # As long again as it was pending.
            later_ms = now_ms + (operation.due_at_ms or now_ms) - operation.created_at_ms
            changed = replace(changed, due_at_ms=later_ms, due_status=FAILED)
        self._update(changed)
        if status == SUCCEEDED:
            self._moved(changed, now_ms)
        elif had_succeeded:
            self._enter(changed, f"{changed.kind}_failed", f"{changed.id}-failed")
        self._tell(changed, now_ms)
        return changed

    def dispute(
        self,
        charge: Operation,
        state: str,
        now_ms: int,
        *,
        dispute_id: str | None = None,
        amount_minor: int | None = None,
        fee_minor: int = 0,
    ) -> Dispute:
        """Open a dispute about a charge or captured authorization, or move one on."""
        known = None
        if dispute_id is not None:
            row = self._db.execute(
                f"SELECT {_DISPUTE_COLUMNS} FROM disputes WHERE id = ?", (dispute_id,)
            ).fetchone()
            known = Dispute(*row) if row else None
        if known is None:
            (count,) = self._db.execute("SELECT count(*) FROM disputes").fetchone()
            known = Dispute(
                dispute_id or f"dp_{self._book_id}_{count + 1:04d}",
                charge.id,
                charge.reference,
                state,
                amount_minor or self._captured(charge.id) or charge.amount_minor,
                charge.currency,
                0,
                0,
                0,
                now_ms,
                0,
            )
        # Later than the change before it, since notices are put in order by it.
        changed_at_ms = max(now_ms, known.changed_at_ms + 1) if known.changes else now_ms
        dispute = replace(
            known,
            state=state,
            changed_at_ms=changed_at_ms,
            changes=known.changes + 1,
            fee_minor=known.fee_minor + fee_minor,
        )
        if state in _WITHDRAWN_IN and not known.withdrawn_minor:
            dispute = replace(
                dispute, withdrawn_minor=dispute.amount_minor, rounds=known.rounds + 1
            )
            self._enter_dispute(charge, dispute, DISPUTE, dispute.amount_minor, now_ms)
        elif state == "won" and known.withdrawn_minor:
            dispute = replace(dispute, withdrawn_minor=0)
            self._enter_dispute(charge, dispute, DISPUTE_WON, known.withdrawn_minor, now_ms)
        if fee_minor:
            self._enter_dispute(charge, dispute, DISPUTE_FEE, fee_minor, now_ms)
        self._db.execute(
            f"INSERT OR REPLACE INTO disputes ({_DISPUTE_COLUMNS}) VALUES ({_marks(11)})",
            astuple(dispute),
        )
        if self.tells:
            notice_id = f"msg_{dispute.id}_{dispute.changes}"
            body = self._wire.dispute_notice(dispute, charge, notice_id)
            if body is not None:
                self._put_notice(notice_id, charge, body, now_ms)
        return dispute

    def notice_tried(self, notice: Notice, *, taken: bool, next_at_ms: int | None) -> None:
        """Note one delivery; ``next_at_ms`` None ends the matter, taken or given up."""
        self._db.execute(
            "UPDATE notices SET tries = tries + 1, next_at_ms = ?, delivered = delivered + ? "
            "WHERE seq = ?",
            (next_at_ms, int(taken), notice.seq),
        )

    def count_fault(self, kind: FaultKind, reference: str | None = None) -> None:
        """Count a fault of an inquiry; with a reference, it also brings its faults to an end."""
        self._counts[kind, ""] += 1
        if reference is not None:
            self._db.execute(
                "INSERT INTO faulted_inquiries VALUES (?, 1) "
                "ON CONFLICT (reference) DO UPDATE SET faulted = faulted + 1",
                (reference,),
            )

    def run(self, job: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Any other write, in the same transaction."""
        return job(self._db)

    # Parts --------------------------------------------------------------------------------------

    def _once(
        self,
        call: Call,
        forced: Forced | None,
        asked: Asked,
        execute: Callable[[], tuple[int, bytes, bool]],
    ) -> Execution:
        """Run ``execute`` unless the key has an answer; meet the key's fault before or after."""
        row = self._db.execute(
            "SELECT payload_hash, faulted_calls, status, body, first_at_ms "
            "FROM idempotency_keys WHERE key = ?",
            (call.key,),
        ).fetchone()
        known = row is not None and call.now_ms - row[4] < self._key_retention_ms
        payload_hash, faulted, status, body, first_at_ms = (
            row if known else (call.payload_hash, 0, None, b"", call.now_ms)
        )
        if not self._idempotent:
            # The row counts the faults and nothing else.
            payload_hash, status = call.payload_hash, None
        if payload_hash != call.payload_hash:
            message = f"The key {call.key} came before with another payload."
            reply = self._wire.refusal("idempotency_key_reused", message, asked)
            return Execution(status=reply.status, body=reply.body)
        fault = call.next_fault(forced, faulted)
        replayed = status is not None
        executes = status is None and fault not in BEFORE_CHARGE
        keep = True
        if executes:
            status, body, keep = execute()
        if fault is not None:
            self._counts[fault, ""] += 1
            faulted += 1
        if (executes and keep) or fault is not None:
            stored = (status, body) if keep else (None, b"")
            self._db.execute(
                "INSERT OR REPLACE INTO idempotency_keys VALUES (?, ?, ?, ?, ?, ?)",
                (call.key, call.payload_hash, faulted, *stored, first_at_ms),
            )
        return Execution(fault, status, body, replayed)

    def _parent(self, asked: Asked) -> Operation | None:
        if asked.kind in FIRST:
            return None
        if asked.parent_id is not None:
            found = operation_by_id(self._db, asked.parent_id)
            return found if found is not None and found.kind in FIRST else None
        for kind in (CHARGE, AUTHORIZE):
            found = operation_by_reference(self._db, kind, asked.parent_reference or "")
            if found is not None:
                return found
        return None

    def _refusal(self, asked: Asked, parent: Operation | None, now_ms: int) -> Refusal | None:
        """The rule that what is asked breaks."""
        if asked.kind in FIRST:
            return None
        if parent is None or (parent.kind == CHARGE and asked.kind != REFUND):
            named = asked.parent_id or asked.parent_reference
            noun = CHARGE if asked.kind == REFUND else AUTHORIZATION
            return Refusal(f"{noun}_not_found", f"There is no {noun} {named}.", kept=False)
        amount_minor = asked.amount_minor or parent.amount_minor
        if asked.kind == REFUND:
            left_minor = (
                self._captured(parent.id)
                if parent.kind == AUTHORIZE
                else (parent.amount_minor if parent.status == SUCCEEDED else 0)
            )
            left_minor -= self._sum(parent.id, REFUND)
            if amount_minor > left_minor:
                message = f"Of charge {parent.id} only {left_minor} minor units are left to refund."
                return Refusal("refund_exceeds_charge", message)
            return None
        if parent.status != SUCCEEDED:
            return Refusal("authorization_not_open", f"{parent.id} is {parent.status}.")
        expired = parent.expires_at_ms is not None and now_ms >= parent.expires_at_ms
        captured_minor = self._captured(parent.id, open_too=True)
        if parent.closed is not None or (expired and not captured_minor):
            how = parent.closed or EXPIRED
            return Refusal(f"authorization_{how}", f"{parent.id} is {how}.")
        if asked.kind == VOID:
            if captured_minor:
                return Refusal("already_captured", f"{parent.id} has captures; refund them.")
            return None
        if expired:
            return Refusal(f"authorization_{EXPIRED}", f"{parent.id} is {EXPIRED}.")
        left_minor = parent.amount_minor - captured_minor
        if amount_minor > left_minor:
            message = f"Of {parent.id} only {left_minor} minor units are left to capture."
            return Refusal("capture_exceeds_authorization", message)
        return None

    def _captured(self, parent_id: str, *, open_too: bool = False) -> int:
        if open_too:
            return self._sum(parent_id, CAPTURE)
        return self._sum(parent_id, CAPTURE, only=SUCCEEDED)

    def _sum(self, parent_id: str, kind: str, only: str | None = None) -> int:
        """What operations of the kind on a parent come to; failed ones do not count."""
        (total,) = self._db.execute(
            "SELECT coalesce(sum(amount_minor), 0) FROM operations WHERE parent_id = ? "
            "AND kind = ? AND status != ? AND (? IS NULL OR status = ?)",
            (parent_id, kind, FAILED, only, only),
        ).fetchone()
        return int(total)

    def _make(
        self,
        call: Call,
        asked: Asked,
        parent: Operation | None,
        terms: Terms,
        forced: Forced | None,
    ) -> Operation:
        now_ms = call.now_ms
        self._last_operation += 1
        made_of = asked if parent is None else parent
        status, code, due_at_ms, due_status = SUCCEEDED, None, None, None
        if terms.decline_code is not None:
            status, code = FAILED, terms.decline_code
        elif terms.asks_customer:
            status = ACTION_REQUIRED
        elif terms.pending_then is not None:
            status, due_at_ms, due_status = PENDING, now_ms + terms.pending_ms, terms.pending_then
        elif terms.fails_later:
            due_at_ms, due_status = now_ms + terms.pending_ms, FAILED
        expires_at_ms = None
        if asked.kind == AUTHORIZE:
            expires_at_ms = now_ms + terms.authorization_ms
            if status == SUCCEEDED and due_at_ms is None:
                due_at_ms, due_status = expires_at_ms, EXPIRED
        operation = Operation(
            seq=self._last_operation,
            kind=asked.kind,
            id=f"{_ID_PREFIX[asked.kind]}_{self._book_id}_{self._last_operation:08d}",
            reference=asked.reference,
            parent_id=None if parent is None else parent.id,
            amount_minor=asked.amount_minor or made_of.amount_minor or 0,
            currency=made_of.currency or "",
            merchant_id=made_of.merchant_id,
            order_id=made_of.order_id,
            instrument_token=asked.instrument_token,
            idempotency_key=call.key,
            created_at_ms=now_ms,
            changed_at_ms=now_ms,
            status=status,
            code=code,
            due_at_ms=due_at_ms,
            due_status=due_status,
            closed=None,
            expires_at_ms=expires_at_ms,
            forced_token=_deciding_token(asked, parent),
        )
        self._db.execute(
            f"INSERT INTO operations ({_OPERATION_COLUMNS}) VALUES ({_marks(20)})",
            astuple(operation),
        )
        if status == SUCCEEDED:
            self._moved(operation, now_ms)
        self._tell(operation, now_ms)
        return operation

    def _moved(self, operation: Operation, now_ms: int) -> None:
        """The entry of an operation that has succeeded, and what it does to its parent."""
        kind = AUTHORIZATION if operation.kind == AUTHORIZE else operation.kind
        self._enter(operation, kind, operation.id)
        if operation.kind == VOID and operation.parent_id is not None:
            parent = operation_by_id(self._db, operation.parent_id)
            if parent is not None:
                self._update(
                    replace(
                        parent,
                        closed=VOIDED,
                        changed_at_ms=now_ms,
                        due_at_ms=None,
                        due_status=None,
                    )
                )

    def _update(self, operation: Operation) -> None:
        self._db.execute(
            "UPDATE operations SET status = ?, code = ?, due_at_ms = ?, due_status = ?, "
            "closed = ?, changed_at_ms = ? WHERE seq = ?",
            (
                operation.status,
                operation.code,
                operation.due_at_ms,
                operation.due_status,
                operation.closed,
                operation.changed_at_ms,
                operation.seq,
            ),
        )

    def _enter(self, operation: Operation, kind: str, entry_id: str) -> None:
        fee_minor = self._fee_minor(operation.amount_minor) if kind in (CHARGE, CAPTURE) else 0
        self._insert(
            kind,
            entry_id,
            operation.reference,
            operation.subject_id,
            operation.amount_minor,
            operation,
            operation.changed_at_ms,
            fee_minor,
        )

    def _enter_dispute(
        self, charge: Operation, dispute: Dispute, kind: str, amount_minor: int, now_ms: int
    ) -> None:
        entry_id = f"{dispute.id}-{kind}-{dispute.changes}"
        self._insert(kind, entry_id, dispute.id, charge.id, amount_minor, charge, now_ms, 0)

    def _insert(
        self,
        kind: str,
        entry_id: str,
        reference: str,
        charge_id: str,
        amount_minor: int,
        operation: Operation,
        now_ms: int,
        fee_minor: int,
    ) -> None:
        self._last_seq += 1
        entry = Entry(
            self._last_seq,
            kind,
            entry_id,
            reference,
            charge_id,
            amount_minor,
            operation.currency,
            operation.merchant_id,
            operation.order_id,
            operation.instrument_token,
            operation.idempotency_key,
            now_ms,
            fee_minor,
        )
        self._db.execute(
            f"INSERT INTO entries ({_ENTRY_COLUMNS}) VALUES ({_marks(13)})", astuple(entry)
        )

    def _tell(self, operation: Operation, now_ms: int) -> None:
        if not self.tells:
            return
        notice_id = f"msg_{operation.id}_{operation.status}"
        body = self._wire.operation_notice(operation, notice_id)
        if body is not None:
            self._put_notice(notice_id, operation, body, now_ms)

    def _put_notice(self, notice_id: str, subject: Operation, body: bytes, now_ms: int) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO notices (id, subject_id, reference, fault_key, forced_token, "
            f"body, tries, next_at_ms, delivered) VALUES ({_marks(9)})",
            (
                notice_id,
                subject.id,
                subject.reference,
                subject.idempotency_key,
                _notice_token(subject),
                body,
                0,
                now_ms + self.notice_delay_ms,
                0,
            ),
        )


class BooksReader:
    """The read side: sees what has been committed. Belongs to the thread that made it."""

    def __init__(self, path: Path) -> None:
        self._db = _connect(path)
        self._db.execute("PRAGMA query_only = 1")

    def by_id(self, kind: str, operation_id: str) -> Operation | None:
        """The operation of this kind with this id of ours."""
        found = operation_by_id(self._db, operation_id)
        return found if found is not None and found.kind == kind else None

    def by_reference(self, kind: str, reference: str) -> Operation | None:
        """The first operation of the kind with the caller's reference."""
        return operation_by_reference(self._db, kind, reference)

    def first_by_reference(self, reference: str) -> Operation | None:
        """The charge or authorization with the caller's reference."""
        return self.by_reference(CHARGE, reference) or self.by_reference(AUTHORIZE, reference)

    def parent_of(self, operation: Operation) -> Operation | None:
        """The charge or authorization that an operation is about."""
        if operation.parent_id is None:
            return None
        return operation_by_id(self._db, operation.parent_id)

    def next_due_ms(self) -> int | None:
        """When the next operation changes by itself."""
        (due,) = self._db.execute(
            "SELECT min(due_at_ms) FROM operations WHERE due_at_ms IS NOT NULL"
        ).fetchone()
        return None if due is None else int(due)

    def waiting_notices(self, now_ms: int, limit: int, subject_id: str = "") -> list[Notice]:
        """Notices to be sent now; with a subject, all of its own, due or not."""
        rows = self._db.execute(
            f"SELECT {_NOTICE_COLUMNS} FROM notices WHERE next_at_ms IS NOT NULL AND "
            "CASE WHEN ? = '' THEN next_at_ms <= ? ELSE subject_id = ? END "
            "ORDER BY next_at_ms, seq LIMIT ?",
            (subject_id, now_ms, subject_id, limit),
        )
        return [Notice(*row) for row in rows]

    def notice_counts(self) -> dict[str, int]:
        """How many notices there are: all, taken at least once, still waiting."""
        made, delivered, waiting = self._db.execute(
            "SELECT count(*), coalesce(sum(delivered > 0), 0), count(next_at_ms) FROM notices"
        ).fetchone()
        return {"made": made, "delivered": delivered, "waiting": waiting}

    def faulted_inquiries(self, reference: str) -> int:
        """How many inquiries about the reference have been answered with a 500 by the plan."""
        row = self._db.execute(
            "SELECT faulted FROM faulted_inquiries WHERE reference = ?", (reference,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def page(self, after: int, limit: int) -> list[Entry]:
        """Entries with a seq above ``after``, in order; committed entries never move."""
        rows = self._db.execute(
            f"SELECT {_ENTRY_COLUMNS} FROM entries WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, limit),
        )
        return [Entry(*row) for row in rows]

    def fault_counts(self) -> dict[str, dict[str, int]]:
        """``{"faults": {kind: n}, "declines": {code: n}}``; every kind is there, also with 0."""
        faults: dict[str, int] = {kind.value: 0 for kind in FaultKind}
        declines: dict[str, int] = {}
        for kind, code, count in self._db.execute("SELECT kind, code, count FROM fault_counts"):
            faults[kind] += count
            if kind == FaultKind.DECLINE:
                declines[code] = count
        return {"faults": faults, "declines": declines}

    def summary(self) -> dict[str, Any]:
        """Counts and sums for an audit; reads the whole table."""
        sums: dict[str, dict[str, int]] = {}
        counts: Counter[str] = Counter()
        for kind, currency, count, total_minor in self._db.execute(
            "SELECT kind, currency, count(*), sum(amount_minor) FROM entries "
            "GROUP BY kind, currency ORDER BY kind, currency"
        ):
            sums.setdefault(kind, {})[currency] = total_minor
            counts[kind] += count
        (last_seq,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        return {
            "charges": counts[CHARGE],
            "refunds": counts[REFUND],
            "authorizations": counts[AUTHORIZATION],
            "captures": counts[CAPTURE],
            "voids": counts[VOID],
            "charged_minor": sums.get(CHARGE, {}),
            "refunded_minor": sums.get(REFUND, {}),
            "authorized_minor": sums.get(AUTHORIZATION, {}),
            "captured_minor": sums.get(CAPTURE, {}),
            "refund_failed_minor": sums.get(REFUND_FAILED, {}),
            "disputed_minor": sums.get(DISPUTE, {}),
            "last_seq": last_seq,
            "references_charged_more_than_once": self._repeated("reference"),
            "orders_charged_more_than_once": self._repeated("merchant_id || ':' || order_id"),
        }

    def run(self, query: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Any other read."""
        return query(self._db)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _repeated(self, expression: str) -> dict[str, Any]:
        # The expressions are the two constants above, never a caller's text.
        groups = (
            f"SELECT {expression} AS name, count(*) AS n FROM entries WHERE kind = 'charge' "
            "GROUP BY name HAVING n > 1"
        )
        (count,) = self._db.execute(f"SELECT count(*) FROM ({groups})").fetchone()
        examples = self._db.execute(f"{groups} ORDER BY name LIMIT ?", (SUMMARY_EXAMPLES_MAX,))
        return {
            "count": count,
            "examples": [{"name": name, "charges": charges} for name, charges in examples],
        }


def operation_by_id(db: sqlite3.Connection, operation_id: str) -> Operation | None:
    """The operation with this id."""
    row = db.execute(
        f"SELECT {_OPERATION_COLUMNS} FROM operations WHERE id = ?", (operation_id,)
    ).fetchone()
    return None if row is None else Operation(*row)


def operation_by_reference(db: sqlite3.Connection, kind: str, reference: str) -> Operation | None:
    """The first operation of this kind with this reference; one that has not failed goes first."""
    row = db.execute(
        f"SELECT {_OPERATION_COLUMNS} FROM operations WHERE reference = ? AND kind = ? "
        "ORDER BY status = 'failed', seq LIMIT 1",
        (reference, kind),
    ).fetchone()
    return None if row is None else Operation(*row)


def forced_on(operation: Operation) -> Forced | None:
    """What a test token forces on an operation, or None if it follows the plan."""
    token = operation.forced_token
    if token is None:
        return None
    if operation.kind in FIRST or operation.instrument_token == token:
        return forced_by(token, operation.kind)
    return inherited(token, operation.kind)


def _notice_token(operation: Operation) -> str | None:
    """The test token that forces, on a charge, what this operation's own forces on it: a notice
    does not say what it is about, and a token of the charge says nothing of a refund's notices."""
    forced = forced_on(operation)
    if forced is None:
        return None
    return next((token for token, each in FORCED.items() if each is forced), "tok_ok")


def _forced(asked: Asked, parent: Operation | None) -> Forced | None:
    if asked.instrument_token is not None:
        return forced_by(asked.instrument_token, asked.kind)
    return None if parent is None else inherited(parent.instrument_token, asked.kind)


def _deciding_token(asked: Asked, parent: Operation | None) -> str | None:
    if asked.instrument_token is not None or parent is None:
        return asked.instrument_token
    return parent.instrument_token


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _prepare(db: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an older version up to date."""
    row = db.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchone()
    old = row is not None and "fee_minor" not in row[0]
    db.executescript(_MIGRATION.format(schema=_SCHEMA) if old else _SCHEMA)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode; raises UserError if the file cannot be used as books."""
    try:
        # Made in one thread and used in one other (the writer's), never in two at once.
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        db.execute("PRAGMA journal_mode = WAL")
        # FULL: a gateway does not forget a charge it has confirmed, and without the sync a power
        # cut would lose one that our ledger has kept. Group commit shares the price of a sync
        # among all the requests that wait.
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise UserError(
            f"The simulator's books {path} cannot be opened ({error}); "
            "give a path in a directory that exists, to books or to no file yet."
        ) from error
    return db
