"""A gateway whose own books are not what they were, as the audit sees them beside the log."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

from benchmarks.books.findings import VERIFY, Damage, Found
from pipeline.interrupted_queries import InterruptibleConnection

Spoil = Callable[[sqlite3.Connection, int, str], tuple[Found, ...]]


def _gone(db: sqlite3.Connection, seq: int, key: str) -> tuple[Found, ...]:
    db.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    return (("captured_without_charge", key),)


def _amount(db: sqlite3.Connection, seq: int, key: str) -> tuple[Found, ...]:
    db.execute("UPDATE entries SET amount_minor = amount_minor + 1 WHERE seq = ?", (seq,))
    return (("charge_amount_wrong", key), ("settlement_amount_wrong", key))


def _unasked(db: sqlite3.Connection, seq: int, key: str) -> tuple[Found, ...]:
    db.execute(
        "INSERT INTO entries SELECT (SELECT max(seq) + 1 FROM entries), kind, id || '-x', "
        "reference || 'x', id || '-x', amount_minor, currency, merchant_id, order_id || '-x', "
        "instrument_token, idempotency_key, created_at_ms, fee_minor FROM entries WHERE seq = ?",
        (seq,),
    )
    return (("charge_without_payment", key),)


def _refund_gone(db: sqlite3.Connection, seq: int, key: str) -> tuple[Found, ...]:
    db.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    return (("settlement_without_refund", key),)


def _dispute_gone(db: sqlite3.Connection, seq: int, key: str) -> tuple[Found, ...]:
    db.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    return (("settlement_without_dispute", key),)


KINDS: dict[str, tuple[str, Spoil]] = {
    "the gateway's books lack a charge": ("charge", _gone),
    "the gateway's books have another amount": ("charge", _amount),
    "the gateway's books have a charge nobody asked for": ("charge", _unasked),
    "the gateway's books lack a refund": ("refund", _refund_gone),
    "the gateway's books lack a dispute": ("dispute", _dispute_gone),
}


def damage_gateway(file: Path, draw: random.Random, each: int) -> list[Damage]:
    """Damage a copy of a gateway's books and say what has to be found."""
    damages = []
    with closing(sqlite3.connect(file, factory=InterruptibleConnection)) as db:
        # Each question below is asked of every entry: without these, of every pair of them.
        db.execute("CREATE INDEX by_charge ON entries (charge_id)")
        db.execute("CREATE INDEX by_reference ON entries (reference)")
        rows = {
            kind: iter(draw.sample(found, 3 * each if kind == "charge" else each))
            for kind in ("charge", "refund", "dispute")
            if (
                found := db.execute(
                    "SELECT seq, merchant_id || ':' || order_id FROM entries e WHERE kind = ? "
                    # Each of an order of its own: a charge that was given back or disputed is
                    # another case, and so is a dispute that was won.
                    "AND (kind <> 'charge' OR NOT EXISTS (SELECT 1 FROM entries o WHERE "
                    "o.charge_id = e.charge_id AND o.kind <> 'charge')) AND NOT EXISTS (SELECT 1 "
                    "FROM entries w WHERE w.kind = 'dispute_won' AND w.reference = e.reference) "
                    "ORDER BY seq",
                    (kind,),
                ).fetchall()
            )
        }
        for kind, (of, spoil) in KINDS.items():
            for seq, key in islice(rows[of], each):
                damages.append(Damage(kind, f"entry {seq} of {key}", {VERIFY: spoil(db, seq, key)}))
        db.execute("DROP INDEX by_charge")
        db.execute("DROP INDEX by_reference")
        db.commit()
    return damages
