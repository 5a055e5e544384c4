"""The audit over single stories, as the processors wrote them: what it says, and what ends it."""

from __future__ import annotations

from pipeline.audit.gateway_copy import GatewayCopy
from tests.support.audit_story import judged_flow
from tests.support.payment_story import Story, yes


class Books:
    """The gateway's own books of one order, written by hand."""

    def __init__(self) -> None:
        self.copy = GatewayCopy()
        self._entries = 0

    def enter(self, kind: str, reference: str, amount_minor: int, charge_id: str) -> None:
        self._entries += 1
        self.copy.add(
            {
                "kind": kind,
                "id": charge_id if kind == "charge" else f"{kind}_{self._entries}",
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
