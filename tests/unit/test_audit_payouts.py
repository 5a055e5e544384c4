"""The audit's own judgement of payouts, over what the domain really decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from pipeline.audit.ledger_copy import EntrySeen, PostingSeen
from pipeline.audit.report import Severity
from pipeline.domain.model import LedgerEvent
from pipeline.domain.payout_plan import Part, Position, plan_payout
from pipeline.domain.payout_terms import read_terms, terms_on
from pipeline.domain.payouts import PayoutBook, moving_body, taking_body
from tests.support.audit_flow import Flow, healthy_flow
from tests.support.payouts import ROLLING, document, row
from tests.unit.test_audit_terms import TOPIC, decide

Decided = list[tuple[str, str, dict[str, Any]]]


def decided() -> Decided:
    """(kind, actor, body) of a day whose negative balance is netted, and of a payout that is paid
    and comes back; the figures are all of them above zero somewhere."""
    terms = read_terms(document(row(reserve=ROLLING)))
    book = PayoutBook()
    found: Decided = []

    def take(kind: str, body: str, actor: str) -> None:
        event = LedgerEvent(
            event_id=str(len(found)), kind=kind, sequence=len(found) + 1, actor=actor,
            decided_at_ms=0, body=body,
        )  # fmt: skip
        book.take(event)
        found.append((kind, actor, json.loads(body)))

    def day(day: date, position: Position) -> None:
        force = terms_on((terms,), "shop", "GBP", day)
        assert force is not None
        plan = plan_payout(position, force.terms, day)
        take(*taking_body(plan, force, day.isoformat()), actor="anna")

    day(
        date(2027, 1, 12),
        Position(funds_minor=-130, reserve=(Part("2027-01-11", 100, "2027-04-01"),)),
    )
    day(
        date(2027, 1, 13),
        Position(
            funds_minor=1_000, receivable_minor=30, reserve=(Part("2026-01-04", 7, "2027-01-04"),)
        ),
    )
    (payout_id,) = book.payouts
    for act, actor in (
        ("approve", "bert"), ("submit", "anna"), ("lose", "anna"), ("confirm", "bank"),
        ("return", "bank"),
    ):  # fmt: skip
        kind, body = moving_body(book.payouts[payout_id], act, actor=actor, day="2027-01-14")
        take(kind, body, actor)
    return found


def audited(story: Decided) -> set[str]:
    flow: Flow = healthy_flow()
    for kind, actor, body in story:
        placed = decide(flow, kind, body)
        assert placed.fields is not None
        placed.fields["actor"] = actor
        entry = body["entry"]
        if entry is None:
            continue
        flow.entries.append(
            EntrySeen(
                f"{kind}:{placed.offset}", "", TOPIC, placed.partition, placed.offset,
                tuple(PostingSeen(*line) for line in entry["postings"]),
                entry["kind"], entry["merchant_id"], entry["business_date"],
            )
        )  # fmt: skip
    return {f.name for f in flow.audit() if f.severity is Severity.BROKEN}


def test_a_payout_that_goes_its_way_is_right() -> None:
    """970.00 after what was owed, 97.00 held, 7.00 released; paid, and returned after that."""
    story = decided()
    assert story[1][2]["amount_minor"] == 970 - 97 + 7
    assert audited(story) == set()


def _change(story: Decided, number: int, **changed: Any) -> None:
    story[number][2].update(changed)


def _move_more(story: Decided, number: int) -> None:
    first, second = story[number][2]["entry"]["postings"][:2]
    first[2] += 1
    second[2] -= 1


DAMAGES: dict[str, Callable[[Decided], Any]] = {
    "approved by its creator": lambda s: s.__setitem__(2, (s[2][0], "anna", s[2][2])),
    "approved by its creator in capitals": lambda s: s.__setitem__(2, (s[2][0], "ANNA ", s[2][2])),
    "approved by its creator in wide letters": lambda s: s.__setitem__(
        2, (s[2][0], "\uff41\uff4e\uff4e\uff41", s[2][2])
    ),
    "approved by its creator with what nobody sees": lambda s: s.__setitem__(
        2, (s[2][0], "an\u200bna\u034f", s[2][2])
    ),
    "approval left out": lambda s: s.pop(2),
    "submission left out": lambda s: s.pop(3),
    "returned before it was submitted": lambda s: s.insert(2, s.pop(6)),
    "created twice": lambda s: s.insert(2, s[1]),
    "never created": lambda s: s.pop(1),
    "pays more than it says": lambda s: _move_more(s, 1),
    "nets more than it says": lambda s: _move_more(s, 0),
    "the bank paid more": lambda s: _move_more(s, 5),
    "more came back": lambda s: _move_more(s, 6),
    "says less than it holds": lambda s: _change(s, 1, held_minor=96),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_decision_is_named(damage: str) -> None:
    story = decided()
    DAMAGES[damage](story)
    assert audited(story) == {"payout_decision_wrong"}


@pytest.mark.parametrize(
    ("advance", "wrong"),
    [
        ({"percentage": "50", "maximum_minor": 20}, set()),
        ({"percentage": "50", "maximum_minor": 19}, {"payout_decision_wrong"}),
        ("off", {"payout_decision_wrong"}),
    ],
)
def test_an_advance_is_one_that_the_terms_allow(advance: Any, wrong: set[str]) -> None:
    """Of 40 pending 20 are advanced by the terms; the audit reads what the terms allow."""
    allowed = document(row(advance={"percentage": "50", "maximum_minor": 20}))
    force = terms_on((read_terms(allowed, version=1),), "shop", "GBP", date(2027, 1, 13))
    assert force is not None
    position = Position(funds_minor=5, pending_minor=40)
    plan = plan_payout(position, force.terms, date(2027, 1, 13))
    assert (plan.amount_minor, plan.advanced_minor) == (25, 20)
    kind, body = taking_body(plan, force, "2027-01-13")
    terms = {"effective_from_ms": 0, "terms": document(row(advance=advance)), "entry": None}
    story = [("payout_terms", "anna", terms), (kind, "anna", json.loads(body))]
    assert audited(story) == wrong


def test_what_is_booked_is_what_was_decided() -> None:
    """Booked otherwise, or not at all, it is an entry of nobody's decision."""
    story = decided()
    flow: Flow = healthy_flow()
    for kind, actor, body in story:
        placed = decide(flow, kind, body)
        assert placed.fields is not None
        placed.fields["actor"] = actor
    found = {f.name for f in flow.audit() if f.severity is Severity.BROKEN}
    assert found == {"journal_entry_without_decision"}
