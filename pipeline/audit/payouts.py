"""Whether payouts went their way, judged by their decisions in `ledger-events` alone.

Written a second time from docs/payouts.md; no code is shared with what decides. Whether the entries
are booked as decided is looked at with all others (``books``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.audit.names import one_person
from pipeline.audit.terms import DecisionSeen, Lines

# What each decision may follow on, and the state it leads to.
_STEPS: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "payout_approved": (frozenset({"created"}), "approved"),
    "payout_withdrawn": (frozenset({"created", "approved"}), "returned"),
    "payout_submitted": (frozenset({"approved"}), "submitted"),
    "payout_paid": (frozenset({"submitted", "unknown"}), "paid"),
    "payout_returned": (frozenset({"submitted", "unknown", "paid"}), "returned"),
    "payout_unknown": (frozenset({"submitted"}), "unknown"),
}


@dataclass
class _Seen:
    state: str
    creator: str
    body: Mapping[str, Any]


def wrong_payouts(decisions: Sequence[DecisionSeen]) -> Iterator[tuple[DecisionSeen, str]]:
    """Each decision about a payout that should not have been made, and why; in their order."""
    seen: dict[str, _Seen] = {}
    days: set[tuple[str, str, str]] = set()
    for decision in decisions:
        body = decision.body
        if decision.kind in ("payout_created", "payout_netted"):
            if _lines(body) != _plain(_taken(body)):
                yield decision, "its lines are not what it says is paid, held and collected"
            if body.get("advanced_minor") and not _allowed(decisions, body):
                yield decision, "it pays an advance that the terms do not allow"
            if decision.kind == "payout_netted":
                continue
            day = body["merchant_id"], body["currency"], body["business_date"]
            if day in days:
                yield decision, f"{day[0]} is paid in {day[1]} for {day[2]} already"
            days.add(day)
            seen[body["payout_id"]] = _Seen("created", decision.actor, body)
        elif decision.kind in _STEPS:
            payout = seen.get(body["payout_id"])
            if payout is None:
                yield decision, f"payout {body['payout_id']} was never created"
                continue
            before, after = _STEPS[decision.kind]
            if payout.state not in before:
                yield decision, f"payout {body['payout_id']} is {payout.state}"
            if decision.kind == "payout_approved" and one_person(decision.actor, payout.creator):
                yield decision, f"{decision.actor!r} approves what {payout.creator!r} created"
            if _lines(body) != _plain(_moved(decision.kind, payout)):
                yield decision, "its lines are not those of its payout's amount"
            payout.state = after


def _allowed(decisions: Sequence[DecisionSeen], body: Mapping[str, Any]) -> bool:
    """Whether the terms that it was created by have advances, and of so much."""
    document: Mapping[str, Any] = next(
        (d.body["terms"] for d in decisions if d.sequence == body["terms"]), {}
    )
    whose = body["merchant_id"], body["currency"]
    for row in document.get("payouts", ()):
        if (row["merchant"], row["currency"]) == whose:
            advance = row.get("advance", "off")
            return advance != "off" and bool(body["advanced_minor"] <= advance["maximum_minor"])
    return False


def _taken(body: Mapping[str, Any]) -> Lines:
    """What a day's funds became, by account."""
    merchant, currency = body["merchant_id"], body["currency"]
    amount, held, released, collected, met, called = (
        body[f"{name}_minor"]
        for name in ("amount", "held", "released", "collected", "from_reserve", "called_in")
    )
    # Decisions of before there were advances name none.
    advanced = body.get("advanced_minor", 0)
    lines: Lines = Counter()
    lines[f"merchant_available:{merchant}", currency] += amount - advanced + held + collected
    lines[f"merchant_available:{merchant}", currency] -= released + met + called
    lines[f"reserve:{merchant}", currency] += released + met - held
    lines[f"merchant_receivable:{merchant}", currency] += called - collected + advanced
    lines[f"payouts_in_transit:{merchant}", currency] -= amount
    return lines


def _moved(kind: str, payout: _Seen) -> Lines:
    merchant, currency = payout.body["merchant_id"], payout.body["currency"]
    amount = payout.body["amount_minor"]
    in_transit = f"payouts_in_transit:{merchant}"
    bank = f"bank:{payout.body['paid_from']['bank']}"
    lines: Lines = Counter()
    if kind == "payout_paid":
        lines[in_transit, currency] += amount
        lines[bank, currency] -= amount
    elif kind in ("payout_returned", "payout_withdrawn"):
        lines[bank if payout.state == "paid" else in_transit, currency] += amount
        lines[f"merchant_available:{merchant}", currency] -= amount
    return lines


def _lines(body: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    found: Lines = Counter()
    for account, currency, minor in (body["entry"] or {"postings": ()})["postings"]:
        found[account, currency] += minor
    return _plain(found)


def _plain(lines: Lines) -> dict[tuple[str, str], int]:
    return {key: minor for key, minor in lines.items() if minor}
