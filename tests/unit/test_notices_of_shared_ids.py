"""Gateways whose notices carry their own id alone, and that tell one id of several operations: what
is told under an id that another operation has is a person's, and nobody guesses whose it is.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.model import GatewayReference, PaymentRequest
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.records import reference_from_record
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.payments_stage import PaymentsStage
from schemas.codec import default_codec
from tests.support.payment_story import MANUAL, ORDER, POLICY, TIMED_OUT, Story, yes
from topics.catalogue import TopicSettings, build_catalogue

OWN_ID = replace(
    POLICY,
    gateways=(GatewayProfile(name="simulator", grace_ms=10_000, notices_by_own_id=True),),
)
CODEC = default_codec()


def shared(request: PaymentRequest) -> GatewayAnswer:
    """Whatever it is asked for, it is done under the id of the first."""
    return GatewayAnswer(
        outcome="succeeded", gateway_reference="ch_1", amount_minor=request.amount_minor
    )


def pending(reference: str) -> GatewayAnswer:
    return GatewayAnswer(outcome="pending", gateway_reference=reference)


class Told(Story):
    """A payment whose ids are told to the book of references, as the payments stage tells them."""

    def __init__(self, order: Any = ORDER, policy: Policy = OWN_ID) -> None:
        self.book: dict[str, GatewayReference] = {}
        super().__init__(None, policy)
        stage = PaymentsStage(build_catalogue(TopicSettings()), CODEC, LivePolicy(policy))
        decode = CODEC.decoder("gateway-reference")
        apply = self.flow.apply

        def applied(source: Any, decision: Decision, value: bytes = b"") -> Decision:
            made = apply(source, decision, value)
            if made.payment is not None:
                for _, _, _, raw, _ in stage._references_of(made.payment):
                    told = reference_from_record(decode(raw or b""))
                    self.book[told.gateway_reference] = told
            self.flow.now_ms += 1
            return made

        self.flow.apply = applied  # type: ignore[method-assign]
        self.flow.order(order)
        self.flow.answer(shared if policy is OWN_ID else yes)

    def hears(self, reference: str, outcome: str, kind: str, amount_minor: int = 0) -> Decision:
        """A notice that names nothing but the gateway's id."""
        whose = self.book[reference]
        return self.notify(
            outcome,
            whose.operation_id,
            attempt=whose.attempt,
            kind=kind,
            gateway_reference=reference,
            amount_minor=amount_minor,
            code="returned" if outcome == "failed" else None,
        )

    @property
    def states(self) -> list[str]:
        return [each.state for each in self.payment.attempts]

    @property
    def causes(self) -> list[str]:
        return [letter.cause for letter in self.flow.dead_letters]


def refunded(*ids: str) -> Told:
    """Refunds of 100, 200 and so on, made under ids of their own."""
    story = Told()
    for number, reference in enumerate(ids, start=1):
        story.command("refund", f"r{number}", amount_minor=100 * number)
        story.flow.answer(lambda r, own=reference: replace(shared(r), gateway_reference=own))
    return story


def test_a_refund_that_stands_is_not_the_one_that_came_back() -> None:
    """The answer of a second one is lost, and a notice tells of its end under the first one's id or
    the charge's: of the charge's it is nobody's, however often it comes."""
    story = refunded("re_1")
    story.command("refund", "r2", amount_minor=100)
    story.flow.answer(TIMED_OUT)
    for _ in range(2):
        assert story.hears("ch_1", "failed", "refund", 100).dead_letter == "unknown_attempt"
    assert (story.money, story.states[1]) == ((500, 500, 100), "refunded")


@pytest.mark.parametrize(("kind", "order"), [("refund", ORDER), ("capture", MANUAL)])
@pytest.mark.parametrize("answer", [shared, pending("ch_1")])
def test_an_answer_under_the_id_of_what_it_is_about_is_a_persons(
    kind: str, order: Any, answer: Any
) -> None:
    """Also where a notice of it came before. The id stays with the one that had it."""
    story = Told(order)
    taken, main = story.money, story.states[0]
    for number in (1, 2):
        story.command(kind, f"x{number}", amount_minor=100 * number)
        story.hears("ch_1", "succeeded", kind, 100 * number)
        story.flow.answer(answer)
    assert (story.states, story.money) == ([main, "contradicted", "contradicted"], taken)
    assert set(story.causes) == {"contradictory_evidence"}
    assert "the id of another operation" in (story.flow.dead_letters[-1].detail or "")
    assert story.book["ch_1"].operation_id == story.order_id
    assert {each.gateway_reference for each in story.payment.attempts} == {"ch_1", None}


def test_an_inquiry_that_finds_it_under_anothers_id_is_a_contradiction_too() -> None:
    story = refunded("re_1")
    story.command("refund", "r2", amount_minor=200)
    story.flow.answer(TIMED_OUT)
    story.wait()
    story.flow.answer(lambda r: replace(shared(r), gateway_reference="re_1"))
    assert (story.states, story.money) == (
        ["charged", "refunded", "contradicted"],
        (500, 500, 100),
    )
    assert story.causes == ["contradictory_evidence"]


@pytest.mark.parametrize("word", ["succeeded", "pending"])
def test_a_notice_of_another_kind_under_an_id_is_a_contradiction_once(word: str) -> None:
    """It is faster than the answer, and named for what it is."""
    story = Told()
    story.command("refund", "r1", amount_minor=200)
    for _ in range(2):
        story.hears("ch_1", word, "refund", 200)
    assert (story.causes, story.states) == (["contradictory_evidence"], ["charged", "started"])
    assert "another operation's id" in (story.flow.dead_letters[0].detail or "")


def test_a_pending_contradiction_hides_no_later_decline() -> None:
    story = Told()
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(pending("ch_1"))
    story.flow.notify(story.notice("declined", "r1", gateway_reference="re_1"))
    assert story.causes == ["contradictory_evidence"] * 2


def test_operations_of_equal_amounts_with_ids_of_their_own_are_told_apart() -> None:
    """Their notices, delivered twice, are no news, and no letter tells of an honest gateway."""
    story = Told()
    for refund in ("r1", "r2"):
        story.command("refund", refund, amount_minor=200)
        own = f"re_{refund}"
        story.flow.answer(lambda r, own=own: replace(shared(r), gateway_reference=own))
    for refund in ("r1", "r2", "r1"):
        assert story.hears(f"re_{refund}", "succeeded", "refund", 200).note == "stale_result"
    for _ in range(2):
        story.hears("re_r1", "failed", "refund", 200)
    assert (story.states, story.money) == (["charged", "failed", "refunded"], (500, 500, 200))
    story.hears("re_r2", "failed", "refund", 200)
    assert (story.states, story.money) == (["charged", "failed", "failed"], (500, 500, 0))
    assert story.causes == []


def test_a_void_has_an_id_of_its_own_as_well() -> None:
    """Else its notice would be taken for one of the hold."""
    story = Told(MANUAL)
    story.command("cancel", "v1")
    story.flow.answer(shared)
    assert story.states == ["authorized", "contradicted"]


def test_what_a_person_books_under_anothers_id_does_not_get_its_notices() -> None:
    """The notices under the id stay with the operation that had it."""
    story = Told()
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(shared)
    story.command(
        "resolve", "p1", decision="charged", operation_id="r1", gateway_reference="ch_1",
        override="reference",
    )  # fmt: skip
    assert (story.states, story.money) == (["charged", "refunded"], (500, 500, 200))
    assert story.book["ch_1"].operation_id == story.order_id
    assert story.hears("ch_1", "succeeded", "charge", 500).note == "stale_result"


@pytest.mark.parametrize("told", [shared, pending("ch_1")])
def test_where_notices_name_our_operation_a_refund_may_have_its_charges_id(told: Any) -> None:
    """Their gateway repeats our key, whatever ids it has."""
    story = Story()
    story.flow.answer(shared)
    for refund in ("r1", "r2"):
        story.command("refund", refund, amount_minor=200)
        story.flow.answer(told)
        story.notify("succeeded", refund, gateway_reference="ch_1", amount_minor=200)
    story.notify("failed", "r1", gateway_reference="ch_1", code="returned", amount_minor=200)
    assert [each.state for each in story.payment.attempts] == ["charged", "failed", "refunded"]
    assert story.flow.dead_letters == []


@pytest.mark.parametrize("policy", [POLICY, OWN_ID])
def test_a_refund_of_which_another_amount_came_back_is_a_persons(policy: Policy) -> None:
    """However the notice names it: it is not booked as its whole."""
    story = Story(ORDER, policy=policy)
    story.flow.answer(yes)
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    told = story.notify("failed", "r1", code="returned", amount_minor=150)
    assert told.dead_letter == "contradictory_evidence"
    assert [each.state for each in story.payment.attempts] == ["charged", "refunded"]
    assert story.money == (500, 500, 200)
    story.notify("failed", "r1", code="returned", amount_minor=200)
    assert story.money == (500, 500, 0)
