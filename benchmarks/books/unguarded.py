"""A copy of the ledger without its tables' guards, for somebody who has a hand in it.

Whoever forges an entry is careful: balances follow what is changed, unless that is the damage.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.books.findings import Found
from benchmarks.failure import WrongRun
from pipeline.interrupted_queries import InterruptibleConnection

SETTLEMENTS, DECISIONS = "settlements", "ledger-events"
# Between two damaged entries of a chain.
APART = 3


class Entry(Struct, frozen=True):
    """An entry of a settlement; a capture under terms has movement, fee and cost as six lines."""

    number: int
    entry_id: str
    settlement_id: str
    partition: int
    offset: int

    @property
    def place(self) -> str:
        return f"{SETTLEMENTS}[{self.partition}]@{self.offset}"


class Books:
    """The copy, its guards gone until ``finish``."""

    def __init__(self, file: Path) -> None:
        self.db = sqlite3.connect(file, isolation_level=None, factory=InterruptibleConnection)
        self.db.execute("PRAGMA foreign_keys = OFF")
        self.db.execute("PRAGMA synchronous = OFF")
        self._guards = self.all("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        for name, _ in self._guards:
            self.db.execute(f"DROP TRIGGER {name}")

    def finish(self) -> None:
        """Leave it as somebody who hides his hand would: the guards are back."""
        for _, statement in self._guards:
            self.db.execute(statement)
        self.db.execute("COMMIT")

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


class Drawer:
    """Draws entries of settlements: none twice, apart from each other and from the chains' ends,
    each all that was settled of its kind and payment, so that each finding has one cause."""

    def __init__(self, books: Books, draw: random.Random) -> None:
        self._rows = books.all(_ENTRIES, SETTLEMENTS)
        self._order = draw.sample(
            range(APART, len(self._rows) - APART), len(self._rows) - 2 * APART
        )
        self._taken: set[int] = set()

    def draw(self, what: str, count: int) -> Iterator[Entry]:
        """``what``: ``capture``, one under terms and nothing else of its payment; ``dispute``."""
        for at in self._order:
            *fields, fit = self._rows[at]
            near = self._rows[at - APART : at + APART + 1]
            in_chain = all(each[3] == self._rows[at][3] for each in near)
            beside = set(range(at - APART, at + APART + 1))
            if fit != what or not in_chain or self._taken & beside:
                continue
            self._taken.add(at)
            yield Entry(*fields)
            count -= 1
            if not count:
                return
        raise WrongRun(f"the books have too few a {what} to damage so many apart from each other.")


# What a refund gives back follows from the capture before it. The index of payments has the entries
# of settlements alone, so that condition stands by itself: without it each pair is looked at.
_ENTRIES = """
    SELECT entry_number, entry_id, settlement_id, source_partition, source_offset, CASE
        WHEN kind = 'capture' AND posting_count = 6 AND NOT EXISTS (
            SELECT 1 FROM journal_entries o WHERE o.payment_id = e.payment_id
            AND o.settlement_id <> '' AND o.settlement_id <> e.settlement_id
        ) THEN 'capture'
        WHEN kind = 'dispute' THEN kind ELSE '' END
    FROM journal_entries e WHERE source_topic = ? ORDER BY source_partition, source_offset"""
