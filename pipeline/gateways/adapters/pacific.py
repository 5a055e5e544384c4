"""``pacific``: decimal amounts and numeric codes; see docs/simulator.md, section Pacific."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping, Sequence
from hashlib import sha512
from urllib.parse import quote

import msgspec

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.normalisation import GATEWAY_CODES, Action, action_of
from pipeline.gateways.adapters import base
from pipeline.gateways.adapters.northbank import check_long_enough
from pipeline.gateways.notice import DISPUTE, Notice, NoticeRefused
from pipeline.gateways.webhook_signature import staleness

_TYPES = {
    "charge": "sale",
    "authorize": "auth",
    "capture": "settle",
    "void": "reverse",
    "refund": "refund",
}
_KINDS = {name: kind for kind, name in _TYPES.items()}
_STATES = {
    0: base.STATE_SUCCEEDED,
    10: base.STATE_PENDING,
    11: base.STATE_ACTION,
    90: base.STATE_RETURNED,
}
_NOT_FOUND = 25
_STAGES = {1: "inquiry", 2: "opened", 3: "won", 4: "lost", 5: "pre_arbitration"}
_MARKS_MAX = 4
# As many digits as an amount of ours may have.
_DECIMAL = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,4}))?")


class _Txn(msgspec.Struct, frozen=True):
    txnId: str
    clientRef: str
    type: str
    amount: str
    currency: str


class _Result(msgspec.Struct, frozen=True):
    resultCode: int
    txn: _Txn | None = None
    clientRef: str | None = None
    challengeUrl: str | None = None


class _NoticeBody(msgspec.Struct, frozen=True):
    noticeId: str
    event: str
    txnId: str
    amount: str
    currency: str
    type: str | None = None
    resultCode: int | None = None
    caseId: str | None = None
    stage: int | None = None
    caseVersion: base.EventNumber | None = None
    fee: str = "0"


_decode_result = msgspec.json.Decoder(_Result).decode
_decode_notice = msgspec.json.Decoder(_NoticeBody).decode


class PacificAdapter:
    """Whatever it has to say, it says with a 200 and a number."""

    name = "pacific"
    content_type = "application/json"
    idempotent = True
    sends_notices = True
    notices_by_own_id = True

    def send(self, request: PaymentRequest) -> base.HttpCall:
        kind, key = request.kind, request.idempotency_key
        body = {"clientRef": key}
        if kind != "void":
            body |= {
                "amount": major(request.amount_minor, request.currency),
                "currency": request.currency,
            }
        if kind in base.FIRST:
            path = f"/api/v2/{_TYPES[kind]}"
            body |= {
                "card": request.instrument_token,
                "merchant": request.merchant_id,
                "order": request.order_id,
            }
        else:
            parent = quote(request.parent_reference or "", safe="")
            path = f"/api/v2/txn/{parent}/{_TYPES[kind]}"
        headers = {"Pacific-Idempotency-Id": key}
        return base.HttpCall("POST", path, msgspec.json.encode(body), headers=headers)

    def ask(self, request: PaymentRequest) -> base.HttpCall:
        query = {"type": _TYPES[request.operation_kind], "clientRef": request.idempotency_key}
        return base.HttpCall("GET", "/api/v2/lookup", query=query)

    def answered(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        result = _result(reply)
        number = f"http_{reply.status}" if result is None else str(result.resultCode)
        if result is not None and base.is_about_another(result.clientRef, request):
            return base.unknown("mismatched_answer", number)
        if reply.status == 429:
            return GatewayAnswer(
                outcome="not_sent",
                code="rate_limited",
                gateway_code=number,
                retry_after_ms=reply.retry_after_ms,
            )
        if result is None:
            code = "undecodable_answer" if reply.status in (200, 400) else "gateway_error"
            return base.unknown(code, number)
        if reply.status not in (200, 400):
            return base.unknown("gateway_error", number)
        if result.txn is not None:
            return self._about(result, result.txn, request)
        if result.resultCode in _STATES:
            # Says yes and not to what.
            return base.unknown("undecodable_answer", number)
        return base.refused(self.name, number)

    def inquired(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        result = _result(reply)
        if result is None:
            code = "undecodable_answer" if reply.status == 200 else "gateway_error"
            return base.unknown(code, f"http_{reply.status}")
        if reply.status == 200 and result.txn is not None:
            return self._about(result, result.txn, request)
        number = str(result.resultCode)
        if base.is_about_another(result.clientRef, request):
            return base.unknown("mismatched_answer", number)
        if reply.status == 200 and result.resultCode == _NOT_FOUND:
            return base.not_found(number)
        return base.unanswered(self.name, number, retry_after_ms=reply.retry_after_ms)

    def read_notice(
        self, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        reason = _distrust(secrets, headers, body, now_s)
        if reason is not None:
            return NoticeRefused(reason)
        try:
            content = _decode_notice(body)
        except base.UNREADABLE:
            return NoticeRefused("unreadable")
        amount_minor = minor(content.amount, content.currency)
        fee_minor = minor(content.fee, content.currency)
        if amount_minor is None or fee_minor is None:
            return NoticeRefused("unreadable")
        if content.event == "chargeback":
            state = _STAGES.get(content.stage or 0)
            if state is None or content.caseId is None:
                return NoticeRefused("unknown_type")
            return Notice(
                notification_id=content.noticeId,
                gateway="",
                type=DISPUTE,
                amount_minor=amount_minor,
                currency=content.currency,
                gateway_reference=content.txnId,
                dispute_id=content.caseId,
                dispute_state=state,
                event_sequence=content.caseVersion,
                fee_minor=fee_minor,
            )
        kind = _KINDS.get(content.type or "")
        state = _state(content.resultCode)
        if content.event != "txn" or kind is None or state is None:
            return NoticeRefused("unknown_type")
        # Notices carry the gateway's own id only.
        view = base.View(
            id=content.txnId,
            reference=None,
            amount_minor=amount_minor,
            currency=content.currency,
            state=state,
            gateway_code=str(content.resultCode) if content.resultCode else None,
        )
        return base.operation_notice(self.name, view, kind, content.noticeId)

    def check_secret(self, secret: str) -> None:
        check_long_enough(secret)

    def _about(self, result: _Result, txn: _Txn, request: PaymentRequest) -> GatewayAnswer:
        amount_minor = minor(txn.amount, txn.currency)
        state = _state(result.resultCode)
        if amount_minor is None or state is None:
            return base.unknown("undecodable_answer", str(result.resultCode))
        view = base.View(
            id=txn.txnId,
            reference=txn.clientRef,
            amount_minor=amount_minor,
            currency=txn.currency,
            state=state,
            gateway_code=str(result.resultCode) if result.resultCode else None,
            next_action_url=result.challengeUrl,
        )
        return base.about(self.name, view, request)


def major(amount_minor: int, currency: str) -> str:
    """An amount as a decimal string in major units: 1250 GBP is ``12.50``, 1250 JPY ``1250``."""
    digits = MINOR_UNITS.get(currency, 2)
    if not digits:
        return str(amount_minor)
    text = str(amount_minor).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]}"


def minor(text: str, currency: str) -> int | None:
    """The minor units of a decimal string; None for what is no amount of the currency, or none that
    a record can hold."""
    digits = MINOR_UNITS.get(currency, 2)
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[2] or "") > digits:
        return None
    found = int(match[1] + (match[2] or "").ljust(digits, "0"))
    return found if found <= base.AMOUNT_MINOR_MAX else None


def _state(number: int | None) -> str | None:
    if number in _STATES:
        return _STATES[number]
    # A number of the table that is not about the call itself is a transaction that was refused.
    code = GATEWAY_CODES["pacific"].get(str(number))
    about_the_call = code is None or action_of(code) in (Action.RETRY_HERE, Action.INQUIRE)
    return None if about_the_call else base.STATE_DECLINED


def _distrust(
    secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: int
) -> str | None:
    """Why the notice must not be believed: base64 HMAC-SHA512 over date, line end and body."""
    date = headers.get("x-pacific-date", "")
    marks = headers.get("x-pacific-signature", "").split(" ")[:_MARKS_MAX]
    if not date or not marks[0]:
        return "signature_missing"
    stale = staleness(date, now_s)
    if stale is not None:
        return stale
    genuine = False
    for secret in secrets:
        signed = f"{date}\n".encode() + body
        expected = base64.b64encode(hmac.new(secret.encode(), signed, sha512).digest())
        for mark in marks:
            genuine |= hmac.compare_digest(expected, mark.encode("utf-8", "replace"))
    return None if genuine else "signature_wrong"


def _result(reply: base.HttpReply) -> _Result | None:
    try:
        return _decode_result(reply.body or b"")
    except base.UNREADABLE:
        return None
