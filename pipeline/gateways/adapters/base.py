"""What an adapter is made of: a request to send, an answer to read, a notice to believe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from pipeline.domain.answer import (
    DECLINED,
    NOT_FOUND,
    NOT_SENT,
    PENDING,
    SUCCEEDED,
    UNKNOWN,
    GatewayAnswer,
)
from pipeline.domain.card_numbers import mask_card_number_start
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import (
    UNKNOWN_DECLINE,
    UNKNOWN_ERROR,
    Action,
    action_of,
    standard_code,
)
from pipeline.gateways.notice import OPERATION, Notice, NoticeRefused, our_reference

INQUIRE = "inquire"
FIRST = frozenset({"charge", "authorize"})

# States of an operation, whatever the gateway calls them.
STATE_SUCCEEDED = "succeeded"
STATE_PENDING = "pending"
STATE_ACTION = "action_required"
STATE_DECLINED = "declined"
# It had succeeded, and failed all the same.
STATE_RETURNED = "returned"

GATEWAY_CODE_LENGTH_MAX = 64

# What a record can hold: 64 bits with a sign. JSON has numbers of any length.
AMOUNT_MINOR_MAX: Final = 2**63 - 1
AmountMinor = Annotated[int, Meta(ge=-AMOUNT_MINOR_MAX - 1, le=AMOUNT_MINOR_MAX)]

# What decoding raises for bytes that are none of a gateway's messages, whoever wrote them; the last
# is for brackets in thousands of brackets.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# How a gateway orders the events of a dispute: by counting them, or by their time. 2**53: beyond
# it JSON writers that use floats lose the last digit.
EventNumber = Annotated[int, Meta(ge=1, le=1 << 53)]
EventTime = Annotated[datetime, Meta(tz=True)]


class HttpCall(Struct, frozen=True):
    """One HTTP request below the gateway's base URL."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}


class HttpReply(Struct, frozen=True):
    """One HTTP answer; the body is None when it was longer than any of the contract."""

    status: int
    body: bytes | None
    retry_after_ms: int | None = None


class View(Struct, frozen=True, kw_only=True):
    """An operation as a gateway shows it, in our words."""

    id: str
    reference: str | None
    amount_minor: int
    currency: str
    state: str
    gateway_code: str | None = None
    next_action_url: str | None = None


class Adapter(Protocol):
    """One gateway's contract. Nothing here does I/O; nothing raises for what a gateway sends.

    What decides whether a call may be sent again, and which notice is believed, each class says
    itself. None of it has a default: one that is not true of a gateway could charge twice.
    """

    # The name of the adapter in the configuration and in the table of codes.
    name: str
    content_type: str
    # False: the gateway has no idempotency keys, so none are sent, and nothing is sent twice.
    idempotent: bool
    # False: the gateway sends no notices, so that a secret for them cannot be meant.
    sends_notices: bool
    # True: its notices carry its own id and nothing of ours.
    notices_by_own_id: bool

    def send(self, request: PaymentRequest) -> HttpCall:
        """The call that may move money: charge, authorize, capture, void or refund."""
        ...

    def ask(self, request: PaymentRequest) -> HttpCall:
        """The question what became of ``request.operation_kind``, by our reference."""
        ...

    def answered(self, request: PaymentRequest, reply: HttpReply) -> GatewayAnswer:
        """What the answer to ``send`` says."""
        ...

    def inquired(self, request: PaymentRequest, reply: HttpReply) -> GatewayAnswer:
        """What the answer to ``ask`` says."""
        ...

    def read_notice(
        self, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        """Verify a notice by the gateway's scheme and read it; header names are in lower case."""
        ...

    def check_secret(self, secret: str) -> None:
        """Raise ValueError in words if notices cannot be signed with it."""
        ...


def kind_of(request: PaymentRequest) -> str:
    """The kind of the operation concerned, of a call and of an inquiry about it alike."""
    return request.operation_kind if request.kind == INQUIRE else request.kind


def about(adapter: str, view: View, request: PaymentRequest) -> GatewayAnswer:
    """The outcome of an operation as the gateway shows it, if it is the one that was asked for.
    Under another key it is somebody else's, and so is its id."""
    if view.reference != request.idempotency_key:
        return unknown("mismatched_answer")
    if (
        view.currency != request.currency
        # A void has no amount of its own; gateways show the authorization's.
        or (view.amount_minor != request.amount_minor and kind_of(request) != "void")
    ):
        return GatewayAnswer(outcome=UNKNOWN, code="mismatched_answer", gateway_reference=view.id)
    if view.state == STATE_SUCCEEDED:
        return GatewayAnswer(
            outcome=SUCCEEDED, gateway_reference=view.id, amount_minor=view.amount_minor
        )
    if view.state == STATE_PENDING:
        return GatewayAnswer(outcome=PENDING, gateway_reference=view.id)
    if view.state == STATE_ACTION:
        return GatewayAnswer(
            outcome=PENDING,
            gateway_reference=view.id,
            code="customer_action_required",
            next_action_url=view.next_action_url,
        )
    if view.state in (STATE_DECLINED, STATE_RETURNED):
        return GatewayAnswer(
            outcome=DECLINED,
            gateway_reference=view.id,
            code=declined_code(adapter, view),
            gateway_code=view.gateway_code,
        )
    return unknown("undecodable_answer", f"status_{view.state}")


def is_about_another(reference: str | None, request: PaymentRequest) -> bool:
    """Whether an answer without an operation names another key than the one asked: what it says,
    also that it knows nothing, is about that one. Gateways may leave the key out there, or
    empty."""
    return bool(reference) and reference != request.idempotency_key


def declined_code(adapter: str, view: View) -> str:
    """The standard code of a view that says no."""
    if view.state == STATE_RETURNED:
        return STATE_RETURNED
    return standard_code(adapter, view.gateway_code or "", UNKNOWN_DECLINE)


def refused(
    adapter: str,
    gateway_code: str,
    *,
    otherwise: str = UNKNOWN_ERROR,
    retry_after_ms: int | None = None,
) -> GatewayAnswer:
    """What a refusal of a call that may move money says, by the table's action for its code."""
    code = standard_code(adapter, gateway_code, otherwise)
    action = action_of(code)
    shown = _shown(gateway_code)
    if action is Action.RETRY_HERE:
        return GatewayAnswer(
            outcome=NOT_SENT, code=code, gateway_code=shown, retry_after_ms=retry_after_ms
        )
    if action is Action.INQUIRE:
        return unknown(code, shown)
    return GatewayAnswer(outcome=DECLINED, code=code, gateway_code=shown)


def unanswered(
    adapter: str, gateway_code: str, *, retry_after_ms: int | None = None
) -> GatewayAnswer:
    """What a refusal of an inquiry says: nothing about the operation."""
    code = standard_code(adapter, gateway_code, UNKNOWN_ERROR)
    if action_of(code) not in (Action.RETRY_HERE, Action.INQUIRE):
        code = UNKNOWN_ERROR
    return GatewayAnswer(
        outcome=UNKNOWN,
        code=code,
        gateway_code=_shown(gateway_code),
        retry_after_ms=retry_after_ms,
    )


def _shown(gateway_code: str) -> str:
    return mask_card_number_start(gateway_code, GATEWAY_CODE_LENGTH_MAX)


def not_found(gateway_code: str) -> GatewayAnswer:
    """The gateway's plain word that it knows no such key."""
    return GatewayAnswer(outcome=NOT_FOUND, gateway_code=gateway_code)


def unknown(code: str, gateway_code: str | None = None) -> GatewayAnswer:
    """Nothing is certain."""
    shown = None if gateway_code is None else _shown(gateway_code)
    return GatewayAnswer(outcome=UNKNOWN, code=code, gateway_code=shown)


def operation_notice(
    adapter: str,
    view: View,
    kind: str,
    notification_id: str,
    *,
    merchant_id: str | None = None,
    order_id: str | None = None,
) -> Notice:
    """The notice about an operation. ``gateway`` is filled in by who knows its name."""
    outcomes = {
        STATE_SUCCEEDED: SUCCEEDED,
        STATE_PENDING: PENDING,
        STATE_ACTION: PENDING,
        STATE_DECLINED: DECLINED,
        STATE_RETURNED: "failed",
    }
    code = None
    if view.state == STATE_ACTION:
        code = "customer_action_required"
    elif view.state in (STATE_DECLINED, STATE_RETURNED):
        code = declined_code(adapter, view)
    ours = our_reference(view.reference or "")
    return Notice(
        notification_id=notification_id,
        gateway="",
        type=OPERATION,
        amount_minor=view.amount_minor,
        currency=view.currency,
        reference=view.reference,
        payment_id=None if ours is None else ours.payment_id,
        operation_id=None if ours is None else ours.operation_id,
        attempt=None if ours is None else ours.attempt,
        merchant_id=merchant_id,
        order_id=order_id,
        kind=kind,
        outcome=outcomes[view.state],
        gateway_reference=view.id,
        code=code,
        gateway_code=view.gateway_code,
    )
