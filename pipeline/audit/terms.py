"""What fees, gateway costs and closed periods make of a settlement, worked out a second time.

Written from docs/ledger.md with fractions, where the ledger's own rules use integers; no code is
shared. The decisions are read from the topic `ledger-events`, not from the ledger.
"""

from __future__ import annotations

import json
import re
from calendar import monthrange
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from fractions import Fraction
from math import floor
from typing import Any, Final

from msgspec import Struct

Lines = Counter[tuple[str, str]]

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class DecisionSeen(Struct, frozen=True):
    """One decision about the books, at the first place it stands."""

    partition: int
    offset: int
    sequence: int
    event_id: str
    kind: str
    body: Mapping[str, Any]
    actor: str = ""


class Movement(Struct, frozen=True):
    """What is asked of a settlement here; ``amount_minor`` is signed, positive to the merchant."""

    kind: str
    merchant: str
    gateway: str
    currency: str
    amount_minor: int
    method: str
    settled_at_ms: int


@dataclass(frozen=True)
class Decisions:
    """All decisions, in their order."""

    seen: tuple[DecisionSeen, ...] = ()

    def schedules(self) -> list[tuple[int, int, Mapping[str, Any]]]:
        """(from when, version, document), the one that counts at a time last."""
        return sorted(
            (
                (d.body["effective_from_ms"], d.sequence, d.body["schedule"])
                for d in self.seen
                if d.kind == "fee_schedule"
            ),
            key=lambda each: each[:2],
        )

    def schedule(self, version: int) -> Mapping[str, Any] | None:
        return next((doc for _, v, doc in self.schedules() if v == version), None)

    def later_day(self, day: str, partition: int, offset: int) -> str:
        """The day a record counts under when its own was closed before it came, else ""."""
        closed = ""
        for each in self.seen:
            if each.kind == "period_close" and offset >= each.body["cuts"].get(str(partition), 0):
                closed = max(closed, each.body["through"])
        return next_day(closed) if day <= closed else ""


@dataclass
class PaymentTerms:
    """One payment, settlement by settlement, in the order of the log."""

    decisions: Decisions
    name: str = ""
    captures: int = 0
    captured: int = 0
    refunded: int = 0
    fee: int = 0
    returned: int = 0
    at_gateways: dict[str, list[int]] = field(default_factory=dict)

    def take(self, m: Movement) -> tuple[str, Lines]:
        """The name of the terms, and every line beside the movement itself."""
        if m.kind.startswith("unasked_"):
            # Of no merchant, so under nobody's terms.
            return "", Counter()
        name = self.name if self.captures else self._name(m)
        if m.kind == "capture" and not self.captures:
            self.name = name
        lines: Lines = Counter()
        document = self.decisions.schedule(int(name.split("/")[0])) if name else None
        if document is None:
            # Counted all the same: what came before has no part in a later fee.
            self._count(m)
            return name, lines
        _, plan_name, method = name.split("/")
        plan = next((p for p in document.get("plans", []) if p["name"] == plan_name), None)
        cost = _best(document.get("gateway_costs", []), gateway=m.gateway, method=method,
                     currency=m.currency)  # fmt: skip
        if m.kind == "capture":
            self._count(m)
            if plan is not None:
                charged = self._due(plan) - self.fee
                self.fee += charged
                _add_fee(lines, m, charged)
            if cost is not None:
                taken = cost.get("fixed_minor", 0) + rounded(m.amount_minor * _part(cost))
                self.at_gateways[m.gateway][2] += taken
                _add_cost(lines, m, taken)
        elif m.kind == "external_refund":
            self._count(m)
            back = self._fee_back(plan, m)
            self.returned += back
            _add_fee(lines, m, -back, "merchant_available")
        elif m.kind in ("refund", "refund_failed"):
            self._count(m)
            back = self._fee_back(plan, m)
            self.returned += back
            _add_fee(lines, m, -back)
            cost_back = self._cost_back(cost, m)
            self.at_gateways[m.gateway][3] += cost_back
            _add_cost(lines, m, -cost_back)
        elif m.kind in ("dispute", "dispute_fee", "reversal") and _passes_on(plan):
            lines[f"disputes_and_losses:{m.merchant}", m.currency] += m.amount_minor
            lines[f"merchant_payable:{m.merchant}", m.currency] -= m.amount_minor
        return name, lines

    def _count(self, m: Movement) -> None:
        at = self.at_gateways.setdefault(m.gateway, [0, 0, 0, 0])
        if m.kind == "capture":
            self.captures += 1
            self.captured += m.amount_minor
            at[0] += m.amount_minor
        elif m.kind in ("refund", "refund_failed"):
            self.refunded -= m.amount_minor
            at[1] -= m.amount_minor
        elif m.kind == "external_refund":
            self.refunded -= m.amount_minor

    def _name(self, m: Movement) -> str:
        found = None
        for from_ms, version, document in self.decisions.schedules():
            if from_ms <= m.settled_at_ms:
                found = version, document
        if found is None:
            return ""
        method = m.method if _ID.fullmatch(m.method) else ""
        plan = _best(found[1].get("plans", []), merchant=m.merchant, method=method,
                     currency=m.currency)  # fmt: skip
        return f"{found[0]}/{plan['name'] if plan is not None else '-'}/{method}"

    def _fixed(self, plan: Mapping[str, Any]) -> int:
        times = self.captures if plan.get("fixed_per", "payment") == "capture" else 1
        return int(plan.get("fixed_minor", 0)) * times

    def _due(self, plan: Mapping[str, Any]) -> int:
        due = self._fixed(plan) + rounded(self.captured * _part(plan))
        return max(due, int(plan.get("minimum_minor", 0)))

    def _fee_back(self, plan: Mapping[str, Any] | None, m: Movement) -> int:
        policy = "none" if plan is None else plan.get("returned", "none")
        if plan is None or policy == "none" or not self.captured:
            return 0
        whole = self.fee if policy == "all" else max(0, self.fee - self._fixed(plan))
        more = rounded(Fraction(whole * self.refunded, self.captured)) - self.returned
        return max(more, 0) if m.amount_minor < 0 else min(more, 0)

    def _cost_back(self, cost: Mapping[str, Any] | None, m: Movement) -> int:
        captured, refunded, taken, returned = self.at_gateways[m.gateway]
        if cost is None or not cost.get("returned", False) or not captured:
            return 0
        more = rounded(Fraction(taken * refunded, captured)) - returned
        return max(more, 0) if m.amount_minor < 0 else min(more, 0)


class CaptureBooked(Struct, frozen=True):
    """A capture as it stands in the ledger: what a month's tiers are counted on."""

    day: str
    merchant: str
    currency: str
    terms: str
    amount_minor: int
    payment: str = ""


class RefundBooked(Struct, frozen=True):
    """A refund as it stands in the ledger, or one that failed: signed, positive to the customer."""

    day: str
    payment: str
    amount_minor: int


def tier_returns(
    close: DecisionSeen,
    decisions: Decisions,
    given: Mapping[tuple[str, str, str, str], int],
    captures: Sequence[CaptureBooked],
    refunds: Iterable[RefundBooked],
) -> Counter[tuple[str, str, str, str]]:
    """Of all corrections that were ``given`` until then: what refunds have taken back through a
    close, in all, as it changes the merchant's fees. Nothing by a close of before this was so."""
    found: Counter[tuple[str, str, str, str]] = Counter()
    if close.body.get("tiers") != "over_versions":
        return found
    through = close.body["through"]
    left: Counter[str] = Counter()
    for refund in refunds:
        if refund.day <= through:
            left[refund.payment] += refund.amount_minor
    volumes: Counter[tuple[str, str, str, str]] = Counter()
    taken: Counter[tuple[str, str, str, str]] = Counter()
    for capture in sorted(captures, key=lambda each: each.day[:7]):
        if capture.day > through:
            continue
        version, plan, _ = capture.terms.split("/")
        key = (capture.day[:7], capture.merchant, capture.currency, f"{version}/{plan}/")
        part = max(0, min(left[capture.payment], capture.amount_minor))
        left[capture.payment] -= part
        volumes[key] += capture.amount_minor
        taken[key] += part
    for key, minor in given.items():
        number, name, _ = key[3].split("/")
        document = decisions.schedule(int(number)) or {}
        row = next((p for p in document.get("plans", []) if p["name"] == name), None)
        if row is not None and row.get("returned", "none") != "none" and volumes[key]:
            found[key] = -rounded(Fraction(minor * taken[key], volumes[key]))
    return found


def tier_corrections(
    decisions: Decisions, close: DecisionSeen, captures: Iterable[CaptureBooked]
) -> Counter[tuple[str, str, str, str]]:
    """By month, merchant, currency and terms: what a close books for tiers, where it is not 0."""
    through = close.body["through"]
    before = max(
        (d.body["through"] for d in decisions.seen
         if d.kind == "period_close" and d.sequence < close.sequence), default="",
    )  # fmt: skip
    volumes: Counter[tuple[str, str, str, str]] = Counter()
    for capture in captures:
        month = capture.day[:7]
        version, plan, _ = (capture.terms or "//").split("/")
        if capture.terms and capture.day <= through and before < _month_end(month) <= through:
            volumes[month, capture.merchant, capture.currency, f"{version}/{plan}/"] += (
                capture.amount_minor
            )
    found: Counter[tuple[str, str, str, str]] = Counter()
    # A month's volume of a plan is one, and its versions follow one another in it; a close of
    # before that was so does not say it, and counted each by itself.
    together = close.body.get("tiers") == "over_versions"
    below: Counter[tuple[str, str, str, str]] = Counter()
    exact: dict[tuple[str, str, str, str], Fraction] = {}
    for _, number, document in decisions.schedules():
        for row in document.get("plans", []):
            for key, volume in volumes.items():
                if key[3] != f"{number}/{row['name']}/":
                    continue
                month, merchant, currency, _terms = key
                whole = (month, merchant, currency, row["name"] if together else key[3])
                start, so_far = below[whole], exact.get(whole, Fraction(0))
                added = _graduated(row, start + volume) - _graduated(row, start)
                below[whole], exact[whole] = start + volume, so_far + added
                correction = rounded(so_far + added) - rounded(so_far)
                if correction:
                    found[key] = correction
    return found


def _graduated(plan: Mapping[str, Any], volume: int) -> Fraction:
    tiers = plan.get("tiers", [])
    bounds = [tier["above_minor"] for tier in tiers] + [max(volume, 0)]
    more = Fraction(0)
    for tier, upper in zip(tiers, bounds[1:], strict=True):
        slice_minor = max(0, min(volume, upper) - tier["above_minor"])
        more += slice_minor * (_part(tier) - _part(plan))
    return more


def decision_of(partition: int, offset: int, fields: Mapping[str, Any]) -> DecisionSeen:
    """ValueError when the body is not JSON."""
    return DecisionSeen(
        partition, offset, fields["sequence"], fields["event_id"], fields["kind"],
        json.loads(fields["body"]), fields["actor"],
    )  # fmt: skip


def decided_entry(decision: DecisionSeen) -> Mapping[str, Any] | None:
    """The entry that a decision holds: one by hand is it, one about a payout may have one."""
    if decision.kind == "entry":
        return decision.body
    if decision.kind.startswith("payout_") and decision.kind != "payout_terms":
        held: Mapping[str, Any] | None = decision.body["entry"]
        return held
    return None


def next_day(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def rounded(exact: Fraction) -> int:
    """Half away from zero."""
    magnitude = floor(abs(exact) + Fraction(1, 2))
    return magnitude if exact >= 0 else -magnitude


def _passes_on(plan: Mapping[str, Any] | None) -> bool:
    return plan is not None and plan.get("disputes", "held") == "merchant"


def _part(row: Mapping[str, Any]) -> Fraction:
    return Fraction(row.get("percentage", "0")) / 100


def _best(rows: Sequence[Mapping[str, Any]], **asked: str) -> Mapping[str, Any] | None:
    """The row that says the most of what is asked, the first of the names counting most."""
    fitting = [
        row
        for row in rows
        if all(row.get(name, "*") in ("*", value) for name, value in asked.items())
    ]
    return max(fitting, key=lambda row: [row.get(name, "*") != "*" for name in asked], default=None)


def _add_fee(lines: Lines, m: Movement, minor: int, owed: str = "merchant_payable") -> None:
    lines[f"{owed}:{m.merchant}", m.currency] += minor
    lines[f"fee_revenue:{m.merchant}", m.currency] -= minor


def _add_cost(lines: Lines, m: Movement, minor: int) -> None:
    lines[f"gateway_cost:{m.gateway}", m.currency] += minor
    lines[f"gateway_receivable:{m.gateway}", m.currency] -= minor


def _month_end(month: str) -> str:
    return f"{month}-{monthrange(int(month[:4]), int(month[5:]))[1]:02d}"
