"""What a stage tells a payment of a dead letter that it makes of one of the payment's records.

Only the payments stage writes the table. A stage that refuses a record that belongs to a payment
therefore sends, in the transaction of the letter itself, a word of it to an input of the payments
stage: the payment says so (event ``input_dead_lettered``) and goes on by itself where it waited for
that record.

=========  ====================================================================================
gateway    a gateway-result of the outcome ``dead_lettered``: what was asked for is inquired about
risk       a risk-result with a cause: the counts do not come, so a person decides
ledger     a gateway-notification of the type ``dead_letter``; the ledger's letters and its database
           cannot be one transaction, so it may come twice and counts once
=========  ====================================================================================
"""

from __future__ import annotations

from pipeline.domain.answer import DEAD_LETTERED
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import split_key, valid_id
from pipeline.domain.model import (
    GatewayNotification,
    GatewayResult,
    PaymentRequest,
    RiskCheck,
    RiskResult,
)
from pipeline.processors.letters import DEAD_LETTER
from pipeline.runtime.input_record import InputRecord


def place_of(record: InputRecord) -> str:
    """Where the refused record is."""
    return f"{record.topic}[{record.partition}]@{record.offset}"


def request_letter(
    record: InputRecord, request: PaymentRequest | None, cause: str, now_ms: int
) -> GatewayResult | None:
    """The word of a refused request, or None when it belongs to no payment. One that cannot be read
    belongs to the payment of its key, and says nothing of its operation."""
    if request is not None and valid_id(request.merchant_id) and valid_id(request.order_id):
        return GatewayResult(
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            payment_id=request.payment_id,
            operation_id=request.operation_id,
            kind=request.kind,
            gateway=request.gateway,
            attempt=request.attempt,
            try_number=request.try_number,
            outcome=DEAD_LETTERED,
            code=cause,
            amount_minor=0,
            currency=request.currency,
            observed_at_ms=now_ms,
            letter=place_of(record),
        )
    ids = split_key(record.key)
    if ids is None:
        return None
    return GatewayResult(
        merchant_id=ids[0],
        order_id=ids[1],
        payment_id=payment_id(*ids),
        operation_id="",
        kind="",
        gateway="",
        attempt=0,
        try_number=0,
        outcome=DEAD_LETTERED,
        code=cause,
        amount_minor=0,
        currency="",
        observed_at_ms=now_ms,
        letter=place_of(record),
    )


def check_letter(record: InputRecord, check: RiskCheck, cause: str) -> RiskResult:
    """The word of a refused check. Of one that cannot be read nobody knows whose it is: its key is
    the card's or the customer's, and the order goes on when its wait for counts is over."""
    return RiskResult(
        merchant_id=check.merchant_id,
        order_id=check.order_id,
        payment_id=check.payment_id,
        by=check.by,
        counted_at_ms=record.timestamp_ms,
        cause=cause,
        letter=place_of(record),
        operation_id=check.operation_id,
    )


def settlement_letter(record: InputRecord, cause: str, now_ms: int) -> GatewayNotification | None:
    """The word of a settlement that the ledger refused, or None when it belongs to no payment."""
    ids = split_key(record.key)
    if ids is None:
        return None
    return GatewayNotification(
        merchant_id=ids[0],
        order_id=ids[1],
        payment_id=payment_id(*ids),
        notification_id=place_of(record),
        gateway="",
        type=DEAD_LETTER,
        amount_minor=0,
        currency="",
        received_at_ms=now_ms,
        code=cause,
    )
