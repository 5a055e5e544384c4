"""``simulator``: a JSON API of today. Its contract is the first half of docs/simulator.md."""

from __future__ import annotations

from collections.abc import Sequence
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
)
from pipeline.gateways.webhook_signature import signed_headers

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
AmountMinor = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MINOR_MAX)]

_PATHS = {
    operations.CHARGE: "charges",
    operations.AUTHORIZE: "authorizations",
    operations.CAPTURE: "captures",
    operations.VOID: "voids",
    operations.REFUND: "refunds",
}
_NOUNS = {kind: path.removesuffix("s") for kind, path in _PATHS.items()}

_STATUS = {
    "invalid_request": 400,
    "request_in_progress": 409,
    "idempotency_key_reused": 422,
    "rate_limited": 429,
    "internal_error": 500,
    "charge_not_found": 404,
    "authorization_not_found": 404,
    "currency_not_supported": 400,
}


class FirstBody(msgspec.Struct, frozen=True):
    """Body of POST /v1/charges and /v1/authorizations. Other fields are ignored."""

    reference: Id
    amount_minor: AmountMinor
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")]
    instrument_token: Id
    merchant_id: Id
    order_id: Id
    capture: bool = True


class LaterBody(msgspec.Struct, frozen=True):
    """Body of POST /v1/captures and /v1/voids: the authorization by its id or our reference."""

    reference: Id
    amount_minor: AmountMinor | None = None
    authorization_id: Id | None = None
    authorization_reference: Id | None = None


class RefundBody(msgspec.Struct, frozen=True):
    """Body of POST /v1/refunds: the charge by its id or by our reference."""

    amount_minor: AmountMinor
    refund_reference: Id
    charge_id: Id | None = None
    reference: Id | None = None
    # Only to force an outcome with a test token.
    instrument_token: Id | None = None


class PlainWire:
    """JSON in and out, one resource for each kind, HTTP statuses that mean what they say."""

    content_type = "application/json"
    routes = tuple(
        Route(method, f"/v1/{path}{rest}", f"{action}{kind}")
        for kind, path in _PATHS.items()
        for method, rest, action in (
            ("POST", "", "!"),
            ("GET", "", "?"),
            ("GET", "/{id}", "#"),
        )
    )

    def __init__(self, public_url: str) -> None:
        self._public_url = public_url

    def key(self, parts: Parts) -> str | None:
        return checked_key(parts.headers.get("Idempotency-Key", ""), "Idempotency-Key")

    def parse(self, hint: str, parts: Parts) -> Asked | Question:
        action, kind = hint[0], hint[1:]
        if action == "#":
            return Question(kind, id=parts.match["id"])
        if action == "?":
            reference = parts.query.get("reference", "")
            if not reference:
                raise ValueError("Give ?reference=, the caller's reference.")
            return Question(kind, reference=reference)
        if kind in operations.FIRST:
            return _first(kind, decoded(parts.raw, FirstBody))
        if kind == operations.REFUND:
            refund = decoded(parts.raw, RefundBody)
            if (refund.charge_id is None) == (refund.reference is None):
                raise ValueError("give either charge_id or reference")
            return Asked(
                operations.REFUND,
                refund.refund_reference,
                refund.amount_minor,
                instrument_token=refund.instrument_token,
                parent_id=refund.charge_id,
                parent_reference=refund.reference,
            )
        later = decoded(parts.raw, LaterBody)
        if (later.authorization_id is None) == (later.authorization_reference is None):
            raise ValueError("give either authorization_id or authorization_reference")
        if kind == operations.CAPTURE and later.amount_minor is None:
            raise ValueError("amount_minor is missing")
        return Asked(
            kind,
            later.reference,
            later.amount_minor if kind == operations.CAPTURE else None,
            parent_id=later.authorization_id,
            parent_reference=later.authorization_reference,
        )

    def answer(self, operation: Operation) -> Reply:
        status = (
            202 if operation.status in (operations.PENDING, operations.ACTION_REQUIRED) else 201
        )
        return Reply(status, msgspec.json.encode(self._view(operation)))

    def refusal(self, code: str, message: str, asked: Asked | None) -> Reply:
        more: dict[str, Any] = {}
        status = _STATUS.get(code, 402)
        if code.startswith("declined:"):
            code = code.removeprefix("declined:")
            if asked is not None:
                more["reference"] = asked.reference
        return Reply(status, _error(code, message, **more))

    def found(self, operation: Operation) -> Reply:
        content = {"found": True, _NOUNS[operation.kind]: self._view(operation)}
        return Reply(200, msgspec.json.encode(content))

    def not_found(self, question: Question) -> Reply:
        message = f"There is no such {_NOUNS[question.kind]}."
        return Reply(404, _error("not_found", message, found=False))

    def operation_notice(self, operation: Operation, notice_id: str) -> bytes | None:
        view = self._view(operation)
        content = {
            "type": f"{_NOUNS[operation.kind]}.{view['status']}",
            "timestamp_ms": operation.changed_at_ms,
            "data": view | {"reference": operation.reference, "order_id": operation.order_id,
                            "merchant_id": operation.merchant_id},
        }  # fmt: skip
        return msgspec.json.encode(content)

    def dispute_notice(self, dispute: Dispute, charge: Operation, notice_id: str) -> bytes | None:
        content = {
            "type": f"dispute.{dispute.state}",
            "timestamp_ms": dispute.changed_at_ms,
            "data": {
                "id": dispute.id,
                "charge_id": dispute.charge_id,
                "reference": dispute.reference,
                "state": dispute.state,
                "sequence": dispute.changes,
                "amount_minor": dispute.amount_minor,
                "fee_minor": dispute.fee_minor,
                "currency": dispute.currency,
                "merchant_id": charge.merchant_id,
                "order_id": charge.order_id,
            },
        }
        return msgspec.json.encode(content)

    def notice_headers(
        self, secrets: Sequence[str], notice_id: str, now_s: int, body: bytes
    ) -> dict[str, str]:
        return signed_headers(secrets, notice_id, now_s, body)

    def _view(self, operation: Operation) -> dict[str, Any]:
        status = operation.status
        if status == operations.FAILED and operation.kind in operations.FIRST:
            status = "declined"
        view: dict[str, Any] = {"id": operation.id}
        if operation.kind == operations.REFUND:
            view |= {"charge_id": operation.parent_id, "refund_reference": operation.reference}
        else:
            view["reference"] = operation.reference
        if operation.kind in (operations.CAPTURE, operations.VOID):
            view["authorization_id"] = operation.parent_id
        view |= {
            "status": status,
            "amount_minor": operation.amount_minor,
            "currency": operation.currency,
        }
        if operation.kind in operations.FIRST:
            view |= {"merchant_id": operation.merchant_id, "order_id": operation.order_id}
        if operation.kind == operations.AUTHORIZE:
            view |= {"expires_at_ms": operation.expires_at_ms, "closed": operation.closed}
        if operation.code is not None:
            view["code"] = operation.code
        if operation.closed == operations.RETURNED:
            # It had succeeded; the money came back all the same.
            view |= {"status": "failed", "code": "returned"}
        if operation.status == operations.ACTION_REQUIRED:
            view["next_action_url"] = f"{self._public_url}/pay/{operation.id}"
        view["created_at_ms"] = operation.created_at_ms
        return view


def _first(kind: str, body: FirstBody) -> Asked:
    checked_instrument(body.instrument_token)
    if kind == operations.CHARGE and not body.capture:
        raise ValueError("capture must be true: POST /v1/authorizations reserves without charging")
    return Asked(
        kind,
        body.reference,
        body.amount_minor,
        body.currency,
        body.instrument_token,
        body.merchant_id,
        body.order_id,
    )


def _error(code: str, message: str, **more: Any) -> bytes:
    content = {"code": code, "error": {"code": code, "message": message}, **more}
    return msgspec.json.encode(content)
