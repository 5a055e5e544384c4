"""Books that somebody has had a hand in: rows of a copy of the ledger, past its tables' guards.

Whoever forges an entry here is careful: balances follow what was changed, unless the kind is that
they do not. Rows are captures with their fees, drawn by a seed, never next to one another in a
chain, so that each thing that is found has one cause.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.books.findings import LEDGER_VERIFY, RECONCILE, VERIFY, Damage, Found
from benchmarks.failure import WrongRun

SETTLEMENTS, DECISIONS = "settlements", "ledger-events"
# Between two damaged entries of a chain.
APART = 3
_STRANGER = "a-stranger"


class Entry(Struct, frozen=True):
    """A capture under terms: movement, fee and cost are its six lines."""

    number: int
    entry_id: str
    settlement_id: str
    partition: int
    offset: int

    @property
    def place(self) -> str:
        return f"{SETTLEMENTS}[{self.partition}]@{self.offset}"


class Books:
    """The copy, its guards gone."""

    def __init__(self, file: Path) -> None:
        self.db = sqlite3.connect(file, isolation_level=None)
        self.db.execute("PRAGMA foreign_keys = OFF")
        self.db.execute("PRAGMA synchronous = OFF")
        for (name,) in self.all("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            self.db.execute(f"DROP TRIGGER {name}")

    def all(self, statement: str, *values: object) -> list[Any]:
        return self.db.execute(statement, values).fetchall()

    def do(self, statement: str, *values: object) -> None:
        changed = self.db.execute(statement, values).rowcount
        if changed < 1:
            raise WrongRun(f"nothing was damaged by {statement} {values}")

    def lines(self, number: int) -> list[tuple[int, int, str, int]]:
        """Line, account, currency and amount of an entry."""
        return self.all(
            "SELECT line, account_id, currency, amount_minor FROM postings "
            "WHERE entry_number = ? ORDER BY line", number,
        )  # fmt: skip

    def balance(self, account: int, currency: str, minor: int, *, times: int = 1) -> None:
        """Count a posting in its balance, or with ``times=-1`` no longer."""
        side = "debits_minor" if minor > 0 else "credits_minor"
        self.db.execute("INSERT OR IGNORE INTO balances VALUES (?, ?, 0, 0)", (account, currency))
        self.do(
            f"UPDATE balances SET {side} = {side} + ? WHERE account_id = ? AND currency = ?",
            times * abs(minor), account, currency,
        )  # fmt: skip

    def change(self, number: int, line: int, *, by: int = 0, account: int = 0, currency: str = "",
               followed: bool = True) -> None:  # fmt: skip
        """Change a line; the balances follow."""
        old = next(each for each in self.lines(number) if each[0] == line)
        new = account or old[1], currency or old[2], old[3] + by
        self.do(
            "UPDATE postings SET account_id = ?, currency = ?, amount_minor = ? "
            "WHERE entry_number = ? AND line = ?", *new, number, line,
        )  # fmt: skip
        if followed:
            self.balance(old[1], old[2], old[3], times=-1)
            self.balance(*new)

    def name(self, account: int) -> str:
        return str(self.all("SELECT name FROM accounts WHERE account_id = ?", account)[0][0])

    def cleared(self, entry: Entry) -> tuple[Found, ...]:
        """What the decision that cleared a settlement no longer agrees with, told once for each."""
        rows = self.all(
            "SELECT sequence FROM cleared_rows WHERE settlement_id = ?", entry.settlement_id
        )
        return tuple(("clearing_wrong", f"decision {sequence}") for (sequence,) in rows)

    def remove(self, number: int) -> None:
        for _, account, currency, minor in self.lines(number):
            self.balance(account, currency, minor, times=-1)
        self.do("DELETE FROM postings WHERE entry_number = ?", number)
        self.do("DELETE FROM journal_entries WHERE entry_number = ?", number)


def _drift(books: Books, account: int, currency: str) -> dict[str, tuple[Found, ...]]:
    name = f"{books.name(account)} {currency}"
    return {
        LEDGER_VERIFY: (("balance_differs", f"balances {name}"),),
        VERIFY: (("balance_differs_from_postings", name),),
    }


def _posting_gone(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    line, account, currency, _ = books.lines(e.number)[1]
    books.do("DELETE FROM postings WHERE entry_number = ? AND line = ?", e.number, line)
    return _joined(
        _drift(books, account, currency),
        {
            LEDGER_VERIFY: (("entry_changed", e.place), ("entry_unbalanced", e.place),
                            ("entry_unbalanced", e.place)),
            VERIFY: (("journal_unbalanced", e.entry_id), *books.cleared(e),
                     ("journal_entry_amount_wrong", e.entry_id)),
        },
    )  # fmt: skip


def _one_side(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    line, account, currency, _ = books.lines(e.number)[0]
    books.change(e.number, line, by=1, followed=False)
    return _joined(
        _drift(books, account, currency),
        {
            LEDGER_VERIFY: (("entry_changed", e.place), ("entry_unbalanced", e.place)),
            RECONCILE: (("ledger_differs", e.settlement_id),),
            VERIFY: (("journal_unbalanced", e.entry_id), *books.cleared(e),
                     ("journal_entry_amount_wrong", e.entry_id)),
        },
    )  # fmt: skip


def _amount(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.change(e.number, 1, by=1)
    books.change(e.number, 2, by=-1)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        RECONCILE: (("ledger_differs", e.settlement_id),),
        VERIFY: (("journal_entry_amount_wrong", e.entry_id), *books.cleared(e)),
    }


def _currency(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    for line, *_ in books.lines(e.number):
        books.change(e.number, line, currency="CHF")
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        RECONCILE: (("ledger_differs", e.settlement_id),),
        VERIFY: (("journal_entry_amount_wrong", e.entry_id), *books.cleared(e)),
    }


def _fee(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.change(e.number, 3, by=1)
    books.change(e.number, 4, by=-1)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        VERIFY: (("journal_entry_fees_wrong", e.entry_id), *books.cleared(e)),
    }


def _cost(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.change(e.number, 5, by=1)
    books.change(e.number, 6, by=-1)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        VERIFY: (("journal_entry_fees_wrong", e.entry_id), *books.cleared(e)),
    }


def _merchant(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    mine = books.lines(e.number)[1][1]
    other = books.all(
        "SELECT account_id FROM accounts WHERE name LIKE 'merchant_payable:%' "
        "AND account_id <> ? ORDER BY name", mine,
    )[0][0]  # fmt: skip
    books.change(e.number, 2, account=other)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        VERIFY: (("journal_entry_accounts_wrong", e.entry_id),),
    }


def _reference(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE journal_entries SET gateway_reference = gateway_reference || 'x' "
             "WHERE entry_number = ?", e.number)  # fmt: skip
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        RECONCILE: (("ledger_differs", e.settlement_id),),
    }


def _gateway(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE journal_entries SET gateway = ? WHERE entry_number = ?", _STRANGER, e.number)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        RECONCILE: (("ledger_differs", e.settlement_id),),
    }


def _backdated(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE journal_entries SET business_date = '2010-11-30' WHERE entry_number = ?",
             e.number)  # fmt: skip
    return {LEDGER_VERIFY: (("entry_changed", e.place),)}


def _other_day(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE journal_entries SET booked_date = '2011-01-01' WHERE entry_number = ?",
             e.number)  # fmt: skip
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        VERIFY: (("journal_entry_day_wrong", e.entry_id),),
    }


def _terms(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE journal_entries SET terms = '1/-/card' WHERE entry_number = ?", e.number)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        VERIFY: (("journal_entry_fees_wrong", e.entry_id),),
    }


def _posted_later(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE journal_entries SET posted_at_ms = posted_at_ms + 1 WHERE entry_number = ?",
             e.number)  # fmt: skip
    return {LEDGER_VERIFY: (("entry_changed", e.place),)}


def _gone(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    cleared = books.cleared(e)
    books.remove(e.number)
    return {
        LEDGER_VERIFY: (("entry_missing", e.place),),
        RECONCILE: (("ledger_differs", e.settlement_id),),
        VERIFY: (("settlement_without_journal_entry", e.settlement_id), *cleared),
    }


def _invented(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    """An entry of a settlement that never was, booked like the one it was copied from."""
    (number,) = books.all("SELECT max(entry_number) + 1 FROM journal_entries")[0]
    settlement = f"{e.settlement_id[:-4]}ffff"
    columns = [row[1] for row in books.all("PRAGMA table_info(journal_entries)")]
    changed = {"entry_number": number, "entry_id": f"settlement:{settlement}",
               "settlement_id": settlement, "source_part": 1}  # fmt: skip
    shown = ", ".join("?" if name in changed else name for name in columns)
    values = [changed[name] for name in columns if name in changed]
    books.do(f"INSERT INTO journal_entries SELECT {shown} FROM journal_entries "
             "WHERE entry_number = ?", *values, e.number)  # fmt: skip
    for line, account, currency, minor in books.lines(e.number):
        books.do("INSERT INTO postings VALUES (?, ?, ?, ?, ?)", number, line, account, currency,
                 minor)  # fmt: skip
        books.balance(account, currency, minor)
    return {
        LEDGER_VERIFY: (("entry_unsealed", e.place),),
        RECONCILE: (("missing_at_gateway", settlement),
                    ("ledger_differs", f"{SETTLEMENTS}[{e.partition}]")),
        VERIFY: (("journal_entry_without_settlement", settlement),),
    }  # fmt: skip


def _seal(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    books.do("UPDATE entry_seals SET hash = zeroblob(32) WHERE entry_number = ?", e.number)
    return {LEDGER_VERIFY: (("seal_changed", e.place),)}


def _seal_gone(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    chain, position = books.all(
        "SELECT chain_id, position FROM entry_seals WHERE entry_number = ?", e.number
    )[0]
    ((after,),) = books.all(
        "SELECT source_offset FROM entry_seals WHERE chain_id = ? AND position = ?",
        chain, position + 1,
    )  # fmt: skip
    books.do("DELETE FROM entry_seals WHERE entry_number = ?", e.number)
    return {
        LEDGER_VERIFY: (
            ("entry_unsealed", e.place),
            ("seal_missing", f"{SETTLEMENTS}[{e.partition}]@{after}"),
        )
    }


ENTRY_KINDS: dict[str, Callable[[Books, Entry], dict[str, tuple[Found, ...]]]] = {
    "a posting is deleted": _posting_gone,
    "one side of an entry is changed": _one_side,
    "an amount is changed on both sides, balances too": _amount,
    "an entry has another currency, balances too": _currency,
    "the merchant's fee is changed, balances too": _fee,
    "the gateway's cost is changed, balances too": _cost,
    "a sale is credited to another merchant, balances too": _merchant,
    "an entry names another reference of the gateway": _reference,
    "an entry names another gateway": _gateway,
    "an entry is backdated": _backdated,
    "an entry counts under another day": _other_day,
    "an entry names other terms": _terms,
    "an entry's time of posting is changed": _posted_later,
    "an entry is removed, balances too": _gone,
    "an entry is invented, balances too": _invented,
    "a seal is changed": _seal,
    "a seal is removed": _seal_gone,
}


def _balance(books: Books, draw: random.Random) -> tuple[str, dict[str, tuple[Found, ...]]]:
    account, currency = draw.choice(
        books.all("SELECT account_id, currency FROM balances ORDER BY account_id, currency")
    )
    books.do("UPDATE balances SET debits_minor = debits_minor + 1, credits_minor = credits_minor "
             "+ 1 WHERE account_id = ? AND currency = ?", account, currency)  # fmt: skip
    return f"{books.name(account)} {currency}", _drift(books, account, currency)


def _offset_back(books: Books, draw: random.Random) -> tuple[str, dict[str, tuple[Found, ...]]]:
    """To the partition's last entry, which then comes from where nothing is booked yet."""
    partition, last, entry_id = draw.choice(
        books.all(
            "SELECT source_partition, max(source_offset), entry_id FROM journal_entries "
            "WHERE source_topic = ? AND source_part = 0 GROUP BY source_partition "
            "ORDER BY source_partition", SETTLEMENTS,
        )
    )  # fmt: skip
    books.do("UPDATE consumer_offsets SET next_offset = ? WHERE topic = ? AND partition = ?",
             last, SETTLEMENTS, partition)  # fmt: skip
    place = f"{SETTLEMENTS}[{partition}]"
    return place, {
        LEDGER_VERIFY: (("entry_beyond_offset", f"{place}@{last}"),
                        ("offset_changed", f"consumer_offsets {place}")),
        VERIFY: (("journal_entry_beyond_offset", entry_id),),
    }  # fmt: skip


def _offset_on(books: Books, draw: random.Random) -> tuple[str, dict[str, tuple[Found, ...]]]:
    """Past the end of a partition: what is settled next would not be booked."""
    ((partition,),) = draw.sample(
        books.all(
            "SELECT partition FROM consumer_offsets c WHERE topic = ? AND next_offset > ("
            "SELECT max(source_offset) FROM journal_entries WHERE source_topic = c.topic "
            "AND source_partition = c.partition) ORDER BY partition", SETTLEMENTS,
        ), 1,
    )  # fmt: skip
    books.do("UPDATE consumer_offsets SET next_offset = next_offset + 1000000 WHERE topic = ? "
             "AND partition = ?", SETTLEMENTS, partition)  # fmt: skip
    place = f"{SETTLEMENTS}[{partition}]"
    return place, {
        LEDGER_VERIFY: (("offset_changed", f"consumer_offsets {place}"),),
        VERIFY: (("consumer_offset_beyond_end", place),),
    }


def _decision(books: Books, draw: random.Random) -> tuple[str, dict[str, tuple[Found, ...]]]:
    books.do("UPDATE ledger_decisions SET body = replace(body, '\"2.1\"', '\"2.0\"') "
             "WHERE kind = 'fee_schedule'")  # fmt: skip
    place = "ledger_decisions 1"
    return place, {LEDGER_VERIFY: (("decision_changed", place),)}


def _decided(books: Books, draw: random.Random, kind: str) -> tuple[int, str, str, Found]:
    """An entry of a decision, its place, and what an audit says when it is not as decided."""
    number, entry_id, partition, offset = draw.choice(
        books.all(
            "SELECT entry_number, entry_id, source_partition, source_offset FROM journal_entries "
            "WHERE kind = ? ORDER BY entry_number", kind,
        )
    )  # fmt: skip
    ((sequence,),) = books.all(
        "SELECT sequence FROM ledger_decisions WHERE published_partition = ? "
        "AND published_offset = ?", partition, offset,
    )  # fmt: skip
    wrong = "clearing_wrong", f"decision {sequence}"
    return number, entry_id, f"{DECISIONS}[{partition}]@{offset}", wrong


def _clearing_gone(books: Books, draw: random.Random) -> tuple[str, dict[str, tuple[Found, ...]]]:
    number, entry_id, place, wrong = _decided(books, draw, "clearing")
    books.remove(number)
    return entry_id, {LEDGER_VERIFY: (("entry_missing", place),), VERIFY: (wrong,)}


def _receipt(books: Books, draw: random.Random) -> tuple[str, dict[str, tuple[Found, ...]]]:
    number, entry_id, place, wrong = _decided(books, draw, "bank_receipt")
    books.change(number, 1, by=1)
    books.change(number, 2, by=-1)
    return entry_id, {LEDGER_VERIFY: (("entry_changed", place),), VERIFY: (wrong,)}


# Of the books as a whole: one of each.
OTHER_KINDS: dict[
    str, Callable[[Books, random.Random], tuple[str, dict[str, tuple[Found, ...]]]]
] = {
    "a balance is changed on both sides": _balance,
    "the ledger's offset is moved back": _offset_back,
    "the ledger's offset is moved past the end": _offset_on,
    "a decision is changed": _decision,
    "the entry of a report's row is removed, balances too": _clearing_gone,
    "the entry of a bank's line is changed, balances too": _receipt,
}


def damage_ledger(file: Path, draw: random.Random, each: int) -> list[Damage]:
    """Damage a copy of the books and say what has to be found."""
    books = Books(file)
    with closing(books.db):
        books.db.execute("BEGIN")
        drawn = iter(_draw(books, draw, each * len(ENTRY_KINDS)))
        damages = [
            Damage(kind, f"{entry.entry_id} of {entry.place}", spoil(books, entry))
            for kind, spoil in ENTRY_KINDS.items()
            for entry in islice(drawn, each)
        ]
        for kind, spoil_ in OTHER_KINDS.items():
            place, found = spoil_(books, draw)
            damages.append(Damage(kind, place, found))
        books.db.execute("COMMIT")
    return damages


def _draw(books: Books, draw: random.Random, count: int) -> Iterator[Entry]:
    """Distinct captures under terms, apart from each other and from the chains' ends. Each is all
    that was settled of its payment: what a refund gives back follows from the capture before it."""
    rows = books.all(
        "SELECT entry_number, entry_id, settlement_id, source_partition, source_offset, kind = "
        "'capture' AND posting_count = 6 AND NOT EXISTS (SELECT 1 FROM journal_entries o "
        "WHERE o.payment_id = e.payment_id AND o.settlement_id NOT IN ('', e.settlement_id)) "
        "FROM journal_entries e WHERE source_topic = ? ORDER BY source_partition, source_offset",
        SETTLEMENTS,
    )
    taken: set[int] = set()
    for at in draw.sample(range(APART, len(rows) - APART), len(rows) - 2 * APART):
        *fields, fit = rows[at]
        near = rows[at - APART : at + APART + 1]
        in_chain = all(each[3] == rows[at][3] for each in near)
        if not (fit and in_chain) or taken & set(range(at - APART, at + APART + 1)):
            continue
        taken.add(at)
        yield Entry(*fields)
        count -= 1
        if not count:
            return
    raise WrongRun("the books are too small to damage so many entries apart from each other.")


def _joined(*found: dict[str, tuple[Found, ...]]) -> dict[str, tuple[Found, ...]]:
    return {
        check: tuple(each for part in found for each in part.get(check, ()))
        for check in {check for part in found for check in part}
    }
