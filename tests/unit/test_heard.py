"""What questions heard of that nobody waited for: which word counts for the next one, and when."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.audit.trace import describe
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.records import to_record
from pipeline.processors.gateway import result_of
from pipeline.runtime.heard import Heard
from tests.unit.test_processors_gateway import CHARGE, INQUIRE

SUCCEEDED = GatewayAnswer(outcome="succeeded", gateway_reference="ch")
DECLINED = GatewayAnswer(outcome="declined", code="do_not_honor")
NOT_FOUND = GatewayAnswer(outcome="not_found")
RETURNED = GatewayAnswer(outcome="declined", code="returned", gateway_reference="re")
PENDING = GatewayAnswer(outcome="pending", code="customer_action_required")
SILENCE = GatewayAnswer(outcome="unknown", code="soft_deadline")
# Nothing of what it was said with, as an address for the customer: that may be an old word.
HEARD_PENDING = replace(SILENCE, code="heard_pending")


def heard(*words: tuple[GatewayAnswer, int], partition: int = 0, words_max: int = 10) -> Heard:
    """What is kept of late answers, each with the time at which it was asked, as they came."""
    kept = Heard(words_max)
    for answer, asked_at_ms in words:
        kept.keep(INQUIRE, answer, asked_at_ms, partition)
    return kept


def test_a_success_spares_the_next_question_and_nothing_else_does() -> None:
    """It stays true of a charge, also where the transaction that told it was aborted and the same
    question is read again. All else is said of its moment, and the gateway is asked again."""
    kept = heard((SUCCEEDED, 5))
    for _ in range(2):
        assert kept.success(INQUIRE) == SUCCEEDED
        assert kept.instead(INQUIRE, SILENCE) == SUCCEEDED
    assert heard((DECLINED, 5)).success(INQUIRE) is None
    assert heard((NOT_FOUND, 5)).success(INQUIRE) is None


def test_a_question_at_which_the_gateway_did_not_look_is_none() -> None:
    """Told as heard, it would count as one of those that are asked at most."""
    kept = heard((PENDING, 5))
    limited = GatewayAnswer(outcome="unknown", code="rate_limited", retry_after_ms=1_000)
    assert kept.instead(INQUIRE, limited) == limited
    assert kept.instead(INQUIRE, SILENCE) == HEARD_PENDING, "still there"


def test_a_refund_is_asked_about_again_though_it_succeeded() -> None:
    """It may have come back meanwhile, and the next question may be an hour after the word."""
    refund = replace(INQUIRE, operation_kind="refund")
    kept = Heard()
    kept.keep(refund, SUCCEEDED, 5, 0)
    assert kept.success(refund) is None, "the gateway is asked"
    assert kept.instead(refund, RETURNED) == RETURNED
    kept.keep(refund, SUCCEEDED, 5, 0)
    assert kept.instead(refund, SILENCE) == SUCCEEDED, "it says nothing newer"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([(DECLINED, 5)], DECLINED),
        ([(NOT_FOUND, 5)], replace(SILENCE, not_found_asked_at_ms=5)),
        ([(PENDING, 5)], HEARD_PENDING),
        ([(SILENCE, 5)], SILENCE),
        ([], SILENCE),
        # The word that says most counts, whichever came first; of two that say the same the later
        # question's.
        ([(NOT_FOUND, 5), (DECLINED, 7)], DECLINED),
        ([(DECLINED, 7), (NOT_FOUND, 5)], DECLINED),
        ([(NOT_FOUND, 9), (NOT_FOUND, 5)], replace(SILENCE, not_found_asked_at_ms=9)),
        ([(NOT_FOUND, 5), (PENDING, 7)], HEARD_PENDING),
        ([(PENDING, 7), (NOT_FOUND, 5)], HEARD_PENDING),
        ([(PENDING, 7), (DECLINED, 5)], DECLINED),
        # Known once, it is not unknown again to a lookup that lags.
        ([(PENDING, 5), (NOT_FOUND, 7)], HEARD_PENDING),
        ([(NOT_FOUND, 7), (PENDING, 5)], HEARD_PENDING),
        ([(PENDING, 5), (DECLINED, 7)], DECLINED),
        ([(NOT_FOUND, 5), (SILENCE, 7)], replace(SILENCE, not_found_asked_at_ms=5)),
        ([(SUCCEEDED, 5), (NOT_FOUND, 7)], SUCCEEDED),
        ([(NOT_FOUND, 7), (SUCCEEDED, 5)], SUCCEEDED),
        # Made is made, also for a gateway that contradicts itself.
        ([(SUCCEEDED, 5), (DECLINED, 7)], SUCCEEDED),
        ([(DECLINED, 7), (SUCCEEDED, 5)], SUCCEEDED),
        ([(SUCCEEDED, 5), (DECLINED, 6), (NOT_FOUND, 7)], SUCCEEDED),
        ([(NOT_FOUND, 7), (PENDING, 5), (DECLINED, 6)], DECLINED),
        # When it was asked is not known, so it can prove nothing.
        ([(NOT_FOUND, 0)], SILENCE),
        ([(NOT_FOUND, -1)], SILENCE),
    ],
)
def test_the_latest_word_stands_for_a_question_without_an_answer(
    words: list[tuple[GatewayAnswer, int]], said: GatewayAnswer
) -> None:
    """ "Not found" is no answer to a question that was asked later: it is told beside the silence,
    with the time of its own question."""
    kept = heard(*words)
    assert kept.instead(INQUIRE, SILENCE) == said
    # A transaction that tells it may be aborted, and the question be asked again, in vain.
    after = said if said in (SUCCEEDED, HEARD_PENDING) else SILENCE
    assert kept.instead(INQUIRE, SILENCE) == after, "once, unless it stays true or is not over"
    if said == HEARD_PENDING:
        assert kept.instead(INQUIRE, NOT_FOUND).code == "heard_pending", "found by an earlier one"


@pytest.mark.parametrize("answer", [NOT_FOUND, DECLINED, PENDING, SUCCEEDED])
def test_an_answer_in_time_counts_instead_of_an_earlier_word(answer: GatewayAnswer) -> None:
    """The gateway knows more by now, and what it said before is forgotten."""
    for earlier in (NOT_FOUND, DECLINED):
        kept = heard((earlier, 5))
        assert kept.instead(INQUIRE, answer) == answer
        assert len(kept) == 0


def test_a_gateway_that_has_found_it_once_has_it() -> None:
    """A success that came while the next question was on its way is not lost to a lookup that lags:
    "not found" could let another gateway charge the customer as well."""
    for answer in (NOT_FOUND, PENDING):
        assert heard((SUCCEEDED, 5)).instead(INQUIRE, answer) == SUCCEEDED
    assert heard((PENDING, 5)).instead(INQUIRE, NOT_FOUND) == replace(
        NOT_FOUND, outcome="unknown", code="heard_pending"
    )
    assert heard((SUCCEEDED, 5)).instead(INQUIRE, DECLINED) == SUCCEEDED, "made is made"


@pytest.mark.parametrize("words", [(SUCCEEDED, RETURNED), (RETURNED, SUCCEEDED)])
@pytest.mark.parametrize("asked_at_ms", [(5, 7), (7, 5)])
def test_a_refund_that_came_back_is_no_success(
    words: tuple[GatewayAnswer, GatewayAnswer], asked_at_ms: tuple[int, int]
) -> None:
    """It comes back after it was made, in whatever order the gateway looked and answered."""
    refund = replace(INQUIRE, operation_kind="refund")
    kept = Heard()
    for word, at_ms in zip(words, asked_at_ms, strict=True):
        kept.keep(refund, word, at_ms, 0)
    for answer in (SILENCE, SUCCEEDED, NOT_FOUND, RETURNED):
        assert kept.instead(refund, answer) == RETURNED, "looked up before, and answered after it"
    kept.forget(replace(CHARGE, kind="refund"))
    kept.keep(refund, SUCCEEDED, 5, 0)
    assert kept.instead(refund, RETURNED) == RETURNED


@pytest.mark.parametrize("other", [{"idempotency_key": "other"}, {"operation_kind": "refund"}])
def test_nothing_is_said_of_another_operation_or_attempt(other: dict[str, str]) -> None:
    """Each attempt has a key of its own; the kind is compared as well."""
    asked = replace(INQUIRE, **other)
    assert heard((SUCCEEDED, 5)).success(asked) is None
    assert heard((DECLINED, 5)).instead(asked, SILENCE) == SILENCE


def test_what_was_heard_goes_with_its_partition() -> None:
    """Another worker asks there, and may have sent again what was not found here."""
    kept = heard((DECLINED, 5), partition=3)
    kept.keep_only({3, 4})
    assert len(kept) == 1
    kept.keep_only({4})
    assert kept.instead(INQUIRE, SILENCE) == SILENCE


def test_what_was_heard_is_forgotten_when_the_operation_is_sent_again() -> None:
    """Of all questions about that key, and of no other."""
    kept = heard((DECLINED, 5))
    kept.forget(replace(CHARGE, idempotency_key="other"))
    assert len(kept) == 1
    kept.forget(CHARGE)
    assert kept.instead(INQUIRE, SILENCE) == SILENCE


def test_a_success_is_not_forgotten_when_the_operation_is_sent_again() -> None:
    """A worker that was frozen may have made the charge meanwhile; what comes back of a refund is
    another matter."""
    kept = heard((SUCCEEDED, 5))
    kept.forget(CHARGE)
    assert kept.success(INQUIRE) == SUCCEEDED
    refund = replace(INQUIRE, operation_kind="refund")
    kept.keep(refund, SUCCEEDED, 5, 0)
    kept.forget(replace(CHARGE, kind="refund"))
    assert kept.instead(refund, SILENCE) == SILENCE


def test_the_way_of_an_order_tells_what_an_earlier_question_heard() -> None:
    """Otherwise a resend would follow upon nothing but silence."""
    result = replace(
        result_of(INQUIRE, replace(SILENCE, not_found_asked_at_ms=5), 7),
        operation_id=INQUIRE.order_id,
    )
    assert describe("gateway-results", to_record(result)).startswith(
        "inquire at simulator: unknown, soft_deadline, an earlier question: not found, "
    )


@pytest.mark.parametrize("reference", [None, "", "x" * 256])
def test_a_success_that_cannot_be_booked_is_not_kept(reference: str | None) -> None:
    """It would be told as unknown, in place of what the next question is answered in time."""
    said = replace(SUCCEEDED, gateway_reference=reference)
    for answer in (PENDING, NOT_FOUND):
        assert heard((said, 5)).instead(INQUIRE, answer) == answer
    assert heard((DECLINED, 5), (said, 7)).instead(INQUIRE, SILENCE) == DECLINED
    assert heard((said, 5)).success(INQUIRE) is None


@pytest.mark.parametrize("outcome", ["declined", "pending", "not_found"])
def test_no_more_is_kept_of_a_word_than_its_record_would_keep(outcome: str) -> None:
    """A gateway's answer may be 64 KiB, and thousands are kept. The result is the same."""
    said = GatewayAnswer(
        outcome=outcome,
        gateway_reference="x" * 20_000,
        gateway_code="y" * 40_000,
        code="z" * 1_000,
        next_action_url="https://" + "u" * 10_000,
    )
    kept = heard((said, 5))
    assert sum(len(str(word)) for word in kept._words.values()) < 1_500
    if outcome == "declined":
        told = result_of(INQUIRE, kept.instead(INQUIRE, SILENCE), 7)
        assert told == replace(result_of(INQUIRE, said, 7), next_action_url=None)


def test_the_oldest_words_go_first() -> None:
    """Memory is bounded; whose word is gone is asked about again."""
    kept = heard(words_max=2)
    keys = ("first", "second", "third")
    for key in keys:
        kept.keep(replace(INQUIRE, idempotency_key=key), DECLINED, 5, 0)
    said = [kept.instead(replace(INQUIRE, idempotency_key=key), SILENCE) for key in keys]
    assert said == [SILENCE, DECLINED, DECLINED]
