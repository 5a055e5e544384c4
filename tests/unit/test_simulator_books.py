"""The books of the gateway simulator: each key once, refunds within charges, all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.gateways.simulator.books import Books, BooksReader, Call, Execution
from pipeline.gateways.simulator.faults import FaultKind
from pipeline.gateways.simulator.group_commit import GroupCommit
from pipeline.gateways.simulator.wire import ChargeRequest, RefundRequest, payload_hash

RETENTION_MS = 1_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file for the books."""
    return tmp_path / "books.db"


@pytest.fixture
def books(path: Path) -> Iterator[Books]:
    """Empty books with a transaction open."""
    books = Books(path, key_retention_ms=RETENTION_MS)
    books.begin()
    yield books
    books.rollback()
    books.close()


def a_charge(amount_minor: int = 1_000, reference: str = "ref-1") -> ChargeRequest:
    """A charge of 10.00 unless told."""
    return ChargeRequest(reference, amount_minor, "GBP", "tok_any", "shop", "order-1")


def charge(
    books: Books,
    request: ChargeRequest | None = None,
    *,
    key: str = "k1",
    now_ms: int = 0,
    fault: FaultKind | None = None,
    decline_code: str | None = None,
) -> Execution:
    """Charge under a key, with a fault on its first call."""
    request = request or a_charge()
    call = Call(key, payload_hash(request), now_ms, lambda n: fault if n == 0 else None)
    return books.charge(call, request, decline_code)


def refund(books: Books, amount_minor: int, key: str, charge_id: str) -> Execution:
    """Refund part of a charge."""
    request = RefundRequest(amount_minor, f"refund-{key}", charge_id)
    return books.refund(Call(key, payload_hash(request), 0, lambda _: None), request)


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
        books = Books(path, key_retention_ms=RETENTION_MS)
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
        writer = GroupCommit(books := Books(path, key_retention_ms=RETENTION_MS))

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
        Books(file, key_retention_ms=RETENTION_MS)
    assert file.read_text().startswith("not a database")
