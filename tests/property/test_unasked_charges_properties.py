"""Whatever the gateway makes of it, a charge nobody asked for goes back once, or a person knows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.lifecycle import BUSY_STATES
from pipeline.domain.model import PaymentRequest
from pipeline.domain.policy import HOUR_MS
from pipeline.processors.driver import FlowDriver
from tests.support.audit_story import judged_flow
from tests.support.examples import share_of
from tests.support.payment_story import (
    DECLINED,
    NOT_FOUND,
    NOT_SENT,
    NOW,
    POLICY,
    TIMED_OUT,
    unasked,
    yes,
)

TROUBLE = GatewayAnswer(outcome="declined", code="processing_error")
HOURS_MAX = 24 * 60


class Gateway:
    """Does what it is told and remembers it by its keys; ``turns`` say how each call goes, and
    those after the last go well."""

    def __init__(self, turns: list[str]) -> None:
        self.turns = turns
        self.made: set[str] = set()

    def __call__(self, request: PaymentRequest) -> GatewayAnswer:
        turn = self.turns.pop(0) if self.turns else "answered"
        key = request.idempotency_key
        if request.kind == "inquire":
            if turn.startswith("lost"):
                return TIMED_OUT
            return yes(request) if key in self.made else NOT_FOUND
        if turn == "not_sent":
            return NOT_SENT
        if turn == "lost_before":
            return TIMED_OUT
        if key not in self.made and turn in ("declined", "trouble"):
            return DECLINED if turn == "declined" else TROUBLE
        self.made.add(key)
        return TIMED_OUT if turn == "lost_after" else yes(request)


@settings(max_examples=share_of(200), deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["answered", "not_sent", "lost_before", "lost_after", "declined", "trouble"]
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_it_goes_back_once_or_a_person_knows(turns: list[str], twice: bool) -> None:
    """At most one refund at the gateway, the same in the settlements, nothing left in suspense;
    where there is none, the audit says that a person has to look."""
    flow, gateway = FlowDriver(POLICY, now_ms=NOW), Gateway(turns)
    ordered = unasked()
    flow.command(ordered)
    for _ in range(HOURS_MAX):
        flow.run(gateway)
        if twice:
            assert flow.command(ordered).note == "duplicate_command"
        payment = flow.payment(ordered.merchant_id, ordered.order_id)
        assert payment is not None
        if not {each.state for each in payment.attempts} & BUSY_STATES:
            break
        flow.advance(HOUR_MS)
    assert not flow.open_requests
    moved = [(each.kind, each.amount_minor) for each in flow.settlements()]
    found = [each.name for each in judged_flow(flow, None)]
    assert len(gateway.made) <= 1
    assert moved == [("unasked_capture", 1250), ("unasked_refund", -1250)][: 1 + len(gateway.made)]
    assert found == ([] if gateway.made else ["waits_for_a_person"])
