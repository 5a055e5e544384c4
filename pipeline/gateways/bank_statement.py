"""Reading a bank's statement (ISO 20022 camt.053, versions 02 to 12) into its booked lines.

What does not add up is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from xml.etree.ElementTree import Element

from pipeline.domain.clearing import NUMBERED, BankLine
from pipeline.domain.keys import valid_id
from pipeline.domain.money import MINOR_UNITS, parse_amount
from pipeline.domain.posting import AMOUNT_MINOR_MAX
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.domain.validation import is_date
from pipeline.errors import UserError
from pipeline.gateways.iso20022 import Malformed, parse

# A statement of a hundred thousand lines has about 100 MB.
BYTES_MAX: Final = 128 * 1024 * 1024
_CAMT: Final = "urn:iso:std:iso:20022:tech:xsd:camt.053.001."
_NOT_PROVIDED: Final = "NOTPROVIDED"
# The forms of an xs:decimal (XML Schema part 2, 3.2.3), and what it and a date may stand between.
_DECIMAL: Final = re.compile(r"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))")
_BLANKS: Final = " \t\r\n"
_TEXT_LENGTH_MAX: Final = 140
_ID_LENGTH_MAX: Final = 64
_BOOKED_ON: Final = ("BookgDt/Dt", "BookgDt/DtTm")
_VALUE_ON: Final = ("ValDt/Dt", "ValDt/DtTm")

Named = Callable[[str], str]


class _NotAStatement(Malformed):
    """It is a camt.053, and no statement for that."""


def read_statements(
    content: bytes,
    payer: Named,
    account: Named = lambda number: number,
    *,
    latest: str = "",
) -> list[BankStatement]:
    """Every statement of the file; none of an account where nothing was ever booked, for which some
    banks send the message's head alone. ``payer`` names the gateway that the bank calls so, or "";
    ``account`` what the books call the account of a number; ``latest`` the last day that one may be
    of, "" for any.

    UserError when it is no camt.053, its lines do not lead from its opening to its closing balance,
    or it tells of a later day.
    """
    try:
        root = parse(content, _CAMT, called="camt.053", bytes_max=BYTES_MAX)
        if root.tag != "Document":
            raise _NotAStatement(f"it is a {root.tag}")
        message = root.find("BkToCstmrStmt")
        if message is None or message.find("GrpHdr") is None:
            raise _NotAStatement("it holds no message to a customer")
        each_found = message.findall("Stmt")
        found = [_statement(each, payer, account) for each in each_found]
        for each in each_found if latest else ():
            _require_come(each, latest)
    except Malformed as wrong:
        raise UserError(f"this is no bank statement (camt.053): {wrong}.") from wrong
    except UserError as wrong:
        raise UserError(f"this is no bank statement (camt.053): {wrong}") from wrong
    return found


def _statement(statement: Element, payer: Named, account: Named) -> BankStatement:
    file_id = _needed(statement, "Id")
    held_as = statement.findtext("Acct/Id/IBAN") or _needed(statement, "Acct/Id/Othr/Id")
    # Banks number their statements as they like (Max35Text): 001/2023, a space, a colon.
    if len(file_id) > _ID_LENGTH_MAX or not file_id.isprintable():
        raise _NotAStatement(
            f"its id {file_id!r} is not 1 to {_ID_LENGTH_MAX} printable characters"
        )
    kept_as = account(held_as)
    if not valid_id(kept_as):
        raise _NotAStatement(f"its account {kept_as!r} is not 1 to 64 of A-Za-z0-9._-")
    lines: list[BankLine] = []
    total: dict[str, int] = {}
    for number, entry in enumerate(statement.iterfind("Ntry"), 1):
        # What is only announced may still not come.
        status = entry.findtext("Sts/Cd") or (entry.findtext("Sts") or "").strip()
        if status == "BOOK":
            line = _line(entry, number, payer)
            lines.append(line)
            total[line.currency] = total.get(line.currency, 0) + line.amount_minor
    if len({line.line_id for line in lines}) != len(lines):
        raise _NotAStatement(f"statement {file_id} names two lines alike")
    _require_adding_up(statement, file_id, total)
    return BankStatement(kept_as, file_id, tuple(lines), number=held_as)


def _require_come(statement: Element, latest: str) -> None:
    """By the day of its balances and those its lines are booked on; the bank may well let a line
    bear interest from a later one on (its value date)."""
    days = [balance.findtext("Dt/Dt") for balance in statement.iterfind("Bal")]
    days += [_first(entry, *_BOOKED_ON, *_VALUE_ON) for entry in statement.iterfind("Ntry")]
    last = max((day.strip(_BLANKS)[:10] for day in days if day), default="")
    if last > latest:
        raise _NotAStatement(
            f"statement {_needed(statement, 'Id')} is of {last}, which is yet to come: nothing is "
            f"later than {latest} today"
        )


def _line(entry: Element, number: int, payer: Named) -> BankLine:
    amount_minor, currency = _amount(entry)
    # What cannot be booked must not be decided: it would hold up every later decision.
    if not 0 < abs(amount_minor) <= AMOUNT_MINOR_MAX:
        raise _NotAStatement(f"line {number} moves nothing, or more than an amount can be")
    day = (_first(entry, *_VALUE_ON, *_BOOKED_ON) or "").strip(_BLANKS)[:10]
    if not is_date(day):
        raise _NotAStatement(f"line {number} has no date")
    side = "Dbtr" if amount_minor > 0 else "Cdtr"
    details = entry.findall("NtryDtls/TxDtls")
    batch = name = text = ""
    # A line of several transactions is no gateway's payout: a person looks at it.
    if len(details) == 1:
        batch = details[0].findtext("Refs/EndToEndId") or ""
        name = _first(details[0], f"RltdPties/{side}/Pty/Nm", f"RltdPties/{side}/Nm") or ""
        text = details[0].findtext("RmtInf/Ustrd") or ""
    gateway = payer(name)
    if batch == _NOT_PROVIDED:
        batch = ""
    line_id = _first(entry, "AcctSvcrRef", "NtryRef") or ""
    said = " ".join(part for part in (name, text or entry.findtext("AddtlNtryInf") or "") if part)
    return BankLine(
        line_id=line_id if valid_id(line_id) else f"{NUMBERED}{number}",
        amount_minor=amount_minor,
        currency=currency,
        value_date=day,
        gateway=gateway,
        batch_id=batch if batch.isprintable() else "",
        text="".join(c for c in said if c.isprintable())[:_TEXT_LENGTH_MAX],
    )


def _amount(element: Element) -> tuple[int, str]:
    """Signed to us: what is credited is positive."""
    found = element.find("Amt")
    currency = "" if found is None else found.get("Ccy", "")
    if found is None or currency not in MINOR_UNITS:
        raise _NotAStatement("an amount has no currency of ISO 4217")
    minor = parse_amount(_plain(found.text or ""), currency)
    if minor < 0:
        raise _NotAStatement(f"the amount {found.text} has a sign, which CdtDbtInd gives")
    side = element.findtext("CdtDbtInd")
    if side not in ("CRDT", "DBIT"):
        raise _NotAStatement(f"{side!r} is neither CRDT nor DBIT")
    return (minor if side == "CRDT" else -minor), currency


def _plain(amount: str) -> str:
    """As amounts are written here: ``1000.``, ``.5`` and ``+5`` as ``1000.0``, ``0.5`` and ``5.0``.
    What is no xs:decimal stays as it is."""
    found = _DECIMAL.fullmatch(amount.strip(_BLANKS))
    if found is None:
        return amount
    sign, whole, fraction, alone = found.groups()
    return f"{sign.replace('+', '')}{whole or 0}.{fraction or alone or 0}"


def _require_adding_up(statement: Element, file_id: str, total: dict[str, int]) -> None:
    opening: dict[str, int] = {}
    closing: dict[str, int] = {}
    for balance in statement.iterfind("Bal"):
        code = balance.findtext("Tp/CdOrPrtry/Cd")
        minor, currency = _amount(balance)
        if code in ("OPBD", "PRCD"):
            opening[currency] = minor
        elif code == "CLBD":
            closing[currency] = minor
    if not opening or not closing:
        raise _NotAStatement(f"statement {file_id} has no opening or no closing balance")
    for currency in sorted({*opening, *closing, *total}):
        start, end = opening.get(currency), closing.get(currency)
        if start is None or end is None or start + total.get(currency, 0) != end:
            raise _NotAStatement(
                f"the {currency} lines of statement {file_id} do not lead from its opening to its "
                "closing balance"
            )


def _needed(element: Element, path: str) -> str:
    found = (element.findtext(path) or "").strip()
    if not found:
        raise _NotAStatement(f"a statement has no {path}")
    return found


def _first(element: Element, *paths: str) -> str | None:
    return next((text for path in paths if (text := element.findtext(path))), None)
