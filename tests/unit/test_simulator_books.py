"""The books of the gateway simulator: each key once, refunds within charges, all or nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.gateways.simulator.books import Books, BooksReader
from pipeline.gateways.simulator.faults import FaultKind
from pipeline.gateways.simulator.group_commit import GroupCommit
from pipeline.gateways.simulator.operations import Asked, Call, Execution, Terms, payload_hash
from pipeline.gateways.simulator.wires.plain import PlainWire

RETENTION_MS = 1_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file for the books."""
    return tmp_path / "books.db"


def opened(path: Path, *, idempotent: bool = True) -> Books:
    """The write side of the books in a file."""
    return Books(
        path,
        key_retention_ms=RETENTION_MS,
        wire=PlainWire("http://127.0.0.1"),
        idempotent=idempotent,
    )


@pytest.fixture
def books(path: Path) -> Iterator[Books]:
    """Empty books with a transaction open."""
    books = opened(path)
    books.begin()
    yield books
    books.rollback()
    books.close()


def a_charge(amount_minor: int = 1_000, reference: str = "ref-1", kind: str = "charge") -> Asked:
    """A charge of 10.00 unless told."""
    return Asked(kind, reference, amount_minor, "GBP", "tok_any", "shop", "order-1")


def charge(
    books: Books,
    request: Asked | None = None,
    *,
    key: str = "k1",
    now_ms: int = 0,
    fault: FaultKind | None = None,
    decline_code: str | None = None,
    **terms: Any,
) -> Execution:
    """Charge under a key, with a fault on its first call."""
    request = request or a_charge()
    call = Call(
        key,
        payload_hash(request),
        now_ms,
        lambda _, n: fault if n == 0 else None,
        lambda _: Terms(decline_code=decline_code, **terms),
    )
    return books.operate(call, request)


def later(
    books: Books,
    kind: str,
    amount_minor: int | None,
    key: str,
    parent_id: str,
    *,
    now_ms: int = 0,
    **terms: Any,
) -> Execution:
    """Capture, void or refund."""
    request = Asked(kind, f"{kind}-{key}", amount_minor, parent_id=parent_id)
    call = Call(key, payload_hash(request), now_ms, lambda _f, _n: None, lambda _: Terms(**terms))
    return books.operate(call, request)


def refund(books: Books, amount_minor: int, key: str, charge_id: str) -> Execution:
    """Refund part of a charge."""
    return later(books, "refund", amount_minor, key, charge_id)


def entries(path: Path) -> list[tuple[int, str, int]]:
    """What a reader sees in the books: seq, kind, amount."""
    reader = BooksReader(path)
    try:
        return [(e.seq, e.kind, e.amount_minor) for e in reader.page(0, 100)]
    finally:
        reader.close()


def test_the_same_key_is_answered_byte_for_byte_and_charged_once(books: Books, path: Path) -> None:
    """A retry with the same key gets the first answer back and moves nothing."""
    first = charge(books)
    again = charge(books, now_ms=RETENTION_MS - 1)
    books.commit()

    assert first.status == again.status == 201
    assert again.body == first.body
    assert (first.replayed, again.replayed) == (False, True)
    assert entries(path) == [(1, "charge", 1_000)]
    books.begin()


def test_a_key_older_than_its_retention_charges_again(books: Books, path: Path) -> None:
    """The gateway forgets keys: a retry that comes too late is a second charge."""
    charge(books)
    late = charge(books, now_ms=RETENTION_MS)
    books.commit()

    assert late.status == 201
    assert not late.replayed
    assert len(entries(path)) == 2
    reader = BooksReader(path)
    assert reader.summary()["references_charged_more_than_once"] == {
        "count": 1,
        "examples": [{"name": "ref-1", "charges": 2}],
    }
    reader.close()
    books.begin()


def test_the_same_key_with_another_payload_is_a_conflict(books: Books, path: Path) -> None:
    """A key never stands for two different charges."""
    charge(books)
    conflict = charge(books, a_charge(amount_minor=999))
    books.commit()

    assert conflict.status == 422
    assert b"idempotency_key_reused" in conflict.body
    assert len(entries(path)) == 1
    books.begin()


def test_a_fault_before_the_charge_leaves_no_charge_and_one_after_leaves_one(
    books: Books, path: Path
) -> None:
    """The two kinds of lost answer differ in the books, and both end with one charge."""
    before = charge(books, key="k-before", fault=FaultKind.RESET_BEFORE)
    assert (before.status, before.fault) == (None, FaultKind.RESET_BEFORE)
    after = charge(books, key="k-after", fault=FaultKind.RESET_AFTER)
    assert (after.status, after.fault) == (201, FaultKind.RESET_AFTER)
    books.commit()
    assert len(entries(path)) == 1

    books.begin()
    assert not charge(books, key="k-before").replayed
    assert charge(books, key="k-after").replayed
    books.commit()
    assert len(entries(path)) == 2
    books.begin()


def test_a_decline_is_kept_under_its_key_and_moves_nothing(books: Books, path: Path) -> None:
    """A declined key stays declined, even if the card would be good by now."""
    first = charge(books, decline_code="expired_card")
    again = charge(books)
    books.commit()

    assert (first.status, again.status) == (402, 402)
    assert again.body == first.body
    assert entries(path) == []
    books.begin()


def test_refunds_never_exceed_what_was_charged(books: Books, path: Path) -> None:
    """Parts may be refunded until nothing is left; one minor unit more is refused."""
    charge(books)
    books.commit()
    reader = BooksReader(path)
    charge_id = reader.page(0, 1)[0].id
    reader.close()
    books.begin()

    assert refund(books, 600, "r1", charge_id).status == 201
    assert refund(books, 401, "r2", charge_id).status == 402
    assert refund(books, 400, "r3", charge_id).status == 201
    assert refund(books, 1, "r4", charge_id).status == 402
    assert refund(books, 600, "r1", charge_id).replayed
    assert refund(books, 1, "r5", "ch_unknown").status == 404
    books.commit()

    assert entries(path) == [(1, "charge", 1_000), (2, "refund", 600), (3, "refund", 400)]
    books.begin()


def test_fault_counts_survive_reopening(path: Path) -> None:
    """What was injected before a restart is still counted after it."""
    for _ in range(2):
        books = opened(path)
        books.begin()
        books.count_fault(FaultKind.INQUIRY_ERROR, "ref-1")
        books.commit()
        books.close()
    reader = BooksReader(path)

    assert reader.fault_counts()["faults"]["inquiry_500"] == 2
    assert reader.faulted_inquiries("ref-1") == 2
    assert set(reader.fault_counts()["faults"]) == set(FaultKind)
    reader.close()


def test_pages_follow_each_other_without_gap_or_overlap(books: Books, path: Path) -> None:
    """Paging by the last seq seen reads every entry once, in order."""
    for n in range(7):
        charge(books, a_charge(reference=f"r{n}"), key=f"k{n}")
    books.commit()
    reader = BooksReader(path)
    seen: list[int] = []
    while page := reader.page(seen[-1] if seen else 0, 3):
        seen += [entry.seq for entry in page]

    assert seen == [1, 2, 3, 4, 5, 6, 7]
    reader.close()
    books.begin()


def test_one_failing_write_answers_nobody_and_writes_nothing(path: Path) -> None:
    """When a transaction fails, no request of it is answered as charged, and the next one works."""

    async def scenario() -> list[int | BaseException | None]:
        writer = GroupCommit(books := opened(path))

        def broken() -> Execution:
            charge(books, a_charge(reference="lost"), key="lost")
            raise OSError("disk full")

        failed = await asyncio.gather(writer.submit(broken), return_exceptions=True)
        good = await writer.submit(lambda: charge(books))
        await writer.close()
        return [type(failed[0]) is OSError, good.status]

    assert asyncio.run(scenario()) == [True, 201]
    assert entries(path) == [(1, "charge", 1_000)]


def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """Pointing the books at something else says so and touches nothing."""
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)

    with pytest.raises(UserError, match="cannot be opened"):
        opened(file)
    assert file.read_text().startswith("not a database")


def made(execution: Execution) -> str:
    """The id of the operation that was made."""
    assert execution.operation is not None
    return execution.operation.id


def test_captures_in_parts_never_exceed_the_authorization(books: Books, path: Path) -> None:
    """Parts may be captured until nothing is left; what was captured can be refunded, no more."""
    authorization = made(charge(books, a_charge(kind="authorize")))
    assert later(books, "capture", 600, "c1", authorization).status == 201
    assert later(books, "capture", 401, "c2", authorization).status == 402
    assert refund(books, 601, "r1", authorization).status == 402
    assert refund(books, 600, "r2", authorization).status == 201
    assert later(books, "capture", 400, "c3", authorization).status == 201
    assert later(books, "void", None, "v1", authorization).status == 402
    assert later(books, "capture", 1, "c4", "au_unknown").status == 404
    books.commit()
    assert [kind for _, kind, _ in entries(path)] == [
        "authorization",
        "capture",
        "refund",
        "capture",
    ]
    books.begin()


def test_a_void_ends_an_authorization(books: Books) -> None:
    """After a void nothing can be captured, and a second void is refused by name."""
    authorization = made(charge(books, a_charge(kind="authorize")))
    assert later(books, "void", None, "v1", authorization).status == 201
    assert b"authorization_voided" in later(books, "capture", 1, "c1", authorization).body
    assert b"authorization_voided" in later(books, "void", None, "v2", authorization).body


def test_an_authorization_expires_by_itself_unless_it_was_captured(
    books: Books, path: Path
) -> None:
    """Money nobody took in time is released; money that was taken stays taken."""
    left = made(charge(books, a_charge(kind="authorize"), authorization_ms=500))
    taken = made(charge(books, a_charge(kind="authorize"), key="k2", authorization_ms=500))
    later(books, "capture", 1_000, "c1", taken)
    assert books.run_due(499) == 0
    late = later(books, "capture", 1, "c2", left, now_ms=500)
    assert b"authorization_expired" in late.body
    assert books.run_due(500) == 2
    assert books.run_due(10_000) == 0
    assert refund(books, 1_000, "r1", taken).status == 201
    books.commit()
    assert [kind for _, kind, _ in entries(path)].count("expiry") == 1
    books.begin()


def test_what_is_pending_moves_no_money_until_it_has_succeeded(books: Books, path: Path) -> None:
    """A pending charge is not in the books, and cannot be refunded; one that fails never is."""
    slow = made(charge(books, key="k1", pending_then="succeeded", pending_ms=100))
    lost = made(charge(books, key="k2", pending_then="failed", pending_ms=100))
    assert refund(books, 1, "r1", slow).status == 402
    books.run_due(100)
    assert refund(books, 1, "r2", slow).status == 201
    assert refund(books, 1, "r3", lost).status == 402
    books.commit()
    assert [kind for _, kind, _ in entries(path)] == ["charge", "refund"]
    books.begin()


def test_a_refund_that_fails_later_gives_its_amount_back(books: Books, path: Path) -> None:
    """The failure is an entry of its own, and the same money can be refunded once more."""
    paid = made(charge(books))
    later(books, "refund", 1_000, "r1", paid, fails_later=True, pending_ms=100)
    assert refund(books, 1, "r2", paid).status == 402
    books.run_due(100)
    assert refund(books, 1_000, "r3", paid).status == 201
    books.commit()
    assert [kind for _, kind, _ in entries(path)] == [
        "charge",
        "refund",
        "refund_failed",
        "refund",
    ]
    books.begin()


def test_a_dispute_withdraws_once_a_round_and_gives_back_when_won(books: Books, path: Path) -> None:
    """Repeating a state moves nothing; a lost one after a won one is a second withdrawal."""
    books.commit()
    books.begin()
    operation = charge(books).operation
    assert operation is not None
    dispute_id = books.dispute(operation, "inquiry", 1).id
    for state in ("opened", "opened", "won", "pre_arbitration", "lost"):
        books.dispute(operation, state, 1, dispute_id=dispute_id, fee_minor=0)
    books.commit()
    assert [kind for _, kind, _ in entries(path)] == [
        "charge",
        "dispute",
        "dispute_won",
        "dispute",
    ]
    books.begin()


def test_each_event_of_a_dispute_is_later_than_the_one_before(books: Books) -> None:
    """Whoever orders notices by their time may do so, however fast a dispute moves on."""
    operation = charge(books).operation
    assert operation is not None
    told = [books.dispute(operation, "opened", 7)]
    for state in ("won", "pre_arbitration"):
        told.append(books.dispute(operation, state, 7, dispute_id=told[0].id))
    assert [each.changed_at_ms for each in told] == [7, 8, 9]
    assert [each.changes for each in told] == [1, 2, 3]


def test_without_idempotency_every_call_charges(path: Path) -> None:
    """A gateway that knows no keys takes the same charge twice: that is why it is never re-sent."""
    books = opened(path, idempotent=False)
    books.begin()
    charge(books)
    charge(books)
    books.commit()
    books.close()
    assert len(entries(path)) == 2


def test_books_of_an_older_version_are_taken_over(path: Path) -> None:
    """Charges of before are found, counted and refundable, and numbering goes on after them."""
    db = sqlite3.connect(path)
    db.executescript(OLD_BOOKS)
    db.close()
    books = opened(path)
    books.begin()
    assert refund(books, 600, "r2", "ch_old_00000001").status == 201
    assert refund(books, 1, "r3", "ch_old_00000001").status == 402
    books.commit()
    books.close()
    assert [(seq, kind) for seq, kind, _ in entries(path)] == [
        (1, "charge"),
        (2, "refund"),
        (3, "refund"),
    ]
    opened(path).close()


# As the first version made them.
OLD_BOOKS = """
CREATE TABLE book (id TEXT NOT NULL);
INSERT INTO book VALUES ('old');
CREATE TABLE entries (
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
CREATE INDEX entries_by_reference ON entries (reference, kind);
CREATE INDEX refunds_by_charge ON entries (charge_id) WHERE kind = 'refund';
INSERT INTO entries VALUES
    (1, 'charge', 'ch_old_00000001', 'r', 'ch_old_00000001', 1000, 'GBP', 'm', 'o', 't', 'k', 1),
    (2, 'refund', 're_old_00000002', 'rr', 'ch_old_00000001', 400, 'GBP', 'm', 'o', 't', 'kk', 2);
"""
