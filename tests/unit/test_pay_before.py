"""Whoever ordered counts an order as not paid once its ``pay_before`` has come."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import Order
from pipeline.domain.policy import HOUR_MS, MINUTE_MS
from tests.support.audit_story import judged_flow
from tests.support.payment_story import ACTION, MANUAL, NOW, ORDER, PENDING, TIMED_OUT, Story, yes

BEFORE_MS = NOW + MINUTE_MS


@pytest.mark.parametrize("order", [ORDER, MANUAL], ids=["charge", "authorize"])
@pytest.mark.parametrize("first", [TIMED_OUT, PENDING, ACTION], ids=lambda each: each.code)
@pytest.mark.parametrize("how", ["notice", "inquiry", "person", "answer"])
def test_a_success_that_shows_afterwards_is_given_back(
    order: Order, first: GatewayAnswer, how: str
) -> None:
    """Once, whoever tells it: voided where it was only held, else refunded; and it is told."""
    story = Story(replace(order, pay_before_ms=BEFORE_MS))
    if how == "answer":
        first = yes(story.flow.open_requests[0][1])
        late = story.flow.handle(story.flow.open_requests.pop(0), first)
        story.flow.now_ms = BEFORE_MS
        story.flow.result(late)
    elif how == "person":
        story.flow.run(lambda _: TIMED_OUT)
        story.flow.now_ms += HOUR_MS
        story.command("resolve", "p1", decision="charged", gateway_reference="charge_1")
    else:
        story.flow.answer(first)
        story.flow.now_ms = BEFORE_MS
        if how == "notice":
            story.notify("succeeded")
        else:
            story.wait()
            story.flow.answer(yes)
    asked = first is ACTION and how in ("notice", "inquiry")
    assert story.status == ("expired" if asked else "failed")
    assert story.payment.reason == ("customer_action_ends" if asked else "pay_before_passed")
    assert story.payment.next_action_url is None
    assert story.events[-1] == "reversal_started"
    story.flow.run(yes)
    assert story.money == ((500, 500, 500) if order is ORDER else (0, 0, 0))
    assert sum(amount for _, amount in story.settled) == 0
    story.notify("succeeded", gateway_reference=story.payment.attempts[0].gateway_reference)
    assert story.asked.count("refund") + story.asked.count("void") == 1
    assert judged_flow(story.flow, None) == []
    assert story.rejected("retry", "r1", instrument_token="tok_2") == (
        "payment_must_have_failed" if asked else "pay_before_must_be_in_the_future"
    )


@pytest.mark.parametrize("fields", [{"pay_before_ms": BEFORE_MS}, {}])
def test_a_success_in_time_is_kept(fields: dict[str, Any]) -> None:
    """A millisecond before it, and whenever it comes where there is no such time."""
    story = Story(replace(ORDER, **fields))
    story.flow.answer(TIMED_OUT)
    story.flow.now_ms = BEFORE_MS - 1 if fields else NOW + 30 * HOUR_MS
    story.notify("succeeded")
    assert story.status == "captured"
