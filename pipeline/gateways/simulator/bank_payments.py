"""Payments that the simulated bank was told to make: pain.001 files in, debits on its statements.

A message is booked once, whatever it is sent again. Each of its transfers is taken from the account
that the message names, on one day; what a seed draws comes back on the next business day. A day
whose statement was given out takes no more lines: no bank changes one.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from typing import Final
from xml.etree.ElementTree import Element

from msgspec import Struct

from pipeline.domain.money import decimal, parse_amount
from pipeline.errors import UserError
from pipeline.gateways.iso20022 import Malformed, parse
from pipeline.gateways.simulator.bank import Account, Payout
from pipeline.gateways.simulator.reports import business_day_from, is_day, value_date

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS bank_messages (
    message_id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    value_date TEXT NOT NULL,
    return_date TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bank_payments (
    message_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    account TEXT NOT NULL,
    has_iban INTEGER NOT NULL,
    end_to_end_id TEXT NOT NULL,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    payee TEXT NOT NULL,
    said TEXT NOT NULL,
    comes_back INTEGER NOT NULL,
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bank_statements (
    given_out TEXT PRIMARY KEY
) WITHOUT ROWID;
"""

# Of so many payments one comes back, if nothing else is said.
RETURN_EVERY: Final = 20
# Some ten thousand payments of a message.
BYTES_MAX: Final = 16 * 1024 * 1024
_PAIN: Final = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"


class PaymentsRefused(UserError):
    """Why the bank does not take a message, in words."""


class Transfer(Struct, frozen=True):
    """One payment of a message."""

    account: Account
    end_to_end_id: str
    amount_minor: int
    currency: str
    payee: str
    said: str


class Message(Struct, frozen=True):
    """What the bank is told to pay; ``digest`` is of all that its file says."""

    message_id: str
    execution_date: str
    transfers: tuple[Transfer, ...]
    digest: bytes


class Taken(Struct, frozen=True):
    """What becomes of a message: as it was decided when it came first."""

    message_id: str
    payments: int
    value_date: str
    returned: tuple[str, ...]
    return_date: str


def read_message(content: bytes) -> Message:
    """The message of a pain.001.001.09 file. PaymentsRefused for one that a bank would not take."""
    try:
        root = parse(content, _PAIN, called="pain.001.001.09", bytes_max=BYTES_MAX)
    except Malformed as wrong:
        raise PaymentsRefused(str(wrong)) from wrong
    initiation = root.find("CstmrCdtTrfInitn")
    if initiation is None:
        raise PaymentsRefused("it is no pain.001.001.09")
    transfers: list[Transfer] = []
    days = set()
    for payment in initiation.iterfind("PmtInf"):
        days.add(_needed(payment, "ReqdExctnDt/Dt"))
        account = Account(
            _said(payment, "DbtrAcct/Id/IBAN") or _needed(payment, "DbtrAcct/Id/Othr/Id"),
            has_iban=bool(_said(payment, "DbtrAcct/Id/IBAN")),
        )
        transfers += [_transfer(each, account) for each in payment.iterfind("CdtTrfTxInf")]
    if len(days) != 1 or not is_day(min(days)):
        raise PaymentsRefused("it does not have one execution date")
    _require_sums(initiation, transfers)
    message_id = _needed(initiation, "GrpHdr/MsgId")
    return Message(message_id, min(days), tuple(transfers), hashlib.sha256(content).digest())


def take_message(
    db: sqlite3.Connection, message: Message, *, earliest: str, seed: int, return_every: int
) -> Taken:
    """Book a message, once. PaymentsRefused where another one came under its id.

    Its payments are taken on the first day from Monday to Friday from ``earliest`` and its
    execution date on whose statement was not given out. ``return_every`` 0: none comes back.
    """
    known = db.execute(
        "SELECT digest, value_date, return_date FROM bank_messages WHERE message_id = ?",
        (message.message_id,),
    ).fetchone()
    if known is not None and known[0] != message.digest:
        raise PaymentsRefused(f"another message {message.message_id} was taken before")
    if known is None:
        paid_on = _open_day(db, business_day_from(max(earliest, message.execution_date)))
        return_date = _open_day(db, value_date(paid_on, 1))
        db.execute(
            "INSERT INTO bank_messages VALUES (?, ?, ?, ?)",
            (message.message_id, message.digest, paid_on, return_date),
        )
        db.executemany(
            "INSERT INTO bank_payments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (message.message_id, number, t.account.number, t.account.has_iban, t.end_to_end_id,
                 t.amount_minor, t.currency, t.payee, t.said,
                 _comes_back(seed, t.end_to_end_id, return_every))
                for number, t in enumerate(message.transfers, 1)
            ],
        )  # fmt: skip
    else:
        _, paid_on, return_date = known
    rows = db.execute(
        "SELECT end_to_end_id, comes_back FROM bank_payments WHERE message_id = ? ORDER BY number",
        (message.message_id,),
    ).fetchall()
    returned = tuple(payment for payment, comes_back in rows if comes_back)
    return Taken(message.message_id, len(rows), paid_on, returned, return_date if returned else "")


def give_out(db: sqlite3.Connection, day: str) -> None:
    """From now on no payment is taken on that day, nor comes back: its statement is known."""
    db.execute("INSERT OR IGNORE INTO bank_statements VALUES (?)", (day,))


def movements(db: sqlite3.Connection) -> dict[Account, list[Payout]]:
    """By the account they are taken from: what was paid, and what came back."""
    found: dict[Account, list[Payout]] = {}
    rows = db.execute(
        "SELECT account, has_iban, end_to_end_id, amount_minor, currency, payee, said, comes_back, "
        "value_date, return_date FROM bank_payments JOIN bank_messages USING (message_id) "
        "ORDER BY value_date, message_id, number"
    )
    for number, has_iban, payment, minor, currency, payee, said, comes_back, paid, back in rows:
        of = found.setdefault(Account(number, has_iban=bool(has_iban)), [])
        of.append(Payout(payment, currency, -minor, paid, party=payee, said=said))
        if comes_back:
            text = "RETURNED: ACCOUNT CLOSED"
            of.append(Payout(payment, currency, minor, back, party=payee, said=text))
    return found


def _open_day(db: sqlite3.Connection, day: str) -> str:
    known = "SELECT 1 FROM bank_statements WHERE given_out = ?"
    while db.execute(known, (day,)).fetchone() is not None:
        day = value_date(day, 1)
    return day


def _comes_back(seed: int, payment: str, every: int) -> bool:
    digest = hashlib.blake2b(f"{seed}:{payment}".encode(), digest_size=8).digest()
    return bool(every) and int.from_bytes(digest) % every == 0


def _transfer(found: Element, account: Account) -> Transfer:
    amount = found.find("Amt/InstdAmt")
    if amount is None:
        raise PaymentsRefused("a transfer has no amount")
    currency = amount.get("Ccy", "")
    try:
        amount_minor = parse_amount(amount.text or "", currency)
    except UserError as error:
        raise PaymentsRefused(str(error)) from error
    if amount_minor <= 0:
        raise PaymentsRefused("a transfer moves nothing")
    return Transfer(
        account,
        _needed(found, "PmtId/EndToEndId"),
        amount_minor,
        currency,
        _needed(found, "Cdtr/Nm"),
        _said(found, "RmtInf/Ustrd"),
    )


def _require_sums(initiation: Element, transfers: Iterable[Transfer]) -> None:
    found = list(transfers)
    currencies = {each.currency for each in found}
    if len(currencies) != 1 or _needed(initiation, "GrpHdr/NbOfTxs") != str(len(found)):
        raise PaymentsRefused("its transfers are not as many as it says, or of several currencies")
    total = decimal(sum(each.amount_minor for each in found), min(currencies))
    if _needed(initiation, "GrpHdr/CtrlSum") != total:
        raise PaymentsRefused(f"its transfers are {total} in all, and its sum another one")


def _said(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _needed(element: Element, path: str) -> str:
    found = _said(element, path)
    if not found:
        raise PaymentsRefused(f"it has no {path}")
    return found
