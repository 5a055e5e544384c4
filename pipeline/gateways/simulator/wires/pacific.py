"""``pacific``: amounts as decimal strings, numbers for codes, refunds that are pending at first.

Its contract is in docs/simulator.md, section Pacific.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from hashlib import sha512
from typing import Annotated, Any

import msgspec

from pipeline.gateways.simulator import operations
from pipeline.gateways.simulator.operations import Asked, Dispute, Operation, Reply
from pipeline.gateways.simulator.wires.base import (
    AMOUNT_MINOR_MAX,
    Parts,
    Question,
    Route,
    checked_instrument,
    checked_key,
    decoded,
    needed,
)

KEY_HEADER = "Pacific-Idempotency-Id"

_TYPES = {
    operations.CHARGE: "sale",
    operations.AUTHORIZE: "auth",
    operations.CAPTURE: "settle",
    operations.VOID: "reverse",
    operations.REFUND: "refund",
}
_KINDS = {name: kind for kind, name in _TYPES.items()}

APPROVED, PENDING_CODE, ACTION, NOT_FOUND, RETURNED_CODE = 0, 10, 11, 25, 90
_CODES = {
    "do_not_honor": 5,
    "invalid_request": 12,
    "card_declined": 15,
    "lost_card": 41,
    "stolen_card": 43,
    "insufficient_funds": 51,
    "expired_card": 54,
    "currency_not_supported": 57,
    "authentication_required": 65,
    "charge_not_found": 76,
    "authorization_not_found": 76,
    "refund_exceeds_charge": 77,
    "capture_exceeds_authorization": 78,
    "already_captured": 79,
    "authorization_voided": 80,
    "authorization_expired": 81,
    "authorization_not_open": 82,
    "idempotency_key_reused": 94,
    "request_in_progress": 95,
    "processing_error": 96,
    "internal_error": 97,
    "rate_limited": 98,
}
_DISPUTE_CODES = {"inquiry": 1, "opened": 2, "won": 3, "lost": 4, "pre_arbitration": 5}

# The currencies of the region whose amounts have no decimals.
_DIGITS = {"JPY": 0, "KRW": 0}

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Body(msgspec.Struct, frozen=True):
    """Body of every POST. Sales and authorizations name card, merchant, order and currency."""

    clientRef: Text
    amount: Text | None = None
    currency: Text | None = None
    card: Text | None = None
    merchant: Text | None = None
    order: Text | None = None


class PacificWire:
    """Every answer is a 200 with a resultCode; only a server in trouble answers otherwise."""

    content_type = "application/json"
    routes = (
        Route("POST", "/api/v2/sale", f"!{operations.CHARGE}"),
        Route("POST", "/api/v2/auth", f"!{operations.AUTHORIZE}"),
        Route("POST", "/api/v2/txn/{id}/settle", f"!{operations.CAPTURE}"),
        Route("POST", "/api/v2/txn/{id}/reverse", f"!{operations.VOID}"),
        Route("POST", "/api/v2/txn/{id}/refund", f"!{operations.REFUND}"),
        Route("GET", "/api/v2/lookup", "?"),
    )

    def __init__(self, public_url: str) -> None:
        self._public_url = public_url

    def key(self, parts: Parts) -> str | None:
        return checked_key(parts.headers.get(KEY_HEADER, ""), KEY_HEADER)

    def parse(self, hint: str, parts: Parts) -> Asked | Question:
        if hint == "?":
            kind = _KINDS.get(parts.query.get("type", ""))
            if kind is None:
                raise ValueError(f"type must be one of {', '.join(_KINDS)}")
            return Question(kind, reference=needed(parts.query, "clientRef"))
        kind = hint[1:]
        body = decoded(parts.raw, Body)
        if kind in operations.FIRST:
            if not (body.currency and body.card and body.merchant and body.order and body.amount):
                raise ValueError("amount, currency, card, merchant and order are needed")
            return Asked(
                kind,
                body.clientRef,
                _minor(body.amount, body.currency),
                body.currency,
                checked_instrument(body.card, "card"),
                body.merchant,
                body.order,
            )
        if kind == operations.VOID:
            return Asked(kind, body.clientRef, parent_id=parts.match["id"])
        if not (body.amount and body.currency):
            raise ValueError("amount and currency are needed")
        amount_minor = _minor(body.amount, body.currency)
        return Asked(kind, body.clientRef, amount_minor, parent_id=parts.match["id"])

    def answer(self, operation: Operation) -> Reply:
        return self._result(operation)

    def refusal(self, code: str, message: str, asked: Asked | None) -> Reply:
        number = _CODES.get(code.removeprefix("declined:"), 15)
        status = {98: 429, 97: 500, 12: 400}.get(number, 200)
        content: dict[str, Any] = {"resultCode": number, "resultText": message}
        if asked is not None:
            content["clientRef"] = asked.reference
        return Reply(status, msgspec.json.encode(content))

    def found(self, operation: Operation) -> Reply:
        return self._result(operation)

    def not_found(self, question: Question) -> Reply:
        content = {"resultCode": NOT_FOUND, "resultText": "No such transaction."}
        return Reply(200, msgspec.json.encode(content))

    def operation_notice(self, operation: Operation, notice_id: str) -> bytes | None:
        content = {
            "noticeId": notice_id,
            "event": "txn",
            "txnId": operation.id,
            "type": _TYPES[operation.kind],
            "resultCode": _number(operation),
            "amount": _major(operation.amount_minor, operation.currency),
            "currency": operation.currency,
        }
        return msgspec.json.encode(content)

    def dispute_notice(self, dispute: Dispute, charge: Operation, notice_id: str) -> bytes | None:
        content = {
            "noticeId": notice_id,
            "event": "chargeback",
            "txnId": dispute.charge_id,
            "caseId": dispute.id,
            "stage": _DISPUTE_CODES[dispute.state],
            "caseVersion": dispute.changes,
            "amount": _major(dispute.amount_minor, dispute.currency),
            "fee": _major(dispute.fee_minor, dispute.currency),
            "currency": dispute.currency,
        }
        return msgspec.json.encode(content)

    def notice_headers(
        self, secrets: Sequence[str], notice_id: str, now_s: int, body: bytes
    ) -> dict[str, str]:
        signed = f"{now_s}\n".encode() + body
        marks = [
            base64.b64encode(hmac.new(secret.encode(), signed, sha512).digest()).decode()
            for secret in secrets
        ]
        return {"X-Pacific-Date": str(now_s), "X-Pacific-Signature": " ".join(marks)}

    def _result(self, operation: Operation) -> Reply:
        txn: dict[str, Any] = {
            "txnId": operation.id,
            "clientRef": operation.reference,
            "type": _TYPES[operation.kind],
            "amount": _major(operation.amount_minor, operation.currency),
            "currency": operation.currency,
        }
        content: dict[str, Any] = {"resultCode": _number(operation), "txn": txn}
        if operation.status == operations.ACTION_REQUIRED:
            content["challengeUrl"] = f"{self._public_url}/acs/{operation.id}"
        return Reply(200, msgspec.json.encode(content))


def _number(operation: Operation) -> int:
    if operation.closed == operations.RETURNED:
        return RETURNED_CODE
    if operation.status == operations.FAILED:
        return _CODES.get(operation.code or "", 15)
    return {operations.PENDING: PENDING_CODE, operations.ACTION_REQUIRED: ACTION}.get(
        operation.status, APPROVED
    )


def _minor(text: str, currency: str) -> int:
    digits = _DIGITS.get(currency, 2)
    pattern = rf"([0-9]{{1,16}})\.([0-9]{{{digits}}})" if digits else r"([0-9]{1,16})()"
    match = re.fullmatch(pattern, text, re.ASCII)
    if match is None:
        raise ValueError(f"amount must have {digits} decimals in {currency}, not {text!r}")
    amount_minor = int(match[1] + match[2])
    if not 1 <= amount_minor <= AMOUNT_MINOR_MAX:
        raise ValueError("amount must be above zero")
    return amount_minor


def _major(amount_minor: int, currency: str) -> str:
    digits = _DIGITS.get(currency, 2)
    if not digits:
        return str(amount_minor)
    text = str(amount_minor).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]}"
