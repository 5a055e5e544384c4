"""``legacy``: one script, lines of text, and no idempotency; docs/simulator.md, section Legacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import UNKNOWN_DECLINE
from pipeline.gateways.adapters import base
from pipeline.gateways.notice import Notice, NoticeRefused

_PATH = "/gateway.cgi"
_ACTIONS = {
    "charge": "SALE",
    "authorize": "AUTH",
    "capture": "CAPTURE",
    "void": "VOID",
    "refund": "REFUND",
}
_STATES = {
    "OK": base.STATE_SUCCEEDED,
    "WAIT": base.STATE_PENDING,
    "REDIRECT": base.STATE_ACTION,
    "NO": base.STATE_DECLINED,
}
_NOT_FOUND = "E25"
_RETURNED = "D90"


class LegacyAdapter:
    """No key is sent, since none would be understood: a call that arrives twice is done twice."""

    name = "legacy"
    content_type = "application/x-www-form-urlencoded"
    idempotent = False
    sends_notices = False
    notices_by_own_id = False

    def send(self, request: PaymentRequest) -> base.HttpCall:
        kind = request.kind
        fields = {"ACTION": _ACTIONS[kind], "MERCHREF": request.idempotency_key}
        if kind != "void":
            fields["AMOUNT"] = str(request.amount_minor)
        if kind in base.FIRST:
            fields |= {
                "CURR": request.currency,
                "TOKEN": request.instrument_token,
                "MID": request.merchant_id,
                "ORDERNO": request.order_id,
            }
        else:
            fields["TXID"] = request.parent_reference or ""
        return base.HttpCall("POST", _PATH, urlencode(fields).encode())

    def ask(self, request: PaymentRequest) -> base.HttpCall:
        fields = {
            "ACTION": "QUERY",
            "WHAT": _ACTIONS[request.operation_kind],
            "MERCHREF": request.idempotency_key,
        }
        return base.HttpCall("POST", _PATH, urlencode(fields).encode())

    def answered(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        fields = _fields(reply)
        if fields is None:
            code = "undecodable_answer" if reply.status == 200 else "gateway_error"
            return base.unknown(code, f"http_{reply.status}")
        status, code = fields["STATUS"], fields.get("CODE", "")
        if "TXID" in fields:
            return _about(self.name, fields, request)
        if base.is_about_another(fields.get("MERCHREF"), request):
            return base.unknown("mismatched_answer", code)
        if status == "NO" and code:
            return base.refused(self.name, code, otherwise=UNKNOWN_DECLINE)
        if status == "ERR" and code:
            return base.refused(self.name, code, retry_after_ms=reply.retry_after_ms)
        return base.unknown("undecodable_answer", status)

    def inquired(self, request: PaymentRequest, reply: base.HttpReply) -> GatewayAnswer:
        fields = _fields(reply)
        if fields is None:
            code = "undecodable_answer" if reply.status == 200 else "gateway_error"
            return base.unknown(code, f"http_{reply.status}")
        if "TXID" in fields:
            return _about(self.name, fields, request)
        code = fields.get("CODE", fields["STATUS"])
        if base.is_about_another(fields.get("MERCHREF"), request):
            return base.unknown("mismatched_answer", code)
        if fields["STATUS"] == "ERR" and code == _NOT_FOUND:
            return base.not_found(code)
        return base.unanswered(self.name, code, retry_after_ms=reply.retry_after_ms)

    def read_notice(
        self, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        # It documents no notices, so whoever sends one is somebody else.
        return NoticeRefused("no_notices")

    def check_secret(self, secret: str) -> None:
        raise ValueError("the legacy gateway sends no notices; leave the secret out")


def _fields(reply: base.HttpReply) -> dict[str, str] | None:
    """The lines of an answer; None if it is none. A last line that is not ended does not count."""
    if reply.status != 200 or not reply.body:
        return None
    try:
        lines = reply.body.decode().split("\r\n")[:-1]
    except UnicodeDecodeError:
        return None
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return fields if len(fields) == len(lines) and "STATUS" in fields else None


def _about(name: str, fields: Mapping[str, str], request: PaymentRequest) -> GatewayAnswer:
    amount, code = fields.get("AMOUNT", ""), fields.get("CODE")
    state = _STATES.get(fields["STATUS"])
    if state == base.STATE_DECLINED and code is None:
        # A no is always told with its code; without one a part is missing.
        state = None
    if state is None or not amount.isascii() or not amount.isdigit() or len(amount) > 18:
        return base.unknown("undecodable_answer", fields["STATUS"])
    if code == _RETURNED:
        state = base.STATE_RETURNED
    view = base.View(
        id=fields["TXID"],
        reference=fields.get("MERCHREF"),
        amount_minor=int(amount),
        currency=fields.get("CURR", ""),
        state=state,
        gateway_code=code,
        next_action_url=fields.get("URL"),
    )
    return base.about(name, view, request)
