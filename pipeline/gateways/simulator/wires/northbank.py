"""``northbank``: forms in, nested JSON out, captures that take their time, declines that are kept.

Its contract is in docs/simulator.md, section Northbank.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

from pipeline.gateways.simulator import operations
from pipeline.gateways.simulator.operations import Asked, Dispute, Operation, Reply
from pipeline.gateways.simulator.wires.base import (
    Parts,
    Question,
    Route,
    checked_instrument,
    checked_key,
    form_fields,
    needed,
    whole_amount,
)

KEY_HEADER = "X-Request-Key"

_NOUNS = {
    operations.CHARGE: "payment",
    operations.AUTHORIZE: "payment",
    operations.CAPTURE: "capture",
    operations.VOID: "cancellation",
    operations.REFUND: "refund",
}
_DONE = {
    operations.CHARGE: "CAPTURED",
    operations.AUTHORIZE: "AUTHORISED",
    operations.CAPTURE: "CAPTURED",
    operations.VOID: "CANCELLED",
    operations.REFUND: "REFUNDED",
}
# The bank's own reasons for what the simulator calls otherwise.
_REASONS = {
    "insufficient_funds": "NSF",
    "card_declined": "REFER",
    "do_not_honor": "DNH",
    "expired_card": "CARD_EXPIRED",
    "lost_card": "PICKUP_LOST",
    "processing_error": "ISSUER_FAULT",
    "stolen_card": "PICKUP_STOLEN",
    "authentication_required": "SCA_NEEDED",
}
_REFUSALS = {
    "invalid_request": (400, "request_error", "MALFORMED"),
    "currency_not_supported": (400, "request_error", "CURRENCY_NOT_ENABLED"),
    "request_in_progress": (409, "idempotency_error", "KEY_IN_USE"),
    "idempotency_key_reused": (409, "idempotency_error", "KEY_REUSED"),
    "rate_limited": (429, "throttled", "TOO_MANY"),
    "internal_error": (500, "server_error", "INTERNAL"),
    "charge_not_found": (404, "request_error", "NO_SUCH_PAYMENT"),
    "authorization_not_found": (404, "request_error", "NO_SUCH_PAYMENT"),
    "refund_exceeds_charge": (422, "state_error", "OVER_REFUND"),
    "capture_exceeds_authorization": (422, "state_error", "OVER_CAPTURE"),
    "already_captured": (422, "state_error", "ALREADY_CAPTURED"),
    "authorization_voided": (422, "state_error", "AUTHORISATION_CANCELLED"),
    "authorization_expired": (422, "state_error", "AUTHORISATION_EXPIRED"),
    "authorization_not_open": (422, "state_error", "AUTHORISATION_NOT_OPEN"),
}
_DISPUTES = {
    "inquiry": "RETRIEVAL",
    "opened": "CHARGEBACK",
    "won": "CHARGEBACK_REVERSED",
    "lost": "CHARGEBACK_FINAL",
    "pre_arbitration": "PRE_ARBITRATION",
}


class NorthbankWire:
    """Bodies are forms; currencies are lower case; a decline is an answer and not an error."""

    content_type = "application/json"
    routes = (
        Route("POST", "/payments", "!payment"),
        Route("POST", "/payments/{id}/captures", f"!{operations.CAPTURE}"),
        Route("POST", "/payments/{id}/cancellations", f"!{operations.VOID}"),
        Route("POST", "/payments/{id}/refunds", f"!{operations.REFUND}"),
        Route("GET", "/operations", "?"),
    )

    def __init__(self, public_url: str) -> None:
        self._public_url = public_url

    def key(self, parts: Parts) -> str | None:
        return checked_key(parts.headers.get(KEY_HEADER, ""), KEY_HEADER)

    def parse(self, hint: str, parts: Parts) -> Asked | Question:
        if hint == "?":
            kinds = {
                "payment": operations.CHARGE,
                "authorisation": operations.AUTHORIZE,
                "capture": operations.CAPTURE,
                "cancellation": operations.VOID,
                "refund": operations.REFUND,
            }
            kind = kinds.get(parts.query.get("type", ""))
            if kind is None:
                raise ValueError(f"type must be one of {', '.join(kinds)}")
            return Question(kind, reference=needed(parts.query, "merchant_reference"))
        fields = form_fields(parts.raw)
        reference = needed(fields, "merchant_reference")
        if hint == "!payment":
            mode = fields.get("capture_mode", "immediate")
            if mode not in ("immediate", "manual"):
                raise ValueError("capture_mode must be immediate or manual")
            return Asked(
                operations.CHARGE if mode == "immediate" else operations.AUTHORIZE,
                reference,
                whole_amount(fields.get("amount", ""), "amount"),
                needed(fields, "currency").upper(),
                checked_instrument(needed(fields, "source"), "source"),
                needed(fields, "shop"),
                needed(fields, "shop_order"),
            )
        kind = hint[1:]
        amount = (
            None if kind == operations.VOID else whole_amount(fields.get("amount", ""), "amount")
        )
        return Asked(kind, reference, amount, parent_id=parts.match["id"])

    def answer(self, operation: Operation) -> Reply:
        waits = operation.status in (operations.PENDING, operations.ACTION_REQUIRED)
        content = {_NOUNS[operation.kind]: self._view(operation)}
        return Reply(202 if waits else 200, msgspec.json.encode(content))

    def refusal(self, code: str, message: str, asked: Asked | None) -> Reply:
        if code.startswith("declined:"):
            # Only operations on a payment: a declined payment itself is an answer.
            reason = _REASONS.get(code.removeprefix("declined:"), "REFER")
            return Reply(422, _error("refused", reason, message))
        status, kind, reason = _REFUSALS.get(code, (422, "state_error", code.upper()))
        return Reply(status, _error(kind, reason, message))

    def found(self, operation: Operation) -> Reply:
        return Reply(200, msgspec.json.encode({"operations": [self._view(operation)]}))

    def not_found(self, question: Question) -> Reply:
        return Reply(200, msgspec.json.encode({"operations": []}))

    def operation_notice(self, operation: Operation, notice_id: str) -> bytes | None:
        view = self._view(operation)
        content = {
            "notice": notice_id,
            "about": _NOUNS[operation.kind],
            "shop": operation.merchant_id,
            "shop_order": operation.order_id,
            "operation": view,
        }
        return msgspec.json.encode(content)

    def dispute_notice(self, dispute: Dispute, charge: Operation, notice_id: str) -> bytes | None:
        content = {
            "notice": notice_id,
            "about": "dispute",
            "shop": charge.merchant_id,
            "shop_order": charge.order_id,
            "dispute": {
                "id": dispute.id,
                "payment": dispute.charge_id,
                "merchant_reference": dispute.reference,
                "stage": _DISPUTES[dispute.state],
                "changed": _time(dispute.changed_at_ms),
                "amount": _money(dispute.amount_minor, dispute.currency),
                "fee": _money(dispute.fee_minor, dispute.currency),
            },
        }
        return msgspec.json.encode(content)

    def notice_headers(
        self, secrets: Sequence[str], notice_id: str, now_s: int, body: bytes
    ) -> dict[str, str]:
        signed = f"{now_s}.".encode() + body
        marks = [hmac.new(secret.encode(), signed, sha256).hexdigest() for secret in secrets]
        return {"Northbank-Signature": ",".join([f"t={now_s}", *(f"v1={m}" for m in marks)])}

    def _view(self, operation: Operation) -> dict[str, Any]:
        state = {operations.PENDING: "PENDING", operations.ACTION_REQUIRED: "ACTION_NEEDED"}.get(
            operation.status
        )
        if operation.status == operations.FAILED:
            state = "REFUSED" if operation.kind in operations.FIRST else "FAILED"
        if operation.closed == operations.RETURNED:
            state = "RETURNED"
        view: dict[str, Any] = {
            "id": operation.id,
            "merchant_reference": operation.reference,
            "mode": "manual" if operation.kind == operations.AUTHORIZE else "immediate",
            "state": state or _DONE[operation.kind],
            "amount": _money(operation.amount_minor, operation.currency),
        }
        if operation.parent_id is not None:
            view["payment"] = operation.parent_id
        if operation.code is not None:
            view["refusal"] = {"reason": _REASONS.get(operation.code, "REFER")}
        if operation.status == operations.ACTION_REQUIRED:
            view["redirect"] = {"url": f"{self._public_url}/challenge/{operation.id}"}
        return view


def _time(at_ms: int) -> str:
    """ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _money(amount_minor: int, currency: str) -> dict[str, Any]:
    return {"value": amount_minor, "currency": currency.lower()}


def _error(kind: str, reason: str, message: str) -> bytes:
    content = {"error": {"type": kind, "detail": {"reason": reason, "text": message}}}
    return msgspec.json.encode(content)
