"""The gateway's books in SQLite: charges, refunds, idempotency keys and fault counts.

One file, one writer (``GroupCommit`` runs every write method inside its transactions), any number
of readers. Entries are only ever added, numbered in the order of their commit.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import UserError
from pipeline.gateways.simulator.faults import BEFORE_CHARGE, FaultKind
from pipeline.gateways.simulator.wire import ChargeRequest, RefundRequest, error_body

_SCHEMA = """
CREATE TABLE IF NOT EXISTS book (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('charge', 'refund')),
    id TEXT NOT NULL UNIQUE,
    reference TEXT NOT NULL,
    charge_id TEXT NOT NULL,
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    currency TEXT NOT NULL,
    merchant_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    instrument_token TEXT,
    idempotency_key TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_reference ON entries (reference, kind);
CREATE INDEX IF NOT EXISTS refunds_by_charge ON entries (charge_id) WHERE kind = 'refund';
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

_ENTRY_COLUMNS = (
    "seq, kind, id, reference, charge_id, amount_minor, currency, "
    "merchant_id, order_id, instrument_token, idempotency_key, created_at_ms"
)

# Offenders named in the summary: enough to start looking; the count beside them is complete.
SUMMARY_EXAMPLES_MAX = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the books. ``charge_id`` of a charge is its own id; ``reference`` is the caller's
    (a refund's is its refund_reference)."""

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


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call that may move money. ``next_fault`` says, from the number of faulted calls the
    key has had, which fault this one meets."""

    key: str
    payload_hash: bytes
    now_ms: int
    next_fault: Callable[[int], FaultKind | None]


@dataclass(frozen=True, slots=True)
class Execution:
    """What a call came to: the answer (None if nothing was executed) and the fault it meets."""

    fault: FaultKind | None = None
    status: int | None = None
    body: bytes = b""
    replayed: bool = False


class Books:
    """The write side; every method belongs inside one transaction of the only writer."""

    def __init__(self, path: Path, *, key_retention_ms: int) -> None:
        self._db = _connect(path)
        self._key_retention_ms = key_retention_ms
        self._counts: Counter[tuple[FaultKind, str]] = Counter()
        self._db.executescript(_SCHEMA)
        row = self._db.execute("SELECT id FROM book").fetchone()
        if row is None:
            row = (secrets.token_hex(4),)
            self._db.execute("INSERT INTO book VALUES (?)", row)
        # Part of every id, so that two simulators never give out the same one.
        self._book_id: str = row[0]
        self._last_seq = 0

    def begin(self) -> None:
        """Open a transaction; what a failed one left in memory is forgotten."""
        self._db.execute("BEGIN IMMEDIATE")
        self._counts.clear()
        (self._last_seq,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()

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

    def charge(self, call: Call, request: ChargeRequest, decline_code: str | None) -> Execution:
        """Charge, or decline with the code; the same key again returns the stored answer."""

        def execute() -> tuple[int, bytes, bool]:
            if decline_code is not None:
                self._counts[FaultKind.DECLINE, decline_code] += 1
                message = f"The card was declined: {decline_code}."
                return 402, error_body(decline_code, message, reference=request.reference), True
            seq, charge_id = self._next("ch")
            entry = Entry(
                seq,
                "charge",
                charge_id,
                request.reference,
                charge_id,
                request.amount_minor,
                request.currency,
                request.merchant_id,
                request.order_id,
                request.instrument_token,
                call.key,
                call.now_ms,
            )
            self._insert(entry)
            return 201, msgspec.json.encode(charge_view(entry)), True

        return self._once(call, execute)

    def refund(self, call: Call, request: RefundRequest) -> Execution:
        """Pay back part or all of a charge, never more than is left of it."""

        def execute() -> tuple[int, bytes, bool]:
            charge = self._charge_to_refund(request)
            if charge is None:
                named = request.charge_id or request.reference
                return 404, error_body("charge_not_found", f"There is no charge {named}."), False
            (refunded,) = self._db.execute(
                "SELECT coalesce(sum(amount_minor), 0) FROM entries "
                "WHERE charge_id = ? AND kind = 'refund'",
                (charge.id,),
            ).fetchone()
            left_minor = charge.amount_minor - refunded
            if request.amount_minor > left_minor:
                message = f"Of charge {charge.id} only {left_minor} minor units are left to refund."
                return 402, error_body("refund_exceeds_charge", message), True
            seq, refund_id = self._next("re")
            entry = Entry(
                seq,
                "refund",
                refund_id,
                request.refund_reference,
                charge.id,
                request.amount_minor,
                charge.currency,
                charge.merchant_id,
                charge.order_id,
                request.instrument_token,
                call.key,
                call.now_ms,
            )
            self._insert(entry)
            return 201, msgspec.json.encode(refund_view(entry)), True

        return self._once(call, execute)

    def count_fault(self, kind: FaultKind, reference: str | None = None) -> None:
        """Count a fault of an inquiry; with a reference, it also brings its faults to an end."""
        self._counts[kind, ""] += 1
        if reference is not None:
            self._db.execute(
                "INSERT INTO faulted_inquiries VALUES (?, 1) "
                "ON CONFLICT (reference) DO UPDATE SET faulted = faulted + 1",
                (reference,),
            )

    def _once(self, call: Call, execute: Callable[[], tuple[int, bytes, bool]]) -> Execution:
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
        if payload_hash != call.payload_hash:
            message = f"The key {call.key} came before with another payload."
            return Execution(status=422, body=error_body("idempotency_key_reused", message))
        fault = call.next_fault(faulted)
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

    def _next(self, prefix: str) -> tuple[int, str]:
        self._last_seq += 1
        return self._last_seq, f"{prefix}_{self._book_id}_{self._last_seq:08d}"

    def _insert(self, entry: Entry) -> None:
        self._db.execute(
            f"INSERT INTO entries ({_ENTRY_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                entry.seq,
                entry.kind,
                entry.id,
                entry.reference,
                entry.charge_id,
                entry.amount_minor,
                entry.currency,
                entry.merchant_id,
                entry.order_id,
                entry.instrument_token,
                entry.idempotency_key,
                entry.created_at_ms,
            ),
        )

    def _charge_to_refund(self, request: RefundRequest) -> Entry | None:
        if request.charge_id is not None:
            return entry_by_id(self._db, "charge", request.charge_id)
        return entry_by_reference(self._db, "charge", request.reference or "")


class BooksReader:
    """The read side: sees what has been committed. Belongs to the thread that made it."""

    def __init__(self, path: Path) -> None:
        self._db = _connect(path)
        self._db.execute("PRAGMA query_only = 1")

    def by_id(self, kind: str, entry_id: str) -> Entry | None:
        """The charge or refund with this id of ours."""
        return entry_by_id(self._db, kind, entry_id)

    def by_reference(self, kind: str, reference: str) -> Entry | None:
        """The first charge or refund with the caller's reference."""
        return entry_by_reference(self._db, kind, reference)

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
        sums: dict[str, dict[str, int]] = {"charge": {}, "refund": {}}
        counts = {"charge": 0, "refund": 0}
        for kind, currency, count, total_minor in self._db.execute(
            "SELECT kind, currency, count(*), sum(amount_minor) FROM entries "
            "GROUP BY kind, currency ORDER BY kind, currency"
        ):
            sums[kind][currency] = total_minor
            counts[kind] += count
        (last_seq,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        return {
            "charges": counts["charge"],
            "refunds": counts["refund"],
            "charged_minor": sums["charge"],
            "refunded_minor": sums["refund"],
            "last_seq": last_seq,
            "references_charged_more_than_once": self._repeated("reference"),
            "orders_charged_more_than_once": self._repeated("merchant_id || ':' || order_id"),
        }

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


def charge_view(entry: Entry) -> dict[str, Any]:
    """A charge as the API shows it."""
    return {
        "id": entry.id,
        "reference": entry.reference,
        "status": "succeeded",
        "amount_minor": entry.amount_minor,
        "currency": entry.currency,
        "merchant_id": entry.merchant_id,
        "order_id": entry.order_id,
        "created_at_ms": entry.created_at_ms,
    }


def refund_view(entry: Entry) -> dict[str, Any]:
    """A refund as the API shows it."""
    return {
        "id": entry.id,
        "charge_id": entry.charge_id,
        "refund_reference": entry.reference,
        "status": "succeeded",
        "amount_minor": entry.amount_minor,
        "currency": entry.currency,
        "created_at_ms": entry.created_at_ms,
    }


def entry_by_id(db: sqlite3.Connection, kind: str, entry_id: str) -> Entry | None:
    """The entry of this kind with this id."""
    row = db.execute(
        f"SELECT {_ENTRY_COLUMNS} FROM entries WHERE id = ? AND kind = ?", (entry_id, kind)
    ).fetchone()
    return None if row is None else Entry(*row)


def entry_by_reference(db: sqlite3.Connection, kind: str, reference: str) -> Entry | None:
    """The first entry of this kind with the caller's reference."""
    row = db.execute(
        f"SELECT {_ENTRY_COLUMNS} FROM entries WHERE reference = ? AND kind = ? "
        "ORDER BY seq LIMIT 1",
        (reference, kind),
    ).fetchone()
    return None if row is None else Entry(*row)


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
