"""The gateway processor: whether a request may still be sent, and the record of what came of it.

It keeps no state and decides nothing about the payment; the table does, over the result.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.domain.answer import (
    NOT_FOUND,
    NOT_SENT,
    OUTCOMES,
    SUCCEEDED,
    UNKNOWN,
    GatewayAnswer,
)
from pipeline.domain.gateway_text import REFERENCE_MISSING, kept_result, kept_text
from pipeline.domain.model import GatewayResult, PaymentRequest
from pipeline.domain.normalisation import BOUND, OPERATIONS
from pipeline.domain.payment import INQUIRE

SEND_BEFORE_PASSED: Final = "send_before_passed"
KEY_RETENTION_PASSED: Final = "key_retention_passed"
KIND_NOT_SUPPORTED: Final = "kind_not_supported"
PARENT_MISSING: Final = "parent_missing"
POSSIBLY_SENT: Final = "possibly_sent"
OUTCOME_NOT_IN_CONTRACT: Final = "outcome_not_in_contract"


class CallPlan(Struct, frozen=True):
    """What to do with a request.

    ``refusal`` set: call nobody, this is the answer. Otherwise call the gateway and check
    ``send_before_ms`` once more, right before the first byte is written.
    """

    send_before_ms: int
    refusal: GatewayAnswer | None = None


def plan_call(
    request: PaymentRequest,
    appended_at_ms: int,
    now_ms: int,
    key_retention_ms: int | None = None,
    *,
    possibly_sent: bool = False,
) -> CallPlan:
    """Plan the call of a request that was appended at ``appended_at_ms``.

    ``now_ms`` is the worker's own clock. All but inquiries expire: those move no money. With the
    gateway's ``key_retention_ms``, the repetition of any operation is refused once the gateway may
    have forgotten the key: the table decides by when a wait began, and the request may lie after
    that. It is counted from when the attempt began, before its key was first sent, however long its
    order had waited for a person; records that do not tell it, from the order.

    ``possibly_sent``: the gateway has no idempotency, and some worker may have sent this very
    request. It is not sent; it is unknown, like any call whose answer was lost.
    """
    deadline_ms = send_before_ms(request, appended_at_ms)
    if request.kind == INQUIRE:
        return CallPlan(deadline_ms)
    if request.kind not in OPERATIONS:
        return _refused(deadline_ms, KIND_NOT_SUPPORTED)
    if request.kind in BOUND and request.parent_reference is None:
        return _refused(deadline_ms, PARENT_MISSING)
    if possibly_sent:
        # Before any check of time: it may have been sent when there was still time.
        return CallPlan(deadline_ms, GatewayAnswer(outcome=UNKNOWN, code=POSSIBLY_SENT))
    if now_ms >= deadline_ms:
        return _refused(deadline_ms, SEND_BEFORE_PASSED)
    if key_retention_ms is not None and request.try_number > 1:
        begun_ms = request.attempt_started_at_ms or request.ordered_at_ms
        forgotten_ms = begun_ms + key_retention_ms
        if now_ms >= forgotten_ms:
            return _refused(deadline_ms, KEY_RETENTION_PASSED)
        deadline_ms = min(deadline_ms, forgotten_ms)
    return CallPlan(deadline_ms)


def send_before_ms(request: PaymentRequest, appended_at_ms: int) -> int:
    """The time at and after which not one byte of the request may be written.

    The order's ``pay_before`` is about being charged: a capture, void or refund may come later. A
    repetition also has the end of its operation's time (``not_after_ms``), since its wait may have
    been read days after the table could decide about it.
    """
    deadline_ms = appended_at_ms + request.send_within_ms
    if request.not_after_ms:
        deadline_ms = min(deadline_ms, request.not_after_ms)
    pay_before_ms = request.pay_before_ms
    if pay_before_ms is not None and pay_before_ms < deadline_ms and request.kind not in BOUND:
        return pay_before_ms
    return deadline_ms


def _refused(deadline_ms: int, code: str) -> CallPlan:
    return CallPlan(deadline_ms, GatewayAnswer(outcome=NOT_SENT, code=code))


def result_of(request: PaymentRequest, answer: GatewayAnswer, observed_at_ms: int) -> GatewayResult:
    """The record of an answer, in which nothing is claimed that was not proven.

    A success without the gateway's reference or under one that is too long to be kept, a charge
    that was "not found", and an outcome outside the contract are all unknown: they are inquired
    about.
    """
    outcome, code = answer.outcome, answer.code
    if outcome == SUCCEEDED and not answer.gateway_reference:
        outcome, code = UNKNOWN, REFERENCE_MISSING
    elif outcome not in OUTCOMES or (outcome == NOT_FOUND and request.kind != INQUIRE):
        outcome, code = UNKNOWN, OUTCOME_NOT_IN_CONTRACT
    is_silent_question = request.kind == INQUIRE and outcome == UNKNOWN
    gateway_code = answer.gateway_code
    if gateway_code is not None:
        gateway_code = kept_text(gateway_code)
    result = GatewayResult(
        merchant_id=request.merchant_id,
        order_id=request.order_id,
        payment_id=request.payment_id,
        operation_id=request.operation_id,
        kind=request.kind,
        gateway=request.gateway,
        attempt=request.attempt,
        try_number=request.try_number,
        outcome=outcome,
        gateway_reference=answer.gateway_reference,
        code=code,
        gateway_code=gateway_code,
        retry_after_ms=answer.retry_after_ms,
        amount_minor=answer.amount_minor,
        currency=request.currency if answer.currency is None else answer.currency,
        observed_at_ms=observed_at_ms,
        next_action_url=answer.next_action_url,
        not_found_asked_at_ms=answer.not_found_asked_at_ms if is_silent_question else 0,
        heard=answer.heard,
    )
    return kept_result(result)
