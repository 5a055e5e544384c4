"""``legacy``: one script for everything, lines of text for answers, and no idempotency at all.

Its contract is in docs/simulator.md, section Legacy.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.gateways.simulator import operations
from pipeline.gateways.simulator.operations import Asked, Dispute, Operation, Reply
from pipeline.gateways.simulator.wires.base import (
    Parts,
    Question,
    Route,
    checked_instrument,
    form_fields,
    needed,
    whole_amount,
)

_ACTIONS = {
    "SALE": operations.CHARGE,
    "AUTH": operations.AUTHORIZE,
    "CAPTURE": operations.CAPTURE,
    "VOID": operations.VOID,
    "REFUND": operations.REFUND,
}
_CODES = {
    "do_not_honor": "D05",
    "card_declined": "D01",
    "lost_card": "D41",
    "stolen_card": "D43",
    "insufficient_funds": "D51",
    "expired_card": "D54",
    "processing_error": "D96",
    "authentication_required": "D65",
    "invalid_request": "E12",
    "currency_not_supported": "E57",
    "charge_not_found": "E76",
    "authorization_not_found": "E76",
    "refund_exceeds_charge": "E77",
    "capture_exceeds_authorization": "E78",
    "already_captured": "E79",
    "authorization_voided": "E80",
    "authorization_expired": "E81",
    "authorization_not_open": "E82",
    "request_in_progress": "E95",
    "internal_error": "E97",
    "rate_limited": "E98",
}
NOT_FOUND = "E25"
RETURNED_CODE = "D90"


class LegacyWire:
    """Everything is a 200; STATUS says what it is: OK, WAIT, REDIRECT, NO or ERR."""

    content_type = "text/plain"
    routes = (Route("POST", "/gateway.cgi", ""),)

    def __init__(self, public_url: str) -> None:
        self._public_url = public_url

    def key(self, parts: Parts) -> str | None:
        return None

    def parse(self, hint: str, parts: Parts) -> Asked | Question:
        fields = form_fields(parts.raw)
        action = fields.get("ACTION", "")
        if action == "QUERY":
            kind = _ACTIONS.get(fields.get("WHAT", ""))
            if kind is None:
                raise ValueError(f"WHAT must be one of {', '.join(_ACTIONS)}")
            return Question(kind, reference=needed(fields, "MERCHREF"))
        kind = _ACTIONS.get(action)
        if kind is None:
            raise ValueError(f"ACTION must be QUERY or one of {', '.join(_ACTIONS)}")
        reference = needed(fields, "MERCHREF")
        if kind in operations.FIRST:
            return Asked(
                kind,
                reference,
                whole_amount(fields.get("AMOUNT", ""), "AMOUNT"),
                needed(fields, "CURR"),
                checked_instrument(needed(fields, "TOKEN"), "TOKEN"),
                needed(fields, "MID"),
                needed(fields, "ORDERNO"),
            )
        amount = (
            None if kind == operations.VOID else whole_amount(fields.get("AMOUNT", ""), "AMOUNT")
        )
        return Asked(kind, reference, amount, parent_id=needed(fields, "TXID"))

    def answer(self, operation: Operation) -> Reply:
        status = {
            operations.PENDING: "WAIT",
            operations.ACTION_REQUIRED: "REDIRECT",
            operations.FAILED: "NO",
        }
        lines = {
            "STATUS": status.get(operation.status, "OK"),
            "TXID": operation.id,
            "MERCHREF": operation.reference,
            "AMOUNT": str(operation.amount_minor),
            "CURR": operation.currency,
        }
        if operation.closed == operations.RETURNED:
            lines["CODE"] = RETURNED_CODE
        elif operation.code is not None:
            lines["CODE"] = _CODES.get(operation.code, "D01")
        if operation.status == operations.ACTION_REQUIRED:
            lines["URL"] = f"{self._public_url}/redirect/{operation.id}"
        return _lines(lines)

    def refusal(self, code: str, message: str, asked: Asked | None) -> Reply:
        declined = code.startswith("declined:")
        short = _CODES.get(code.removeprefix("declined:"), "D01" if declined else "E12")
        lines = {"STATUS": "NO" if declined else "ERR", "CODE": short, "TEXT": message}
        if asked is not None:
            lines["MERCHREF"] = asked.reference
        return _lines(lines)

    def found(self, operation: Operation) -> Reply:
        return self.answer(operation)

    def not_found(self, question: Question) -> Reply:
        return _lines({"STATUS": "ERR", "CODE": NOT_FOUND, "TEXT": "NO SUCH TRANSACTION"})

    def operation_notice(self, operation: Operation, notice_id: str) -> bytes | None:
        return None

    def dispute_notice(self, dispute: Dispute, charge: Operation, notice_id: str) -> bytes | None:
        return None

    def notice_headers(
        self, secrets: Sequence[str], notice_id: str, now_s: int, body: bytes
    ) -> dict[str, str]:
        return {}


def _lines(fields: dict[str, str]) -> Reply:
    text = "".join(f"{name}={' '.join(value.split())}\r\n" for name, value in fields.items())
    return Reply(200, text.encode())
