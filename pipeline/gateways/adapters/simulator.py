"""``simulator``: the JSON API that docs/simulator.md describes, notices by Standard Webhooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import UNKNOWN_DECLINE, standard_code
from pipeline.gateways.adapters import base
from pipeline.gateways.notice import (
    DISPUTE,
    DISPUTE_STATES,
    Notice,
    NoticeRefused,
    our_reference,
)
from pipeline.gateways.webhook_signature import decoded_secret, refusal

_PATHS = {
    "charge": "/v1/charges",
    "authorize": "/v1/authorizations",
    "capture": "/v1/captures",
    "void": "/v1/voids",
    "refund": "/v1/refunds",
}
_NOUNS = {
    "charge": "charge",
    "authorization": "authorize",
    "capture": "capture",
    "void": "void",
    "refund": "refund",
}
_NOUN_OF = {kind: noun for noun, kind in _NOUNS.items()}
_STATES = {
    "succeeded": base.STATE_SUCCEEDED,
    "pending": base.STATE_PENDING,
    "action_required": base.STATE_ACTION,
    "declined": base.STATE_DECLINED,
    "failed": base.STATE_DECLINED,
}


class _Operation(msgspec.Struct, frozen=True):
    id: str
    status: str
    amount_minor: base.AmountMinor
    currency: str
    reference: str | None = None
    refund_reference: str | None = None
    code: str | None = None
    next_action_url: str | None = None
    merchant_id: str | None = None
    order_id: str | None = None


class _Refusal(msgspec.Struct, frozen=True):
    code: str
    reference: str | None = None


class _DisputeData(msgspec.Struct, frozen=True):
    id: str
    charge_id: str
    state: str
    amount_minor: base.AmountMinor
    currency: str
    reference: str | None = None
    fee_minor: base.AmountMinor = 0
    merchant_id: str | None = None
    order_id: str | None = None
    sequence: base.EventNumber | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str
    data: msgspec.Raw


_decode_operation = msgspec.json.Decoder(_Operation).decode
_decode_found = msgspec.json.Decoder(dict[str, Any]).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class SimulatorAdapter:
    """JSON in and out, one resource for each kind, HTTP statuses that mean what they say."""

    name = "simulator"
    content_type = "application/json"
    idempotent = True
    sends_notices = True
    notices_by_own_id = False

    def send(self, request: PaymentRequest) -> base.HttpCall:
        key, kind = request.idempotency_key, request.kind
        body: dict[str, Any]
        if kind in base.FIRST:
            body = {
                "reference": key,
                "amount_minor": request.amount_minor,
                "currency": request.currency,
                "instrument_token": request.instrument_token,
                "merchant_id": request.merchant_id,
                "order_id": request.order_id,
            }
            if kind == "charge":
                body["capture"] = True
        elif kind == "refund":
            body = {
                "charge_id": request.parent_reference,
                "amount_minor": request.amount_minor,
                "refund_reference": key,
            }
        else:
            body = {"reference": key, "authorization_id": request.parent_reference}
            if kind == "capture":
                body["amount_minor"] = request.amount_minor
        return base.HttpCall(
            "POST", _PATHS[kind], msgspec.json.encode(body), headers={"Idempotency-Key": key}
        )

    def ask(self, request: PaymentRequest) -> base.HttpCall:
        path = _PATHS[request.operation_kind]
        return base.HttpCall("GET", path, query={"reference": request.idempotency_key})

    def answered(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        status = reply.status
        if 200 <= status < 300:
            try:
                return base.about(self.name, _view(_decode_operation(reply.body or b"")), request)
            except base.UNREADABLE:
                return base.unknown("undecodable_answer", f"http_{status}")
        told = _refusal(reply)
        gateway_code = told.code if told is not None else f"http_{status}"
        if _is_about_another(told, request):
            return base.unknown("mismatched_answer", gateway_code)
        if status == 429:
            # Turned away before it was handled: nothing can have been moved by this request.
            return GatewayAnswer(
                outcome="not_sent",
                code="rate_limited",
                gateway_code=gateway_code,
                retry_after_ms=reply.retry_after_ms,
            )
        if status == 409:
            return base.unknown("in_progress", gateway_code)
        if status in (400, 402, 422) and told is None:
            # A decline that cannot be read may come from a proxy in between.
            return base.unknown("undecodable_answer", gateway_code)
        if status == 402:
            return base.refused(self.name, gateway_code, otherwise=UNKNOWN_DECLINE)
        if status == 400:
            return base.refused(self.name, gateway_code)
        if status == 404 and standard_code(self.name, gateway_code, "") == "parent_not_found":
            return base.refused(self.name, gateway_code)
        if status == 422:
            return base.unknown("idempotency_key_reused", gateway_code)
        # 401, 403: our own settings may be wrong, which is no reason to fail anybody's payment.
        return base.unknown("gateway_error", gateway_code)

    def inquired(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        if reply.status == 200:
            try:
                found = _decode_found(reply.body or b"")
                operation = msgspec.convert(found.get(_NOUN_OF[request.operation_kind]), _Operation)
            except base.UNREADABLE:
                return base.unknown("undecodable_answer", f"http_{reply.status}")
            return base.about(self.name, _view(operation), request)
        told = _refusal(reply)
        gateway_code = told.code if told is not None else f"http_{reply.status}"
        if _is_about_another(told, request):
            return base.unknown("mismatched_answer", gateway_code)
        if reply.status == 404 and gateway_code == "not_found":
            # Only with the contract's own word: a 404 of a proxy knows nothing about charges.
            return base.not_found(gateway_code)
        return base.unanswered(self.name, gateway_code, retry_after_ms=reply.retry_after_ms)

    def read_notice(
        self, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        reason = refusal([decoded_secret(secret) for secret in secrets], headers, body, now_s)
        if reason is not None:
            return NoticeRefused(reason)
        notice_id = headers["webhook-id"]
        try:
            event = msgspec.json.decode(body, type=_Event)
            noun, _, state = event.type.partition(".")
            if noun == "dispute":
                return _dispute(msgspec.json.decode(event.data, type=_DisputeData), notice_id)
            operation = msgspec.json.decode(event.data, type=_Operation)
        except base.UNREADABLE:
            return NoticeRefused("unreadable")
        kind = _NOUNS.get(noun)
        view = _view(operation)
        if kind is None or state not in _STATES or operation.status not in _STATES:
            return NoticeRefused("unknown_type")
        return base.operation_notice(
            self.name,
            view,
            kind,
            notice_id,
            merchant_id=operation.merchant_id,
            order_id=operation.order_id,
        )

    def check_secret(self, secret: str) -> None:
        decoded_secret(secret)


def _view(operation: _Operation) -> base.View:
    state = _STATES.get(operation.status, operation.status)
    if operation.code == "returned" and state == base.STATE_DECLINED:
        state = base.STATE_RETURNED
    code = operation.code
    if state == base.STATE_DECLINED:
        code = code or "card_declined"
    return base.View(
        id=operation.id,
        reference=operation.refund_reference or operation.reference,
        amount_minor=operation.amount_minor,
        currency=operation.currency,
        state=state,
        gateway_code=code,
        next_action_url=operation.next_action_url,
    )


def _dispute(data: _DisputeData, notice_id: str) -> Notice | NoticeRefused:
    if data.state not in DISPUTE_STATES:
        return NoticeRefused("unknown_type")
    ours = our_reference(data.reference or "")
    return Notice(
        notification_id=notice_id,
        gateway="",
        type=DISPUTE,
        amount_minor=data.amount_minor,
        currency=data.currency,
        reference=data.reference,
        payment_id=None if ours is None else ours.payment_id,
        operation_id=None if ours is None else ours.operation_id,
        attempt=None if ours is None else ours.attempt,
        merchant_id=data.merchant_id,
        order_id=data.order_id,
        gateway_reference=data.charge_id,
        dispute_id=data.id,
        dispute_state=data.state,
        event_sequence=data.sequence,
        fee_minor=data.fee_minor,
    )


def _is_about_another(told: _Refusal | None, request: PaymentRequest) -> bool:
    return told is not None and base.is_about_another(told.reference, request)


def _refusal(reply: base.HttpReply) -> _Refusal | None:
    try:
        return _decode_refusal(reply.body or b"")
    except base.UNREADABLE:
        return None
