"""What the matrix of retry safety says is what the processors do, cell by cell."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import OPERATIONS, Again, Phase, retry_safety
from pipeline.domain.policy import DAY_MS, HOUR_MS, GatewayProfile, Policy
from tests.support.payment_story import (
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    ORDER,
    PENDING,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    yes,
)

TURNED_AWAY = GatewayAnswer(outcome="not_sent", code="rate_limited")
# A decline for which another gateway might do what this one would not.
OWN_TROUBLE = GatewayAnswer(outcome="declined", code="processing_error")
BY_COMMAND = {"capture": "capture", "void": "cancel", "refund": "refund"}


def policy(keys: bool, resends: int) -> Policy:
    """Two gateways alike, asked more often than a phase needs."""
    gateways = tuple(
        GatewayProfile(
            name=name, priority=at, grace_ms=10 * SECOND, key_retention_ms=DAY_MS, idempotent=keys
        )
        for at, name in enumerate(("first", "second"))
    )
    return replace(POLICY, gateways=gateways, inquiry_max=40, retry_max=3, resend_max=resends)


def begun(operation: str, keys: bool, resends: int = 1) -> Story:
    """A payment whose operation of this kind was just requested."""
    order = MANUAL if operation in ("authorize", "capture", "void") else ORDER
    story = Story(order, policy(keys, resends))
    if operation in BY_COMMAND:
        story.flow.answer(yes)
        ask_again(story, operation, "c1")
    return story


def ask_again(story: Story, operation: str, command_id: str) -> None:
    fields = {} if operation == "void" else {"amount_minor": 200}
    story.command(BY_COMMAND[operation], command_id, **fields)


def lost_until(story: Story, after_ms: int) -> None:
    """The call and all inquiries are lost, until one that is asked so long afterwards is not known
    to the gateway."""
    begun_ms = story.flow.now_ms
    story.flow.answer(TIMED_OUT)
    while True:
        story.wait()
        if story.flow.now_ms - begun_ms >= after_ms:
            story.flow.answer(NOT_FOUND)
            return
        story.flow.answer(TIMED_OUT)


def reach(story: Story, phase: Phase) -> None:
    """Bring the operation so far, and wait as long as it takes to see what follows."""
    flow = story.flow
    if phase in (Phase.NOT_WRITTEN, Phase.TURNED_AWAY):
        flow.answer(NOT_SENT if phase is Phase.NOT_WRITTEN else TURNED_AWAY)
        story.wait()
    elif phase is Phase.DECLINED:
        flow.answer(OWN_TROUBLE)
    elif phase is Phase.WRITTEN:
        flow.answer(TIMED_OUT)
        for _ in range(8):
            story.wait()
            flow.answer(TIMED_OUT)
    elif phase is Phase.NOT_FOUND_EARLY:
        lost_until(story, 0)
    elif phase is Phase.NOT_FOUND_IN_WINDOW:
        lost_until(story, 15 * SECOND)
    elif phase is Phase.NOT_FOUND_PROVEN:
        lost_until(story, 30 * SECOND)
    elif phase is Phase.NOT_FOUND_FORGOTTEN:
        flow.answer(TIMED_OUT)
        flow.now_ms += 25 * HOUR_MS
        story.wait()
        flow.answer(NOT_FOUND)
    elif phase is Phase.PENDING:
        flow.answer(PENDING)
        for _ in range(5):
            story.wait()
            flow.answer(NOT_FOUND)
    else:
        flow.answer(yes)


def sent_since(story: Story, count: int) -> list[PaymentRequest]:
    """What may move money, and was requested after so many requests."""
    return [request for request in story.flow.requests()[count:] if request.kind != "inquire"]


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("phase", Phase)
def test_the_processors_do_what_the_matrix_says(phase: Phase, operation: str, keys: bool) -> None:
    """Sent again here, with the same key; elsewhere, with another; by a command; or not at all."""
    safety = retry_safety(phase, operation, idempotent=keys)
    again, elsewhere = set(), set()
    # What may go both ways is sent again here first, and elsewhere once that is used up.
    for resends in (1, 0):
        story = begun(operation, keys, resends)
        first = story.flow.requests()[-1]
        count = len(story.flow.requests())
        reach(story, phase)
        sent = sent_since(story, count)
        again |= {e.idempotency_key for e in sent if e.gateway == first.gateway}
        elsewhere |= {e.gateway for e in sent if e.gateway != first.gateway}
    here = safety.here is Again.SAME_ATTEMPT
    assert again == ({first.idempotency_key} if here else set())
    assert elsewhere == ({"second"} if safety.elsewhere is Again.YES else set())
    if safety.here is Again.NEW_OPERATION:
        ask_again(story, operation, "c2")
        (new,) = sent_since(story, count)
        assert new.gateway == first.gateway
        assert new.idempotency_key != first.idempotency_key
