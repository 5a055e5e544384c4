"""Books that somebody has had a hand in: rows of a copy of the ledger, past its tables' guards.

Rows are captures with their fees, and disputes, drawn by a seed, never next to one another in a
chain, so that each thing that is found has one cause.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.books.damaged_decisions import damage_decided
from benchmarks.books.findings import LEDGER_VERIFY, RECONCILE, VERIFY, Damage, Found
from benchmarks.books.unguarded import SETTLEMENTS, Books, Drawer, Entry

_STRANGER = "a-stranger"


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


def _dispute_charged(books: Books, e: Entry) -> dict[str, tuple[Found, ...]]:
    """To the merchant, whose terms have it held."""
    held = books.name(books.lines(e.number)[1][1])
    merchant = held.partition(":")[2]
    ((payable,),) = books.all(
        "SELECT account_id FROM accounts WHERE name = ?", f"merchant_payable:{merchant}"
    )
    books.change(e.number, 2, account=payable)
    return {
        LEDGER_VERIFY: (("entry_changed", e.place),),
        VERIFY: (("journal_entry_accounts_wrong", e.entry_id), *books.cleared(e)),
    }


DISPUTE_KINDS: dict[str, Callable[[Books, Entry], dict[str, tuple[Found, ...]]]] = {
    "a dispute's amount is changed on both sides, balances too": _amount,
    "a dispute is charged to its merchant, balances too": _dispute_charged,
    "a dispute's entry is removed, balances too": _gone,
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


# Of the books as a whole: one of each.
OTHER_KINDS: dict[
    str, Callable[[Books, random.Random], tuple[str, dict[str, tuple[Found, ...]]]]
] = {
    "a balance is changed on both sides": _balance,
    "the ledger's offset is moved back": _offset_back,
    "the ledger's offset is moved past the end": _offset_on,
    "a decision is changed": _decision,
}


def damage_ledger(file: Path, draw: random.Random, each: int) -> list[Damage]:
    """Damage a copy of the books and say what has to be found."""
    books = Books(file)
    with closing(books.db):
        books.db.execute("BEGIN")
        drawer = Drawer(books, draw)
        damages = []
        # What there is less of is drawn first.
        for what, kinds in (("dispute", DISPUTE_KINDS), ("capture", ENTRY_KINDS)):
            drawn = list(drawer.draw(what, each * len(kinds)))
            for at, (kind, spoil) in enumerate(kinds.items()):
                damages += [
                    Damage(kind, f"{entry.entry_id} of {entry.place}", spoil(books, entry))
                    for entry in drawn[each * at : each * (at + 1)]
                ]
        for kind, spoil_ in OTHER_KINDS.items():
            place, found = spoil_(books, draw)
            damages.append(Damage(kind, place, found))
        damages += damage_decided(books, draw)
        books.finish()
    return damages


def _joined(*found: dict[str, tuple[Found, ...]]) -> dict[str, tuple[Found, ...]]:
    return {
        check: tuple(each for part in found for each in part.get(check, ()))
        for check in {check for part in found for check in part}
    }
