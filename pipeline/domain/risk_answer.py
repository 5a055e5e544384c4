"""What the risk stage makes of one check: the row after it, and the answers it gives."""

from __future__ import annotations

from pipeline.domain.card_attempts import take_attempt
from pipeline.domain.model import RiskCheck, RiskResult, RiskVelocity
from pipeline.domain.risk_velocity import count_check


def answer_check(
    row: RiskVelocity | None, check: RiskCheck, now_ms: int
) -> tuple[RiskVelocity | None, tuple[RiskResult, ...]]:
    """The identity's row after a check, or None where it stays as it is; and the answers, of which
    an order has one, and an attempt none while it has to wait. ``now_ms``: its append time."""
    if check.attempt_key:
        return take_attempt(row, check, now_ms)
    counted, answer = count_check(row, check, now_ms)
    result = RiskResult(
        merchant_id=check.merchant_id,
        order_id=check.order_id,
        payment_id=check.payment_id,
        by=check.by,
        counted_at_ms=now_ms,
        counted=answer,
        operation_id=check.operation_id,
    )
    return counted, (result,)
