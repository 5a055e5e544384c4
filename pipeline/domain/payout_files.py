"""A message of payouts as files: ISO 20022 pain.001 for the bank, CSV for people.

Both are made of what was decided and of nothing else, so the same message is the same bytes
whenever it is written. The XML is a CustomerCreditTransferInitiation, pain.001.001.09.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from io import StringIO
from typing import Any, Final
from xml.etree import ElementTree

from msgspec import Struct

from pipeline.domain.csv_cells import cell
from pipeline.domain.invariant import invariant
from pipeline.domain.money import decimal
from pipeline.domain.payouts import Payout, PayoutBook
from pipeline.errors import UserError

NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
CSV_COLUMNS: Final = (
    "message_id", "execution_date", "end_to_end_id", "merchant", "business_date", "currency",
    "amount", "held", "released", "collected", "holder", "iban", "number", "bic", "created_by",
    "approved_by",
)  # fmt: skip


class PayoutMessage(Struct, frozen=True, kw_only=True):
    """Payouts that were submitted together: one currency, from one account of ours.

    Accounts are as the decisions hold them: holder, and iban or number with bic.
    """

    message_id: str
    currency: str
    execution_date: str
    submitted_at_ms: int
    debtor: Mapping[str, Any]
    transfers: tuple[tuple[Payout, Mapping[str, Any]], ...]


def payout_message(book: PayoutBook, message_id: str) -> PayoutMessage:
    """As it was submitted, whatever has become of its payouts since. UserError for no such id."""
    submission = book.submissions.get(message_id)
    if submission is None:
        raise UserError(f"no message {message_id!r} was ever submitted.")
    payouts = [book.payouts[each] for each in submission.payout_ids]
    return PayoutMessage(
        message_id=message_id,
        currency=payouts[0].currency,
        execution_date=submission.execution_date,
        submitted_at_ms=submission.submitted_at_ms,
        debtor=book.created[payouts[0].payout_id]["paid_from"],
        transfers=tuple((p, book.created[p.payout_id]["account"]) for p in payouts),
    )


def pain_001(message: PayoutMessage) -> bytes:
    """The bank's file, in UTF-8."""
    transfers = message.transfers
    invariant(bool(transfers), "a message has a transfer")
    invariant(
        all(payout.currency == message.currency for payout, _ in transfers),
        "the transfers of a message have one currency",
    )
    count = str(len(transfers))
    total = decimal(sum(payout.amount_minor for payout, _ in transfers), message.currency)
    document = ElementTree.Element("Document", xmlns=NAMESPACE)
    initiation = _in(document, "CstmrCdtTrfInitn")
    header = _in(initiation, "GrpHdr")
    _in(header, "MsgId", message.message_id)
    _in(header, "CreDtTm", _moment(message.submitted_at_ms))
    _in(header, "NbOfTxs", count)
    _in(header, "CtrlSum", total)
    _in(_in(header, "InitgPty"), "Nm", message.debtor["holder"])
    payment = _in(initiation, "PmtInf")
    _in(payment, "PmtInfId", message.message_id)
    _in(payment, "PmtMtd", "TRF")
    # One line of the statement for each: a line of several transactions confirms none.
    _in(payment, "BtchBookg", "false")
    _in(payment, "NbOfTxs", count)
    _in(payment, "CtrlSum", total)
    _in(_in(payment, "ReqdExctnDt"), "Dt", message.execution_date)
    _in(_in(payment, "Dbtr"), "Nm", message.debtor["holder"])
    _account(_in(payment, "DbtrAcct"), message.debtor, message.currency)
    _agent(_in(payment, "DbtrAgt"), message.debtor["bic"])
    for payout, account in transfers:
        transfer = _in(payment, "CdtTrfTxInf")
        _in(_in(transfer, "PmtId"), "EndToEndId", payout.payout_id)
        amount = _in(
            _in(transfer, "Amt"), "InstdAmt", decimal(payout.amount_minor, payout.currency)
        )
        amount.set("Ccy", payout.currency)
        if account["bic"]:
            _agent(_in(transfer, "CdtrAgt"), account["bic"])
        _in(_in(transfer, "Cdtr"), "Nm", account["holder"])
        _account(_in(transfer, "CdtrAcct"), account)
        said = f"{payout.merchant_id} {payout.business_date}"
        _in(_in(transfer, "RmtInf"), "Ustrd", said)
    ElementTree.indent(document)
    # Written by hand: the library's own declaration has single quotes, and a new line after it.
    text = ElementTree.tostring(document, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def payouts_csv(message: PayoutMessage) -> bytes:
    """CSV (RFC 4180) with a header, one row for each payout."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for payout, account in message.transfers:
        amounts = (
            decimal(minor, payout.currency)
            for minor in (payout.amount_minor, payout.held_minor, payout.released_minor,
                          payout.collected_minor)
        )  # fmt: skip
        writer.writerow(
            (
                cell(message.message_id), message.execution_date, payout.payout_id,
                cell(payout.merchant_id), payout.business_date, payout.currency, *amounts,
                *(cell(account[name]) for name in ("holder", "iban", "number", "bic")),
                cell(payout.created_by), cell(payout.approved_by),
            )
        )  # fmt: skip
    return out.getvalue().encode()


def _in(parent: Any, name: str, text: str | None = None) -> Any:
    found = ElementTree.SubElement(parent, name)
    found.text = text
    return found


def _account(at: Any, account: Mapping[str, Any], currency: str = "") -> None:
    identification = _in(at, "Id")
    if account["iban"]:
        _in(identification, "IBAN", account["iban"])
    else:
        _in(_in(identification, "Othr"), "Id", account["number"])
    if currency:
        _in(at, "Ccy", currency)


def _agent(at: Any, bic: str) -> None:
    """The schema wants a debtor's bank; with the IBAN alone it is said to be left out."""
    institution = _in(at, "FinInstnId")
    if bic:
        _in(institution, "BICFI", bic)
    else:
        _in(_in(institution, "Othr"), "Id", "NOTPROVIDED")


def _moment(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}Z"
