"""The audit over single stories, as the processors wrote them: what it says, and what ends it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.audit.gateway_copy import GatewayCopy
from pipeline.domain.decision import Decision
from tests.support.audit_story import judged_flow
from tests.support.payment_story import DECLINED, MANUAL, ORDER, TIMED_OUT, Story, yes


class Books:
    """The gateway's own books of one order, written by hand."""

    def __init__(self) -> None:
        self.copy = GatewayCopy()
        self._entries = 0

    def enter(
        self, kind: str, reference: str, amount_minor: int, charge_id: str, entry_id: str = ""
    ) -> None:
        self._entries += 1
        self.copy.add(
            {
                "kind": kind,
                "id": charge_id if kind == "charge" else entry_id or f"{kind}_{self._entries}",
                "reference": reference,
                "charge_id": charge_id,
                "amount_minor": amount_minor,
                "currency": "GBP",
                "merchant_id": "shop",
                "order_id": "1",
                "created_at_ms": 0,
            },
            recent=False,
        )


def charged() -> tuple[Story, Books]:
    story, books = Story(), Books()
    story.flow.answer(yes)
    books.enter("charge", story.flow.requests()[0].idempotency_key, 500, "charge_1")
    return story, books


def found(story: Story, books: Books) -> list[str]:
    return [finding.name for finding in judged_flow(story.flow, books.copy)]


def test_a_dispute_won_twice_leaves_nothing_outstanding() -> None:
    """In the gateway's books and in ours, also when its notices overtook each other."""
    story, books = charged()
    for kind in ("dispute", "dispute_won", "dispute", "dispute_won"):
        books.enter(kind, "d1", 500, "charge_1")
    for state, number in (("pre_arbitration", 3), ("opened", 1), ("won", 4), ("won", 2)):
        story.dispute(state, event_sequence=number)
    assert found(story, books) == []


def test_what_no_notice_tells_is_ended_by_a_person() -> None:
    """A second win that looks like the first again is outstanding until somebody has said it."""
    story, books = charged()
    for state in ("opened", "won", "pre_arbitration", "won"):
        story.dispute(state)
    for kind in ("dispute", "dispute_won", "dispute", "dispute_won"):
        books.enter(kind, "d1", 500, "charge_1")
    assert found(story, books) == ["notice_outstanding"]
    story.command(
        "resolve_dispute", "p1", dispute_id="d1", decision="won", evidence="a letter", actor="ann"
    )
    assert found(story, books) == []


def test_what_a_person_gave_back_waits_for_nobody() -> None:
    """A charge came too late, its gateway refused the reversal: a refund by command ends that."""
    story, books = Story(), Books()
    story.flow.answer(DECLINED)
    story.notify("succeeded")
    story.flow.answer(DECLINED)
    books.enter("charge", story.flow.requests()[0].idempotency_key, 500, "charge_1")
    assert found(story, books) == ["waits_for_a_person"]
    for number, amount_minor in (("r1", 200), ("r2", 300)):
        story.command("refund", number, amount_minor=amount_minor)
        request = story.flow.requests()[-1]
        story.flow.answer(yes)
        entry_id = f"refund_1_{number}"
        books.enter("refund", request.idempotency_key, amount_minor, "charge_1", entry_id)
        waits = ["waits_for_a_person"] if number == "r1" else []
        assert found(story, books) == waits


@pytest.mark.parametrize("again", [None, "p1", "p2"])
def test_a_persons_word_stands_though_another_under_its_id_is_refused(again: str | None) -> None:
    """Whoever takes the number of a ticket for the id may send it twice, with other content."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    story.command("resolve", "p1", operation_id="r1", decision="returned")
    assert story.settled[-1] == ("refund_failed", 200)
    if again is not None:
        story.command("resolve", again, operation_id="r9", decision="returned")
        assert story.events[-1] == "command_rejected"
    assert judged_flow(story.flow, None) == []


@pytest.mark.parametrize("asked", [False, True], ids=["answer", "inquiry"])
def test_a_refund_whose_return_is_heard_first_is_right(asked: bool) -> None:
    """Its success shows afterwards and is older: neither is booked, and nothing is missing. Where
    the success came first, its settlement is."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    if asked:
        story.flow.answer(TIMED_OUT)
        story.wait()
    success = story.flow.handle(story.flow.open_requests.pop(0), yes)
    story.notify("failed", "r1", code="returned")
    story.flow.result(success)
    assert story.settled == [("capture", 500)]
    assert judged_flow(story.flow, None) == []
    story.command("refund", "r2")
    story.flow.answer(yes)
    story.notify("failed", "r2", code="returned")
    assert judged_flow(story.flow, None) == []
    del story.flow.topics["settlements"][1]
    names = [finding.name for finding in judged_flow(story.flow, None)]
    assert "success_without_settlement" in names


def test_a_return_that_was_heard_first_is_told_beside_one_under_the_same_id() -> None:
    """Of two refunds that came back one is settled, and their gateway knows both by their charge's
    id: which of them is told of is seen by our own keys."""
    story, books = charged()
    for operation_id, amount_minor in (("r1", 200), ("r2", 500)):
        story.command("refund", operation_id, amount_minor=amount_minor)
        opened = story.flow.open_requests.pop(0)
        success = replace(yes(opened[1]), gateway_reference="charge_1")
        for kind, entry_id in (("refund", "charge_1"), ("refund_failed", "")):
            key = opened[1].idempotency_key
            books.enter(kind, key, amount_minor, "charge_1", entry_id)
        result = story.flow.handle(opened, success)
        if operation_id == "r2":
            story.flow.result(result)
        story.notify("failed", operation_id, code="returned", gateway_reference="charge_1")
        if operation_id == "r1":
            story.flow.result(result)
    assert story.settled == [("capture", 500), ("refund", -500), ("refund_failed", 500)]
    assert found(story, books) == []


def test_a_capture_of_before_is_no_proof_against_its_refund() -> None:
    """Older snapshots do not say which hold a capture is of."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", "c1")
    story.flow.answer(yes)
    hold, capture = story.payment.attempts
    capture = replace(capture, parent_operation_id=None, parent_attempt=0)
    old = replace(story.payment, attempts=(hold, capture))
    story.flow.apply(MANUAL, Decision(payment=old))
    story.command("refund", "r1")
    story.flow.answer(yes)
    names = [finding.name for finding in judged_flow(story.flow, None)]
    assert "amounts_out_of_order" not in names


def test_a_charge_that_gave_back_more_than_it_took_is_accused() -> None:
    """Though the payment as a whole has captured enough."""
    story, _ = charged()
    story.command("refund", "r1")
    story.flow.answer(yes)
    charge, refund = story.payment.attempts
    other = replace(charge, attempt=2, gateway_reference="charge_2")
    broken = replace(
        story.payment,
        attempts=(charge, other, refund, replace(refund, operation_id="r2")),
        captured_minor=1_000,
        authorized_minor=1_000,
        refunded_minor=1_000,
        sequence=story.payment.sequence + 1,
    )
    story.flow.apply(ORDER, Decision(payment=broken))
    names = [finding.name for finding in judged_flow(story.flow, None)]
    assert "amounts_out_of_order" in names


def test_a_charge_of_another_amount_is_booked_as_a_person_says() -> None:
    """The gateway took 400 of 500: nothing is booked until somebody has said so, then that."""
    story, books = Story(), Books()
    request = story.flow.requests()[0]
    less = replace(yes(request), amount_minor=400)
    story.flow.answer(less)
    books.enter("charge", request.idempotency_key, 400, "charge_1")
    assert (story.payment.attempts[0].state, story.settled) == ("contradicted", [])
    story.command("resolve", "p1", decision="charged", gateway_reference="charge_1",
                  amount_minor=400)  # fmt: skip
    assert (story.status, story.money) == ("captured", (400, 400, 0))
    assert story.settled == [("capture", 400)]
    assert found(story, books) == []
    assert story.notify("succeeded", amount_minor=400).note == "stale_result"
    assert story.rejected("refund", "r1", amount_minor=401) == "refund_must_not_exceed_captured"
    story.command("refund", "r2")
    assert story.flow.requests()[-1].amount_minor == 400


def test_an_authorization_of_another_amount_holds_what_a_person_says() -> None:
    """No more can be captured of it, and its void lets go of all."""
    story = Story(MANUAL)
    story.flow.answer(replace(yes(story.flow.requests()[0]), amount_minor=400))
    story.command("resolve", "p1", decision="charged", gateway_reference="authorize_1",
                  amount_minor=400)  # fmt: skip
    assert (story.status, story.money) == ("authorized", (400, 0, 0))
    assert story.rejected("capture", "c1", amount_minor=401) == "capture_must_not_exceed_authorized"
    story.command("cancel", "c2")
    story.flow.answer(yes)
    assert (story.status, story.money) == ("cancelled", (0, 0, 0))


def test_a_reference_is_kept_as_gateways_give_it() -> None:
    """Copied with blanks around it, the gateway's own notice would contradict it, and refunds would
    name a charge that nobody has."""
    story, books = Story(), Books()
    request = story.flow.requests()[0]
    story.flow.answer(TIMED_OUT)
    books.enter("charge", request.idempotency_key, 500, "charge_1")
    story.command("resolve", "p1", decision="charged", gateway_reference=" charge_1\n")
    assert story.payment.attempts[0].gateway_reference == "charge_1"
    story.flow.run(yes)
    assert found(story, books) == []
    assert story.notify("succeeded").note == "stale_result"
    story.command("refund", "r1", gateway_reference=" charge_1 ")
    assert story.flow.requests()[-1].parent_reference == "charge_1"
