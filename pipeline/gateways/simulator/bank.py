"""The bank of a simulated gateway's customer: a statement (ISO 20022 camt.053.001.08) for a day.

One account into which the gateway pays its batches, and those that payments are taken from; a
statement for each account and currency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final
from xml.etree import ElementTree as Xml

from msgspec import Struct

from pipeline.domain.money import MINOR_UNITS

NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:camt.053.001.08"


class Payout(Struct, frozen=True):
    """A batch that the gateway pays, or a payment; taken from the account where ``amount_minor`` is
    negative. ``party``: the other one, if it is not the gateway; ``said``: the text of the line."""

    batch_id: str
    currency: str
    amount_minor: int
    value_date: str
    party: str = ""
    said: str = ""


class Account(Struct, frozen=True):
    """An account by its number, which is an IBAN or not."""

    number: str
    has_iban: bool = False


def statement(
    account: str,
    payer: str,
    day: str,
    payouts: Sequence[Payout],
    now_ms: int,
    others: Mapping[Account, Sequence[Payout]] = MappingProxyType({}),
) -> bytes:
    """What the bank says of a day: ``payouts`` are all there are, up to and with it, and so are
    those of ``others``."""
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = Xml.Element("Document", xmlns=NAMESPACE)
    message = Xml.SubElement(document, "BkToCstmrStmt")
    header = Xml.SubElement(message, "GrpHdr")
    _text(header, "MsgId", f"{account}-{day}")
    _text(header, "CreDtTm", stamp)
    for held, moved in {Account(account): payouts, **others}.items():
        for currency in sorted({p.currency for p in moved if p.value_date <= day}):
            of = [p for p in moved if p.currency == currency]
            _statement(message, held, payer, day, currency, of, stamp)
    # Indented: a bank's file is read by people as well.
    Xml.indent(document)
    body: bytes = Xml.tostring(document, encoding="UTF-8", xml_declaration=True)
    return body


def _statement(
    message: Xml.Element,
    account: Account,
    payer: str,
    day: str,
    currency: str,
    payouts: Iterable[Payout],
    stamp: str,
) -> None:
    found = list(payouts)
    opening = sum(p.amount_minor for p in found if p.value_date < day)
    of_day = [p for p in found if p.value_date == day and p.amount_minor]
    statement = Xml.SubElement(message, "Stmt")
    # An id has room for 35 characters: of an IBAN those that tell accounts apart.
    _text(statement, "Id", f"{account.number[-16:]}-{day}-{currency}")
    _text(statement, "CreDtTm", stamp)
    held = Xml.SubElement(statement, "Acct")
    _text(held, "Id/IBAN" if account.has_iban else "Id/Othr/Id", account.number)
    _text(held, "Ccy", currency)
    for code, minor in (
        ("OPBD", opening),
        ("CLBD", opening + sum(p.amount_minor for p in of_day)),
    ):
        balance = Xml.SubElement(statement, "Bal")
        _text(balance, "Tp/CdOrPrtry/Cd", code)
        _amount(balance, minor, currency)
        _text(balance, "Dt/Dt", day)
    for number, payout in enumerate(of_day, 1):
        entry = Xml.SubElement(statement, "Ntry")
        _text(entry, "NtryRef", str(number))
        _amount(entry, payout.amount_minor, currency)
        _text(entry, "Sts/Cd", "BOOK")
        _text(entry, "BookgDt/Dt", day)
        _text(entry, "ValDt/Dt", day)
        _text(entry, "AcctSvcrRef", f"{day.replace('-', '')}-{currency}-{number}")
        domain = Xml.SubElement(Xml.SubElement(entry, "BkTxCd"), "Domn")
        _text(domain, "Cd", "PMNT")
        family = Xml.SubElement(domain, "Fmly")
        _text(family, "Cd", "RCDT" if payout.amount_minor > 0 else "IDDT")
        _text(family, "SubFmlyCd", "ESCT" if payout.amount_minor > 0 else "ESDD")
        details = Xml.SubElement(Xml.SubElement(entry, "NtryDtls"), "TxDtls")
        _text(details, "Refs/EndToEndId", payout.batch_id)
        side = "Dbtr" if payout.amount_minor > 0 else "Cdtr"
        _text(details, f"RltdPties/{side}/Pty/Nm", payout.party or payer)
        _text(details, "RmtInf/Ustrd", payout.said or f"SETTLEMENT {payout.batch_id}")


def _amount(parent: Xml.Element, minor: int, currency: str) -> None:
    digits = MINOR_UNITS[currency]
    whole, rest = divmod(abs(minor), 10**digits)
    amount = Xml.SubElement(parent, "Amt", Ccy=currency)
    amount.text = f"{whole}.{rest:0{digits}d}" if digits else str(whole)
    _text(parent, "CdtDbtInd", "CRDT" if minor >= 0 else "DBIT")


def _text(parent: Xml.Element, path: str, text: str) -> None:
    """The element at the end of a path of new ones."""
    for name in path.split("/"):
        parent = Xml.SubElement(parent, name)
    parent.text = text
