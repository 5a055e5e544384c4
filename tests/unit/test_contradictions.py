"""A contradiction is put before a person once, however often and by whatever way it is heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.processors.gateway import result_of
from pipeline.processors.letters import LETTERS_MAX
from pipeline.runtime.batch import Batch
from pipeline.runtime.input_record import input_record
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from tests.support.engine_fakes import FakeMessage, key_of
from tests.support.engine_flow import EngineFlow
from tests.support.payment_story import DECLINED, NOT_SENT, ORDER, TIMED_OUT, Story, yes

OTHER_AMOUNT = {"gateway_reference": "ch_1", "amount_minor": 499}


def asked_late(story: Story, answer: GatewayAnswer) -> Any:
    """What the last question of the payment hears after it was given up."""
    asked = next(r for r in reversed(story.flow.requests()) if r.kind == "inquire")
    word = replace(answer, heard="late_answer")
    return story.flow.result(result_of(asked, word, story.flow.now_ms))


def letters(story: Story) -> list[str]:
    return [letter.cause for letter in story.flow.dead_letters]


def inquired() -> Story:
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.wait()
    return story


def test_a_decline_after_a_success_is_one_letter() -> None:
    """By a notice, by a repetition of it, and by a question that was given up."""
    story = inquired()
    story.flow.answer(yes)
    assert story.notify("declined", code="do_not_honor").dead_letter == "contradictory_evidence"
    assert story.notify("failed", notification_id="n9").note == "stale_result"
    assert asked_late(story, DECLINED).note == "stale_result"
    assert letters(story) == ["contradictory_evidence"]
    assert story.events.count("contradictory_evidence") == story.payment.dead_letters == 1


def test_money_that_does_not_fit_is_one_letter() -> None:
    """The question hears it and stops the charge; its notice says no more."""
    story = inquired()
    story.flow.answer(GatewayAnswer(outcome="succeeded", **OTHER_AMOUNT))
    assert story.notify("succeeded", **OTHER_AMOUNT).note == "stale_result"
    assert letters(story) == ["amount_mismatch"]
    assert story.payment.attempts[0].state == "contradicted"


@pytest.mark.parametrize("first", ["notice", "question"])
def test_money_that_does_not_fit_is_one_letter_after_the_end(first: str) -> None:
    """Whichever of the two comes first."""
    story = Story()
    story.flow.run(lambda request: NOT_SENT if request.kind == "charge" else TIMED_OUT)
    assert story.status == "failed"
    words = [
        lambda: story.notify("succeeded", **OTHER_AMOUNT),
        lambda: asked_late(story, GatewayAnswer(outcome="succeeded", **OTHER_AMOUNT)),
    ]
    for word in words if first == "notice" else reversed(words):
        word()
    assert letters(story) == ["amount_mismatch"]


def test_another_contradiction_is_another_letter() -> None:
    """Another amount, another id, another operation, or the opposite."""
    story = inquired()
    story.flow.answer(yes)
    for fields in (
        {"gateway_reference": "ch_8"},
        {"gateway_reference": "ch_9"},
        {"gateway_reference": "ch_9", "amount_minor": 499},
        {"gateway_reference": "ch_9", "attempt": 2},
    ):
        assert story.notify("succeeded", **fields).dead_letter == "contradictory_evidence"
    assert story.notify("declined").dead_letter == "contradictory_evidence"
    assert story.payment.dead_letters == 5


def test_the_answer_that_repeats_a_contradiction_ends_its_send_window() -> None:
    """A notice came before it; nobody could say "not charged" else."""
    story = Story()
    story.notify("succeeded", **OTHER_AMOUNT)
    word = {"decision": "not_charged"}
    assert story.rejected("resolve", "p1", **word) == "send_window_must_be_over"
    story.flow.answer(GatewayAnswer(outcome="succeeded", **OTHER_AMOUNT))
    assert (story.events[-1], letters(story)) == ("answer_came_late", ["amount_mismatch"])
    story.flow.now_ms += 60_000
    story.command("resolve", "p2", **word)
    assert story.status == "failed"


def test_what_contradicts_a_person_is_a_letter_though_it_was_one_before() -> None:
    """The person has forgotten to say the amount, and the gateway says it again."""
    story = Story()
    story.flow.answer(GatewayAnswer(outcome="succeeded", **OTHER_AMOUNT))
    story.command("resolve", "p1", decision="charged", gateway_reference="ch_1")
    assert story.money == (500, 500, 0)
    for _ in range(2):
        story.notify("succeeded", **OTHER_AMOUNT)
    assert letters(story) == ["amount_mismatch", "contradictory_evidence"]


def test_what_could_not_be_taken_is_taken_when_it_can_be() -> None:
    """The room for it came back meanwhile: it is no contradiction any more."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    story.flow.answer(DECLINED)
    story.command("refund", "r2")
    story.flow.answer(yes)
    assert story.notify("succeeded", "r1").dead_letter == "contradictory_evidence"
    assert story.notify("succeeded", "r1").note == "stale_result"
    story.notify("failed", "r2")
    story.notify("succeeded", "r1")
    assert story.money == (500, 500, 500)
    assert story.payment.attempts[1].state == "refunded"


def test_a_person_s_word_is_no_gateway_s() -> None:
    """Each is refused by name, and what the gateway says of the same is news."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    story.flow.run(lambda _: TIMED_OUT)
    known = replace(story.payment, refunded_minor=100)
    story.flow.apply(ORDER, Decision(payment=known))
    word = {"decision": "charged", "gateway_reference": "re_9"}
    for command_id in ("p1", "p2"):
        assert story.rejected("resolve", command_id, **word) == "refund_must_not_exceed_captured"
    told = story.notify("succeeded", "r1", gateway_reference="re_9")
    assert told.dead_letter == "contradictory_evidence"


def test_a_payment_keeps_no_more_in_mind_than_there_is_room_for() -> None:
    """What is older may be told again."""
    story = Story()
    story.flow.answer(yes)
    for number in range(LETTERS_MAX + 1):
        story.notify("succeeded", gateway_reference=f"ch_{number}")
    assert len(story.payment.letters) == LETTERS_MAX
    told = story.notify("succeeded", gateway_reference="ch_0")
    assert told.dead_letter == "contradictory_evidence"


@pytest.mark.parametrize("redriven", [True, False])
def test_a_letter_that_is_redriven_is_judged_anew(tmp_path: Path, redriven: bool) -> None:
    """What still contradicts is a letter again: it would be lost for whoever redrove it."""
    flow = EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)
    story = inquired()
    story.flow.answer(yes)
    notice = story.notice("declined")
    story.flow.notify(notice)
    stage, batch, key = flow.stage(), Batch(None, 0.0), key_of("1")
    table = Table(MemoryTableStore(), decode=stage.decode_row)
    table.prepare(0, key, story.payment, flow.encode("payment", story.payment))
    topic, raw = flow.topic("gateway-notifications"), flow.encode("gateway-notification", notice)
    headers = [("redrive.letter", b"0:7")] if redriven else None
    message = FakeMessage(topic, 0, 7, key, raw, story.flow.now_ms, headers)
    stage.handle(input_record(message), table, batch)
    told = [output for output in batch.outputs if output[0] == flow.topic("dead-letters")]
    assert len(told) == redriven
