"""A gateway that was taken out of the configuration while operations were open there: what is not
known of it proves nothing, and nothing is sent there again or charged elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.health import GATEWAY_NOT_CONFIGURED, verdict
from pipeline.domain.keys import partition_of
from pipeline.domain.model import Payment, PaymentRequest
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS, GatewayProfile, Policy
from pipeline.runtime.batch import Batch
from pipeline.runtime.calls import Call, Calls
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from tests.support.audit_story import judged_flow
from tests.support.engine_fakes import key_of
from tests.support.engine_flow import EngineFlow
from tests.support.payment_story import (
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    NOW,
    ORDER,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    yes,
)

GONE = GatewayProfile(name="gone", priority=1, grace_ms=10 * SECOND)
LEFT = GatewayProfile(name="left", priority=9, grace_ms=10 * SECOND)
# Asked about for forty questions, longer than any of these stories takes to be mended.
KNOWN = replace(POLICY, gateways=(GONE, LEFT), inquiry_max=40)
NOWHERE = GatewayAnswer(outcome="unknown", code=GATEWAY_NOT_CONFIGURED)
KEY = key_of("o1")


class Gateways:
    """Takes each charge; ``gone`` answers with ``charged`` and, when asked, with ``asked``."""

    def __init__(self, story: Story, charged: GatewayAnswer, asked: GatewayAnswer) -> None:
        self.story, self.charged, self.asked = story, charged, asked
        self.charges: list[str] = []

    def __call__(self, request: PaymentRequest) -> GatewayAnswer:
        if request.kind != "inquire":
            self.charges.append(request.gateway)
        if request.gateway != "gone":
            return yes(request)
        return self.asked if request.kind == "inquire" else self.charged

    def answer(self) -> None:
        self.story.flow.answer(self)

    def run(self, minutes: int) -> None:
        """Answer and wait until nothing but timers is left, or the time is over."""
        until_ms = self.story.flow.now_ms + minutes * MINUTE_MS
        while self.story.flow.now_ms < until_ms:
            if self.story.flow.open_requests:
                self.answer()
            elif any(wait.purpose != "timer" for wait in self.story.flow.waits()):
                self.story.wait()
            else:
                return


def begun(charged: GatewayAnswer, asked: GatewayAnswer, profile: GatewayProfile = GONE) -> Gateways:
    """An order that was sent to ``gone``, and a policy that knows it no longer."""
    story = Story(ORDER, replace(KNOWN, gateways=(profile, LEFT)))
    gateways = Gateways(story, charged, asked)
    gateways.answer()
    without(story)
    return gateways


def without(story: Story) -> None:
    story.flow.policy = replace(story.flow.policy, gateways=(LEFT,))


@pytest.mark.parametrize(
    "profile",
    [
        replace(GONE, key_retention_ms=HOUR_MS),
        replace(GONE, idempotent=False),
        replace(GONE, grace_ms=10 * MINUTE_MS),
    ],
    ids=["forgets soon", "takes no keys", "is slow to know"],
)
def test_what_it_may_have_done_is_not_done_again_whatever_it_says(profile: GatewayProfile) -> None:
    """It does not know the charge when it is asked, which would be proof of a gateway that keeps
    keys for a day: nobody knows whether this one does."""
    gateways = begun(TIMED_OUT, NOT_FOUND, profile)
    gateways.story.flow.now_ms += HOUR_MS + MINUTE_MS
    gateways.run(120)
    assert gateways.charges == ["gone"]
    assert gateways.story.status == "outcome_unknown"
    assert gateways.story.events[-1] == "inquiry_exhausted"


def test_it_is_still_believed_when_it_says_what_it_has_done() -> None:
    """An answer needs no profile."""
    gateways = begun(TIMED_OUT, NOT_FOUND)
    gateways.asked = GatewayAnswer(outcome="succeeded", gateway_reference="ch", amount_minor=500)
    gateways.run(120)
    assert (gateways.story.status, gateways.charges) == ("captured", ["gone"])


def test_a_hold_of_then_lives_as_long_as_it_is_configured_once_it_is_known_again() -> None:
    """Nobody knew for how long when it was authorized: it is not given back after seven days."""
    month = replace(GONE, authorization_ms=30 * DAY_MS)
    story = Story(MANUAL, replace(KNOWN, gateways=(month, LEFT)))
    without(story)
    story.flow.answer(yes)
    story.flow.policy = replace(KNOWN, gateways=(month, LEFT))
    story.flow.advance(30 * DAY_MS - MINUTE_MS)
    assert (story.status, story.asked) == ("authorized", ["authorize"])
    assert story.events[-1] == "authorization_prolonged", "each change of it is told"
    assert not judged_flow(story.flow, None)
    story.flow.advance(MINUTE_MS)
    story.flow.answer(yes)
    assert (story.status, story.asked[-1], story.money) == ("expired", "void", (0, 0, 0))


@pytest.mark.parametrize("asked", [NOT_FOUND, NOWHERE], ids=["asked", "nobody to ask"])
def test_what_it_never_got_waits_for_it_to_be_configured_again(asked: GatewayAnswer) -> None:
    """A dead worker may have sent it all the same, so it is neither sent again nor failed; once the
    gateway is back, and does not know it, the payment goes on."""
    gateways = begun(NOT_SENT, asked)
    gateways.run(2)
    story = gateways.story
    assert (story.status, gateways.charges) == ("processing", ["gone"])
    story.flow.policy = KNOWN
    gateways.asked = NOT_FOUND
    gateways.run(60)
    assert story.status == "captured"
    assert gateways.charges.count("left") == 1


def test_silence_of_workers_that_do_not_have_it_fails_nothing() -> None:
    """The payments workers know the gateway, the gateway workers no longer: nobody was asked."""
    story = Story(ORDER, KNOWN)
    Gateways(story, NOT_SENT, NOWHERE).run(120)
    assert story.asked.count("inquire") == KNOWN.inquiry_max
    assert story.events[-1] == "inquiry_exhausted"


def test_a_request_for_it_may_have_been_sent_by_a_worker_that_had_it() -> None:
    """It died before it said so. "Not sent" would have a gateway without keys charge a second time,
    by the next worker that has it."""
    calls = Calls({})
    calls.open()
    try:
        asked = Story(ORDER, KNOWN).flow.open_requests[0][1]
        calls.start([Call(None, asked, 2**62)])
        assert calls.wait_finished(10)
        (call,) = calls.take_finished()
    finally:
        calls.close()
    assert call.answer == NOWHERE


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=2)


def missed(
    flow: EngineFlow, policy: Policy, table: Table[Payment], *inputs: tuple[str, str, Any]
) -> dict[str, int]:
    """What a payments worker counts of missing gateways over these (topic, schema, noun)."""
    stage, batch, key = PaymentsStage(flow.catalogue, flow.codec, policy), Batch(None, 0.0), KEY
    for role, name, noun in inputs:
        raw, lane = flow.encode(name, noun), partition_of(key, 2)
        stage.handle(InputRecord(flow.topic(role), lane, 7, NOW, key, raw), table, batch)
    return {
        name: count for (group, name), count in batch.notes.items() if group == "missing_gateways"
    }


def test_a_worker_says_that_operations_are_open_there(
    flow: EngineFlow, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted at every input about one, so that an alert stands as long as there are any; logged
    once for each gateway. What it has done for good is nobody's matter."""
    order = flow.order("o1", submitted_at_ms=NOW)
    table: Table[Payment] = Table(MemoryTableStore(), decode=flow.stage().decode_row)
    without, asked = replace(KNOWN, gateways=(LEFT,)), flow.due(order, "inquiry")
    due = ("payment-inquiry-1", "payment-due", asked)
    made = replace(flow.result(order), gateway="gone")
    with caplog.at_level(logging.ERROR):
        assert missed(flow, KNOWN, table, ("orders", "order", order), due) == {}
        assert missed(flow, without, table, due, due) == {"gone": 2}
        result = ("gateway-results", "gateway-result", made)
        assert missed(flow, without, table, result, due) == {}
    (line,) = caplog.messages
    assert "open at gone" in line


def test_a_worker_says_that_gateway_workers_do_not_have_it(flow: EngineFlow) -> None:
    """It has the gateway itself, and reads that one of them could not ask it."""
    order = flow.order("o1", submitted_at_ms=NOW)
    table: Table[Payment] = Table(MemoryTableStore(), decode=flow.stage().decode_row)
    said = replace(
        flow.result(order, "unknown"),
        gateway="gone", gateway_reference=None, code=GATEWAY_NOT_CONFIGURED,
    )  # fmt: skip
    inputs = (("orders", "order", order), ("gateway-results", "gateway-result", said))
    assert missed(flow, KNOWN, table, *inputs) == {"gone": 1}


def test_that_a_worker_does_not_have_it_says_nothing_of_how_it_does() -> None:
    """Else its breaker would open in every payments worker."""
    assert verdict("unknown", GATEWAY_NOT_CONFIGURED) is None
