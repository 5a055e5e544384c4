"""Entries that decisions have made, and decisions, which somebody has had a hand in: what cleared,
what the bank paid, and payouts to merchants.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.books.findings import LEDGER_VERIFY, VERIFY, Damage, Found
from benchmarks.books.unguarded import DECISIONS, Books

Findings = dict[str, tuple[Found, ...]]


def _decided(
    books: Books, draw: random.Random, kind: str, wrong: str = "clearing_wrong"
) -> tuple[int, str, str, Found]:
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
    place = f"{DECISIONS}[{partition}]@{offset}"
    return number, entry_id, place, (wrong, f"decision {sequence}")


def _clearing_gone(books: Books, draw: random.Random) -> tuple[str, Findings]:
    number, entry_id, place, wrong = _decided(books, draw, "clearing")
    books.remove(number)
    return entry_id, {LEDGER_VERIFY: (("entry_missing", place),), VERIFY: (wrong,)}


def _receipt(books: Books, draw: random.Random) -> tuple[str, Findings]:
    number, entry_id, place, wrong = _decided(books, draw, "bank_receipt")
    books.change(number, 1, by=1)
    books.change(number, 2, by=-1)
    return entry_id, {LEDGER_VERIFY: (("entry_changed", place),), VERIFY: (wrong,)}


_NOBODYS = "journal_entry_without_decision"


def _payout_changed(books: Books, draw: random.Random) -> tuple[str, Findings]:
    """The decision has no such entry then, and the entry no such decision."""
    number, entry_id, place, wrong = _decided(books, draw, "payout_paid", _NOBODYS)
    books.change(number, 1, by=1)
    books.change(number, 2, by=-1)
    return entry_id, {
        LEDGER_VERIFY: (("entry_changed", place),), VERIFY: (wrong, (_NOBODYS, entry_id)),
    }  # fmt: skip


def _payout_elsewhere(books: Books, draw: random.Random) -> tuple[str, Findings]:
    number, entry_id, place, wrong = _decided(books, draw, "payout_created", _NOBODYS)
    mine = books.lines(number)[1][1]
    other = books.all(
        "SELECT account_id FROM accounts WHERE name LIKE 'payouts_in_transit:%' "
        "AND account_id <> ? ORDER BY name", mine,
    )[0][0]  # fmt: skip
    books.change(number, 2, account=other)
    return entry_id, {
        LEDGER_VERIFY: (("entry_changed", place),), VERIFY: (wrong, (_NOBODYS, entry_id)),
    }  # fmt: skip


def _return_gone(books: Books, draw: random.Random) -> tuple[str, Findings]:
    number, entry_id, place, wrong = _decided(books, draw, "payout_returned", _NOBODYS)
    books.remove(number)
    return entry_id, {LEDGER_VERIFY: (("entry_missing", place),), VERIFY: (wrong,)}


def _approved_by(books: Books, draw: random.Random) -> tuple[str, Findings]:
    """Who created it approves it: in the database, since the topic keeps who it was."""
    ((sequence,),) = draw.sample(
        books.all(
            "SELECT sequence FROM ledger_decisions WHERE kind = 'payout_approved' ORDER BY 1"
        ), 1,
    )  # fmt: skip
    books.do(
        "UPDATE ledger_decisions SET actor = (SELECT min(actor) FROM ledger_decisions "
        "WHERE kind = 'payout_created') WHERE sequence = ?", sequence,
    )  # fmt: skip
    place = f"ledger_decisions {sequence}"
    return place, {LEDGER_VERIFY: (("decision_changed", place),)}


DECIDED_KINDS: dict[str, Callable[[Books, random.Random], tuple[str, Findings]]] = {
    "the entry of a report's row is removed, balances too": _clearing_gone,
    "the entry of a bank's line is changed, balances too": _receipt,
    "the entry of a payout is changed on both sides, balances too": _payout_changed,
    "a payout is another merchant's, balances too": _payout_elsewhere,
    "the entry of a payout that came back is removed, balances too": _return_gone,
    "a payout is approved by who created it": _approved_by,
}


def damage_decided(books: Books, draw: random.Random) -> list[Damage]:
    """One of each kind, and what has to be found."""
    damages = []
    for kind, spoil in DECIDED_KINDS.items():
        place, found = spoil(books, draw)
        damages.append(Damage(kind, place, found))
    return damages
