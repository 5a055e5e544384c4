"""``northbank``: forms out, nested JSON back; see docs/simulator.md, section Northbank."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from urllib.parse import quote, urlencode

import msgspec

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.adapters import base
from pipeline.gateways.notice import DISPUTE, Notice, NoticeRefused, our_reference
from pipeline.gateways.webhook_signature import staleness

_PATHS = {"capture": "captures", "void": "cancellations", "refund": "refunds"}
_TYPES = {
    "charge": "payment",
    "authorize": "authorisation",
    "capture": "capture",
    "void": "cancellation",
    "refund": "refund",
}
_NOUNS = {**_TYPES, "authorize": "payment"}
_STATES = {
    "CAPTURED": base.STATE_SUCCEEDED,
    "AUTHORISED": base.STATE_SUCCEEDED,
    "CANCELLED": base.STATE_SUCCEEDED,
    "REFUNDED": base.STATE_SUCCEEDED,
    "PENDING": base.STATE_PENDING,
    "ACTION_NEEDED": base.STATE_ACTION,
    "REFUSED": base.STATE_DECLINED,
    "FAILED": base.STATE_DECLINED,
    "RETURNED": base.STATE_RETURNED,
}
_STAGES = {
    "RETRIEVAL": "inquiry",
    "CHARGEBACK": "opened",
    "CHARGEBACK_REVERSED": "won",
    "CHARGEBACK_FINAL": "lost",
    "PRE_ARBITRATION": "pre_arbitration",
}
# Signatures looked at in one header: old and new key, and as many to spare.
_MARKS_MAX = 4


class _Money(msgspec.Struct, frozen=True):
    value: base.AmountMinor
    currency: str


class _Refused(msgspec.Struct, frozen=True):
    reason: str


class _Redirect(msgspec.Struct, frozen=True):
    url: str


class _Operation(msgspec.Struct, frozen=True):
    id: str
    merchant_reference: str
    state: str
    amount: _Money
    mode: str = "immediate"
    refusal: _Refused | None = None
    redirect: _Redirect | None = None


class _Operations(msgspec.Struct, frozen=True):
    operations: list[_Operation]


class _Error(msgspec.Struct, frozen=True):
    type: str
    detail: _Refused


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Error


class _DisputeData(msgspec.Struct, frozen=True):
    id: str
    payment: str
    stage: str
    amount: _Money
    fee: _Money
    merchant_reference: str | None = None
    changed: base.EventTime | None = None


class _NoticeBody(msgspec.Struct, frozen=True):
    notice: str
    about: str
    operation: _Operation | None = None
    dispute: _DisputeData | None = None
    shop: str | None = None
    shop_order: str | None = None


_decode_answer = msgspec.json.Decoder(dict[str, _Operation]).decode
_decode_operations = msgspec.json.Decoder(_Operations).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_decode_notice = msgspec.json.Decoder(_NoticeBody).decode


class NorthbankAdapter:
    """A refused payment is an answer (200, state REFUSED); errors are nested objects."""

    name = "northbank"
    content_type = "application/x-www-form-urlencoded"
    idempotent = True
    sends_notices = True
    notices_by_own_id = False

    def send(self, request: PaymentRequest) -> base.HttpCall:
        kind, key = request.kind, request.idempotency_key
        fields = {"merchant_reference": key}
        if kind in base.FIRST:
            path = "/payments"
            fields |= {
                "amount": str(request.amount_minor),
                "currency": request.currency.lower(),
                "source": request.instrument_token,
                "shop": request.merchant_id,
                "shop_order": request.order_id,
                "capture_mode": "immediate" if kind == "charge" else "manual",
            }
        else:
            path = f"/payments/{quote(request.parent_reference or '', safe='')}/{_PATHS[kind]}"
            if kind != "void":
                fields["amount"] = str(request.amount_minor)
        return base.HttpCall(
            "POST", path, urlencode(fields).encode(), headers={"X-Request-Key": key}
        )

    def ask(self, request: PaymentRequest) -> base.HttpCall:
        query = {
            "type": _TYPES[request.operation_kind],
            "merchant_reference": request.idempotency_key,
        }
        return base.HttpCall("GET", "/operations", query=query)

    def answered(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        if reply.status in (200, 202):
            try:
                operation = _decode_answer(reply.body or b"").get(_NOUNS[request.kind])
            except base.UNREADABLE:
                operation = None
            if operation is None:
                return base.unknown("undecodable_answer", f"http_{reply.status}")
            return base.about(self.name, _view(operation), request)
        reason = _reason(reply)
        if reply.status == 429:
            return GatewayAnswer(
                outcome="not_sent",
                code="rate_limited",
                gateway_code=reason or "http_429",
                retry_after_ms=reply.retry_after_ms,
            )
        if reply.status in (400, 404, 409, 422) and reason is not None:
            return base.refused(self.name, reason)
        return base.unknown("gateway_error", reason or f"http_{reply.status}")

    def inquired(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        if reply.status != 200:
            reason = _reason(reply) or f"http_{reply.status}"
            return base.unanswered(self.name, reason, retry_after_ms=reply.retry_after_ms)
        try:
            operations = _decode_operations(reply.body or b"").operations
        except base.UNREADABLE:
            return base.unknown("undecodable_answer", "http_200")
        if not operations:
            return base.not_found("no_operations")
        return base.about(self.name, _view(operations[0]), request)

    def read_notice(
        self, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        reason = _distrust(secrets, headers.get("northbank-signature", ""), body, now_s)
        if reason is not None:
            return NoticeRefused(reason)
        try:
            content = _decode_notice(body)
        except base.UNREADABLE:
            return NoticeRefused("unreadable")
        if content.about == "dispute" and content.dispute is not None:
            return _dispute(content.dispute, content)
        operation = content.operation
        if operation is None or operation.state not in _STATES:
            return NoticeRefused("unknown_type")
        kinds = {noun: kind for kind, noun in _TYPES.items()}
        kind = kinds.get(content.about)
        if kind is None:
            return NoticeRefused("unknown_type")
        if kind == "charge" and operation.mode == "manual":
            kind = "authorize"
        return base.operation_notice(
            self.name,
            _view(operation),
            kind,
            content.notice,
            merchant_id=content.shop,
            order_id=content.shop_order,
        )

    def check_secret(self, secret: str) -> None:
        check_long_enough(secret)


def check_long_enough(secret: str) -> None:
    """A shared secret of fewer than 16 characters can be guessed; raises ValueError."""
    if len(secret) < 16:
        raise ValueError("a webhook secret has at least 16 characters")


def _distrust(secrets: Sequence[str], header: str, body: bytes, now_s: int) -> str | None:
    """Why the notice must not be believed: ``t=<seconds>,v1=<hex>`` over ``t.body``."""
    parts = [part.partition("=") for part in header.split(",")]
    timestamp = next((value for name, _, value in parts if name == "t"), "")
    marks = [value for name, _, value in parts if name == "v1"][:_MARKS_MAX]
    if not timestamp or not marks:
        return "signature_missing"
    stale = staleness(timestamp, now_s)
    if stale is not None:
        return stale
    genuine = False
    for secret in secrets:
        signed = f"{timestamp}.".encode() + body
        expected = hmac.new(secret.encode(), signed, sha256).hexdigest().encode()
        for mark in marks:
            genuine |= hmac.compare_digest(expected, mark.encode("utf-8", "replace"))
    return None if genuine else "signature_wrong"


def _view(operation: _Operation) -> base.View:
    return base.View(
        id=operation.id,
        reference=operation.merchant_reference,
        amount_minor=operation.amount.value,
        currency=operation.amount.currency.upper(),
        state=_STATES.get(operation.state, operation.state),
        gateway_code=None if operation.refusal is None else operation.refusal.reason,
        next_action_url=None if operation.redirect is None else operation.redirect.url,
    )


def _dispute(data: _DisputeData, content: _NoticeBody) -> Notice | NoticeRefused:
    state = _STAGES.get(data.stage)
    if state is None:
        return NoticeRefused("unknown_type")
    ours = our_reference(data.merchant_reference or "")
    changed = data.changed
    return Notice(
        notification_id=content.notice,
        gateway="",
        type=DISPUTE,
        amount_minor=data.amount.value,
        currency=data.amount.currency.upper(),
        reference=data.merchant_reference,
        payment_id=None if ours is None else ours.payment_id,
        operation_id=None if ours is None else ours.operation_id,
        attempt=None if ours is None else ours.attempt,
        merchant_id=content.shop,
        order_id=content.shop_order,
        gateway_reference=data.payment,
        dispute_id=data.id,
        dispute_state=state,
        event_sequence=None if changed is None else round(changed.timestamp() * 1000),
        fee_minor=data.fee.value,
    )


def _reason(reply: base.HttpReply) -> str | None:
    try:
        return _decode_error(reply.body or b"").error.detail.reason
    except base.UNREADABLE:
        return None
