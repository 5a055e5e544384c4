"""A key is sent again only while its gateway must still know it, whatever the operation."""

from __future__ import annotations

import pytest

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.policy import DEFAULT_POLICY, HOUR_MS
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    ORDER,
    SECOND,
    Story,
    yes,
)


class Forgetful:
    """A gateway that takes a key once and forgets it after a day."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.known: dict[str, int] = {}
        self.moved: list[str] = []

    def __call__(self, request: PaymentRequest) -> GatewayAnswer:
        now_ms, key = self.story.flow.now_ms, request.idempotency_key
        fresh = key in self.known and now_ms < self.known[key] + 24 * HOUR_MS
        if request.kind == "inquire":
            return yes(request) if fresh else NOT_FOUND
        if not fresh:
            self.known[key] = now_ms
            self.moved.append(request.operation_id)
        return yes(request)


@pytest.mark.parametrize("kind", ["charge", "retry", "refund", "capture", "cancel"])
def test_what_a_dead_worker_sent_is_not_sent_again_once_its_key_is_forgotten(kind: str) -> None:
    """It was sent and the result was lost; the next worker finds the request too old, and its wait
    is read a day later. The gateway would take the same key as a new operation."""
    story = Story(MANUAL if kind in ("capture", "cancel") else ORDER, DEFAULT_POLICY)
    if kind == "retry":
        story.flow.answer(DECLINED)
        story.command("retry", "c1", instrument_token="tok_2")
    elif kind != "charge":
        story.flow.answer(yes)
        story.command(kind, "c1")
    gateway = Forgetful(story)
    story.flow.handle(story.flow.open_requests[0], gateway)
    story.flow.now_ms += 61 * SECOND
    story.flow.answer(gateway)
    story.flow.now_ms += 25 * HOUR_MS
    story.flow.run(gateway)
    assert gateway.moved == ["1" if kind == "charge" else "c1"]
    assert "inquire" in story.asked


@pytest.mark.parametrize("kind", ["charge", "retry", "refund", "capture", "cancel"])
@pytest.mark.parametrize("hours", [13, 72])
def test_nothing_is_sent_days_late(kind: str, hours: int) -> None:
    """Workers were away while a request that could not be sent waited in its tier. Nobody is
    charged, and no money moved, beyond the time that an operation has."""
    story = Story(MANUAL if kind in ("capture", "cancel") else ORDER, DEFAULT_POLICY)
    if kind == "retry":
        story.flow.answer(DECLINED)
        story.command("retry", "c1", instrument_token="tok_2")
    elif kind != "charge":
        story.flow.answer(yes)
        story.command(kind, "c1")
    story.flow.answer(NOT_SENT)
    story.flow.now_ms += hours * HOUR_MS
    gateway = Forgetful(story)
    story.flow.run(gateway)
    assert gateway.moved == []
    assert story.payment.attempts[-1].state == "failed"
