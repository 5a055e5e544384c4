from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain import validation
from pipeline.domain.model import Order, OrderLine
from pipeline.domain.policy import DAY_MS, GatewayProfile, Policy
from pipeline.domain.validation import RULES, broken_rule, is_date

NOW = 1_790_000_000_000

GOOD = Order(
    merchant_id="shop",
    order_id="536365",
    amount_minor=500,
    currency="GBP",
    instrument_token="tok_1",
    business_date="2026-09-21",
    submitted_at_ms=NOW - 1000,
    pay_before_ms=NOW + 1,
    lines=(
        OrderLine(line_number=1, sku="a", quantity=3, unit_amount_minor=200),
        OrderLine(line_number=2, sku="a", quantity=-1, unit_amount_minor=100),
    ),
)

BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("amount_must_not_be_negative", {"amount_minor": -1}),
    ("amount_must_not_exceed_limit", {"amount_minor": 10**12}),
    ("currency_must_be_iso_4217", {"currency": "gbp"}),
    ("currency_must_be_iso_4217", {"currency": ""}),
    ("instrument_token_must_be_present", {"instrument_token": " "}),
    ("instrument_token_must_not_be_a_card_number", {"instrument_token": "4111 1111 1111 1111"}),
    ("instrument_token_must_be_at_most_255_characters", {"instrument_token": "t" * 256}),
    ("customer_id_must_be_at_most_255_characters", {"customer_id": "c" * 256}),
    ("texts_must_be_at_most_255_characters", {"payment_method": "c" * 256}),
    ("texts_must_be_at_most_255_characters", {"country": "c" * 256}),
    ("texts_must_be_at_most_255_characters", {"card_fingerprint": "c" * 256}),
    ("instrument_token_must_not_be_masked", {"instrument_token": "tok 4111-11**-****-1111"}),
    ("business_date_must_be_a_date", {"business_date": "2026-02-30"}),
    ("submitted_at_must_be_within_24_months", {"submitted_at_ms": NOW - 730 * DAY_MS - 1}),
    ("submitted_at_must_not_be_in_the_future", {"submitted_at_ms": NOW + DAY_MS + 1}),
    ("capture_method_must_be_automatic_or_manual", {"capture_method": "later"}),
    ("pay_before_must_be_in_the_future", {"pay_before_ms": NOW}),
    ("line_numbers_must_be_unique", {"lines": (GOOD.lines[0], GOOD.lines[0])}),
    ("lines_must_sum_to_amount", {"lines": GOOD.lines[:1]}),
    ("currency_must_be_supported_by_a_gateway", {"currency": "JPY"}),
]

POLICY = Policy(gateways=(GatewayProfile(name="simulator", currencies=frozenset({"GBP"})),))


def test_a_good_order_breaks_no_rule() -> None:
    """Limits are inclusive and adjustments may be negative lines."""
    assert broken_rule(GOOD, NOW, POLICY) is None
    at_limits = replace(
        GOOD,
        amount_minor=10**12 - 1,
        lines=(),
        submitted_at_ms=NOW - 730 * DAY_MS,
        instrument_token="t" * 255,
    )
    assert broken_rule(at_limits, NOW, POLICY) is None
    assert broken_rule(replace(GOOD, submitted_at_ms=NOW + DAY_MS), NOW, POLICY) is None


@pytest.mark.parametrize(("rule", "changes"), BROKEN)
def test_each_broken_rule_has_its_name(rule: str, changes: dict[str, Any]) -> None:
    """An order that breaks one rule is refused in that rule's words."""
    assert broken_rule(replace(GOOD, **changes), NOW, POLICY) == rule


def test_every_rule_is_tried() -> None:
    """No rule is on the list without an order that breaks it."""
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_what_costs_nothing_needs_no_means_to_pay() -> None:
    """An order of zero is asked for no instrument, gateway, deadline or capture method."""
    free = replace(
        GOOD, amount_minor=0, lines=(), instrument_token="", pay_before_ms=1, currency="JPY",
        capture_method="later",
    )  # fmt: skip
    assert broken_rule(free, NOW, POLICY) is None
    assert broken_rule(replace(free, currency="?"), NOW, POLICY) == "currency_must_be_iso_4217"


@pytest.mark.parametrize(
    "text", ["20260921", "2026-W39-1", "2026-9-21", "", "2026-13-01", "x" * 10]
)
def test_other_formats_are_no_dates(text: str) -> None:
    """A business date is YYYY-MM-DD and nothing else."""
    assert not is_date(text)
    assert validation.is_date("2024-02-29")
