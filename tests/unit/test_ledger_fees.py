"""Fees, gateway costs and disputes in figures that were worked out by hand.

Each story is a table: a settlement, and what each account holds after it. Amounts are written in
the currency's own decimals, debits positive, credits negative, as in docs/ledger.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.accounts import CHART, CREDIT, CURRENCY_POSITION, is_account
from pipeline.domain.fee_schedule import FeePlan, FeeSchedule, Terms, read_schedule, terms_of
from pipeline.domain.fees import (
    UNKNOWN_PAYMENT,
    after,
    fee_due,
    priced,
    share,
    tier_correction,
    tier_corrections,
)
from pipeline.domain.money import parse_amount
from pipeline.domain.posting import JournalEntry, Posting
from pipeline.domain.transfers import conversion, cost_true_up, fee_true_up, made_available
from pipeline.errors import UserError
from tests.support.ledger import entry_of

PAYABLE, FEES, COST, GATEWAY, DISPUTES = (
    "merchant_payable:m1", "fee_revenue:m1", "gateway_cost:simulator",
    "gateway_receivable:simulator", "disputes_and_losses:m1",
)  # fmt: skip


def terms(plans: list[dict[str, Any]], costs: list[dict[str, Any]] | None = None) -> Terms:
    return terms_of([read_schedule({"plans": plans, "gateway_costs": costs or []})])


class Books:
    """One payment's entries, one after the other, and every account's balance."""

    def __init__(self, terms: Terms, currency: str = "GBP", method: str = "card") -> None:
        self.terms = terms
        self.currency = currency
        self.method = method
        self.payment = UNKNOWN_PAYMENT
        self.balances: dict[str, int] = {}
        self.entries: list[JournalEntry] = []

    def book(self, kind: str, amount: str, **changed: Any) -> dict[str, int]:
        """Book a settlement; the lines it made, summed by account."""
        movement = entry_of(
            1,
            kind=kind,
            amount_minor=parse_amount(amount, self.currency),
            currency=self.currency,
            operation_id=f"op-{len(self.entries)}",
            payment_method=self.method,
            **changed,
        )
        entry = priced(movement, self.payment, self.terms)
        self.payment = after(self.payment, entry)
        self.entries.append(entry)
        lines: dict[str, int] = {}
        for posting in entry.postings:
            assert is_account(posting.account)
            lines[posting.account] = lines.get(posting.account, 0) + posting.amount_minor
            old = self.balances.get(posting.account, 0)
            self.balances[posting.account] = old + posting.amount_minor
        assert sum(lines.values()) == 0
        return lines

    def holds(self, **wanted: str) -> None:
        """What the accounts of these kinds hold now, in decimals."""
        found = {name.partition(":")[0]: minor for name, minor in self.balances.items() if minor}
        assert found == {k: parse_amount(a, self.currency) for k, a in wanted.items()}


def test_a_capture_in_pounds_with_fee_and_cost() -> None:
    """100.00 at 1.4 % + 0.20 is a fee of 1.60; the gateway takes 0.9 % + 0.05, which is 0.95."""
    books = Books(
        terms(
            [{"name": "p", "currency": "GBP", "percentage": "1.4", "fixed_minor": 20}],
            [{"currency": "GBP", "percentage": "0.9", "fixed_minor": 5}],
        )
    )
    assert books.book("capture", "100.00") == {
        GATEWAY: 99_05, PAYABLE: -98_40, FEES: -1_60, COST: 95,
    }  # fmt: skip
    # A refund gives back neither fee nor cost unless the terms say so.
    assert books.book("refund", "-100.00") == {GATEWAY: -100_00, PAYABLE: 100_00}
    books.holds(
        gateway_receivable="-0.95",
        merchant_payable="1.60",
        fee_revenue="-1.60",
        gateway_cost="0.95",
    )


def test_yen_have_no_decimals() -> None:
    """JPY 1,999 at 3.6 % is 71.964, which is 72; refunded in thirds the fee returns 24, 24, 24."""
    books = Books(
        terms([{"name": "p", "currency": "JPY", "percentage": "3.6", "returned": "all"}]), "JPY"
    )
    assert books.book("capture", "1999")[FEES] == -72
    # 666: 72 * 666/1999 = 23.99 -> 24. 1,332: 47.98 -> 48. 1,999: 72.
    assert [books.book("refund", part)[FEES] for part in ("-666", "-666", "-667")] == [24, 24, 24]
    books.holds()


def test_dinars_have_three_decimals() -> None:
    """KWD 12.345 at 2.25 % + 0.100 is 0.27776 + 0.100: 0.378."""
    books = Books(
        terms(
            [{"name": "p", "currency": "KWD", "percentage": "2.25", "fixed_minor": 100,
              "returned": "percentage"}]
        ),
        "KWD",
    )  # fmt: skip
    assert books.book("capture", "12.345")[FEES] == -378
    # Only the percentage comes back: 0.278. Of 5.000: 0.278 * 5/12.345 = 0.1126 -> 0.113.
    assert books.book("refund", "-5.000")[FEES] == 113
    assert books.book("refund", "-7.345")[FEES] == 165
    books.holds(merchant_payable="0.100", fee_revenue="-0.100")


def test_a_fee_may_exceed_the_amount() -> None:
    """0.10 captured at a minimum of 0.30: the merchant owes 0.20."""
    books = Books(terms([{"name": "p", "currency": "GBP", "percentage": "2", "minimum_minor": 30}]))
    assert books.book("capture", "0.10") == {GATEWAY: 10, PAYABLE: 20, FEES: -30}
    books.holds(gateway_receivable="0.10", merchant_payable="0.20", fee_revenue="-0.30")


def test_a_chargeback_after_a_partial_refund() -> None:
    """100.00 captured, 30.00 refunded, the other 70.00 charged back with a fee of 15.00.

    The terms pass disputes on to the merchant, who is left owing the gateway's fee and ours.
    """
    books = Books(
        terms(
            [{"name": "p", "currency": "GBP", "percentage": "2", "returned": "all",
              "disputes": "merchant"}]
        )
    )  # fmt: skip
    books.book("capture", "100.00")
    books.holds(gateway_receivable="100.00", merchant_payable="-98.00", fee_revenue="-2.00")
    books.book("refund", "-30.00")
    books.holds(gateway_receivable="70.00", merchant_payable="-68.60", fee_revenue="-1.40")
    books.book("dispute", "-70.00")
    books.holds(merchant_payable="1.40", fee_revenue="-1.40")
    books.book("dispute_fee", "-15.00")
    books.holds(gateway_receivable="-15.00", merchant_payable="16.40", fee_revenue="-1.40")
    # Won after all: the 70.00 come back, the gateway's fee does not.
    books.book("reversal", "70.00")
    books.holds(gateway_receivable="55.00", merchant_payable="-53.60", fee_revenue="-1.40")


def test_a_dispute_is_held_unless_the_terms_pass_it_on() -> None:
    """Nobody bears it yet: it stands in disputes and losses, and the merchant is owed as before."""
    books = Books(terms([{"name": "p", "percentage": "2"}]))
    books.book("capture", "100.00")
    assert books.book("dispute", "-100.00") == {GATEWAY: -100_00, DISPUTES: 100_00}
    books.holds(merchant_payable="-98.00", fee_revenue="-2.00", disputes_and_losses="100.00")


def test_a_refund_that_failed_takes_the_fee_again() -> None:
    """What was returned with a refund is charged again when the refund comes back."""
    books = Books(terms([{"name": "p", "percentage": "3", "returned": "all"}]))
    books.book("capture", "10.01")  # 30.03 pence: 0.30
    assert books.book("refund", "-5.00")[FEES] == 15
    assert books.book("refund_failed", "5.00")[FEES] == -15
    assert books.book("refund", "-10.01")[FEES] == 30
    books.holds()


def test_a_capture_after_a_refund_is_charged_and_takes_nothing_returned_back() -> None:
    """By 2 % and 1.00 a payment: 5.00 in all, of which 3.00 went back with the first half already;
    110.00 of 200.00 would be 2.75."""
    plan = {"name": "p", "currency": "GBP", "percentage": "2", "fixed_minor": 1_00,
            "fixed_per": "payment", "returned": "all"}  # fmt: skip
    books = Books(terms([plan]))
    fees = [
        -books.book(kind, amount).get(FEES, 0)
        for kind, amount in (
            ("capture", "100.00"), ("refund", "-100.00"), ("capture", "100.00"),
            ("refund", "-10.00"), ("refund", "-90.00"),
        )
    ]  # fmt: skip
    assert fees == [3_00, -3_00, 2_00, 0, -2_00]
    books.holds()


def test_captures_in_parts_pay_the_fixed_fee_once_or_each_time() -> None:
    """Three captures of 3.33 at 1.5 %: 0.05, then 0.10 in all, then 0.15 in all."""
    once = Books(terms([{"name": "p", "currency": "GBP", "percentage": "1.5", "fixed_minor": 20}]))
    assert [once.book("capture", "3.33")[FEES] for _ in range(3)] == [-25, -5, -5]
    each = Books(
        terms(
            [{"name": "p", "currency": "GBP", "percentage": "1.5", "fixed_minor": 20,
              "fixed_per": "capture"}]
        )
    )  # fmt: skip
    assert [each.book("capture", "3.33")[FEES] for _ in range(3)] == [-25, -25, -25]


def test_a_gateway_that_gives_its_cost_back() -> None:
    """Cost 0.9 % of 10.00 is 0.09; a third refunded gives 0.03 back, the rest the rest."""
    books = Books(terms([], [{"percentage": "0.9", "returned": True}]))
    assert books.book("capture", "10.00")[COST] == 9
    assert books.book("refund", "-3.33")[COST] == -3
    assert books.book("refund", "-6.67")[COST] == -6
    books.holds()


@pytest.mark.slow
@given(
    parts=st.lists(st.integers(1, 10**9), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 10**9), max_size=8),
    ppm=st.integers(0, 100_000),
    fixed=st.integers(0, 500),
    returned=st.sampled_from(["all", "percentage"]),
    per=st.sampled_from(["payment", "capture"]),
)
def test_the_parts_sum_to_the_whole(
    parts: list[int], cuts: list[int], ppm: int, fixed: int, returned: str, per: str
) -> None:
    """However captures and refunds are cut: the whole fee is charged, and all of it comes back."""
    percentage = f"{ppm // 10_000}.{ppm % 10_000:04d}"
    plan = {"name": "p", "currency": "GBP", "percentage": percentage, "fixed_minor": fixed,
            "fixed_per": per, "returned": returned}  # fmt: skip
    found = terms([plan], [{"percentage": "0.7", "returned": True}])
    books = Books(found)
    for part in parts:
        books.book("capture", f"{part // 100}.{part % 100:02d}")
    whole = fee_due(found.schedules[0].plans[0], sum(parts), len(parts))
    assert books.payment.fee_minor == whole == -books.balances.get(FEES, 0)
    left = sum(parts)
    for cut in [*cuts, left]:
        refund = min(cut, left)
        if refund:
            left -= refund
            books.book("refund", f"-{refund // 100}.{refund % 100:02d}")
    kept = fixed * (1 if per == "payment" else len(parts)) if returned == "percentage" else 0
    assert -books.balances.get(FEES, 0) == kept
    assert books.balances.get(COST, 0) == 0
    assert books.balances[PAYABLE] == kept


def test_rounding_is_half_away_from_zero() -> None:
    """The one rule, on either side of zero."""
    assert [share(n, 1, 2) for n in (1, 3, -1, -3, 2)] == [1, 2, -1, -2, 1]
    assert share(25, 1, 1000) == 0
    assert share(500, 1, 1000) == 1


def test_tiers_are_set_right_on_the_months_volume() -> None:
    """1.5 % plain; above 10,000.00 it is 1.2 %, above 50,000.00 it is 0.9 %.

    Of 60,000.00: 40,000.00 * -0.3 % = -120.00 and 10,000.00 * -0.6 % = -60.00.
    """
    (schedule,) = terms(
        [{"name": "p", "currency": "GBP", "percentage": "1.5",
          "tiers": [{"above_minor": 1_000_000, "percentage": "1.2"},
                    {"above_minor": 5_000_000, "percentage": "0.9"}]}]
    ).schedules  # fmt: skip
    (plan,) = schedule.plans
    assert tier_correction(plan, 6_000_000) == -180_00
    assert tier_correction(plan, 1_000_000) == 0
    assert tier_correction(plan, 3_000_000) == -60_00


def test_a_months_volume_is_one_over_the_versions_of_a_plan() -> None:
    """By hand, in pence: 80.00 at 2 %, then 50.00 of a version with 1 % above 100.00, of which
    30.00 lie above: -0.30; then 0.50 without tiers: nothing; then 100.50 at 0.5 % above 100.00,
    all of it above: -1.5075. Rounded on the sum, -1.81, the parts are -0.30, 0 and -1.51."""

    def plan(*tiers: dict[str, Any]) -> FeePlan:
        (schedule,) = terms([{"name": "p", "currency": "GBP", "percentage": "2",
                              "tiers": list(tiers)}]).schedules  # fmt: skip
        return schedule.plans[0]

    first = plan({"above_minor": 100_00, "percentage": "1"})
    last = plan({"above_minor": 100_00, "percentage": "0.5"})
    slices = [(first, 80_00), (first, 50_00), (plan(), 50), (last, 100_50)]
    assert tier_corrections(slices) == [0, -30, 0, -151]
    assert sum(tier_corrections([(first, 10)] * 13_00)) == tier_correction(first, 130_00) == -30


def test_tiers_count_the_percentage_and_no_minimum() -> None:
    """1,000 sales of 1.00 cost the minimum of 0.50 each; above 500.00 it is 0.5 % and not 1 %, so
    500.00 * -0.5 % = -2.50 are given back, though each sale cost its minimum."""
    (schedule,) = terms(
        [{"name": "p", "currency": "GBP", "percentage": "1", "minimum_minor": 50,
          "tiers": [{"above_minor": 500_00, "percentage": "0.5"}]}]
    ).schedules  # fmt: skip
    (plan,) = schedule.plans
    assert fee_due(plan, 1_00, 1) == 50
    assert tier_correction(plan, 1_000_00) == -2_50


def test_percentage_returned_is_all_but_the_fixed_part() -> None:
    """1.4 % of 10.00 and 0.20 are 0.34, and the minimum is 0.50: 0.30 come back, not the 0.20."""
    books = Books(terms([{"name": "p", "currency": "GBP", "percentage": "1.4", "fixed_minor": 20,
                          "minimum_minor": 50, "returned": "percentage"}]))  # fmt: skip
    assert books.book("capture", "10.00")[FEES] == -50
    assert books.book("refund", "-10.00")[FEES] == 30


def test_the_most_exact_plan_counts() -> None:
    """By merchant before method before currency; without any that fits nothing is charged."""
    names = {
        "any": {}, "gbp": {"currency": "GBP"}, "card": {"method": "card"},
        "m1": {"merchant": "m1"}, "m1-wallet-eur": {"merchant": "m1", "method": "wallet",
                                                   "currency": "EUR"},
    }  # fmt: skip
    (schedule,) = terms([{"name": name, **where} for name, where in names.items()]).schedules

    def chosen(*asked: str) -> str:
        plan = schedule.plan_for(*asked)
        assert plan is not None
        return plan.name

    assert chosen("m1", "card", "GBP") == "m1"
    assert chosen("m1", "wallet", "EUR") == "m1-wallet-eur"
    assert chosen("m2", "card", "GBP") == "card"
    assert chosen("m2", "wallet", "GBP") == "gbp"
    assert chosen("m2", "wallet", "EUR") == "any"
    assert FeeSchedule(version=1, effective_from_ms=0).plan_for("m", "card", "GBP") is None


def test_a_payment_keeps_the_terms_of_its_first_capture() -> None:
    """Chosen by the capture's own time; a later version is for payments captured later."""
    old = {"plans": [{"name": "p", "percentage": "1", "returned": "all"}]}
    new = {"plans": [{"name": "p", "percentage": "5", "returned": "none"}]}
    at_ms = 1_700_000_000_500
    both = terms_of(
        [read_schedule(new, version=2, effective_from_ms=at_ms + 1), read_schedule(old, version=1)]
    )
    books = Books(both)
    assert books.book("capture", "10.00")[FEES] == -10
    assert books.book("refund", "-10.00", settled_at_ms=at_ms + 5_000)[FEES] == 10
    assert {entry.terms for entry in books.entries} == {"1/p/card"}
    late = Books(both)
    assert late.book("capture", "10.00", settled_at_ms=at_ms + 1)[FEES] == -50
    early = Books(terms_of([read_schedule(new, version=2, effective_from_ms=at_ms + 1)]))
    assert FEES not in early.book("capture", "10.00")
    assert FEES not in early.book("capture", "10.00", settled_at_ms=at_ms + 9)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"plan": []}, "does not know plan"),
        ({"plans": {}}, "is a list of tables"),
        ({"plans": [{}]}, r"plans\[0\] needs a name"),
        ({"plans": [{"name": "p", "percentage": 1.5}]}, "percentage is text"),
        ({"plans": [{"name": "p", "percentage": "0.12345"}]}, "four decimals"),
        ({"plans": [{"name": "p", "percentage": "\u0661"}]}, "four decimals"),
        ({"plans": [{"name": "p", "percentage": "101"}]}, "more than 100"),
        ({"plans": [{"name": "p", "fixed_minor": 20}]}, "amounts need a currency"),
        ({"plans": [{"name": "p", "currency": "gbp"}]}, "ISO 4217"),
        ({"plans": [{"name": "p", "returned": "some"}]}, "one of none, percentage, all"),
        ({"plans": [{"name": "p"}, {"name": "q"}]}, "two plans are for"),
        ({"plans": [{"name": "p"}, {"name": "p", "merchant": "m"}]}, "named p"),
        ({"gateway_costs": [{"fixed_minor": -1, "currency": "GBP"}]}, "not negative"),
        (
            {"plans": [{"name": "p", "currency": "GBP",
                        "tiers": [{"above_minor": 0, "percentage": "1"}]}]},
            "must begin above 0",
        ),
    ],
)  # fmt: skip
def test_a_wrong_schedule_is_said_so(document: dict[str, Any], said: str) -> None:
    """One sentence with the place, before anything is charged by it."""
    with pytest.raises(UserError, match=said):
        read_schedule(document)


def test_a_conversion_goes_through_the_positions() -> None:
    """GBP 100.00 owed become EUR 115.20: each currency balances by itself."""
    lines = conversion("merchant_available:shop", ("GBP", -10_000), ("EUR", -11_520))
    assert {(p.account, p.currency): p.amount_minor for p in lines} == {
        ("merchant_available:shop", "GBP"): 10_000,
        ("currency_position:GBP", "GBP"): -10_000,
        ("currency_position:EUR", "EUR"): 11_520,
        ("merchant_available:shop", "EUR"): -11_520,
    }
    for currency in ("GBP", "EUR"):
        assert sum(p.amount_minor for p in lines if p.currency == currency) == 0


def test_a_positions_credit_is_what_we_hold_beyond_what_we_owe() -> None:
    """By hand: GBP 100.00 of a merchant lie at our bank, and are converted to EUR 115.20. Of pounds
    we hold 100.00 and owe none, of euros we owe 115.20 and hold none. The bank then changes the
    pounds into 116.00: of euros we hold 0.80 more than we owe, of pounds neither."""
    shop, pounds, euros = "merchant_available:shop", "bank:main-gbp", "bank:main-eur"
    books = Counter({(pounds, "GBP"): 100_00, (shop, "GBP"): -100_00})

    def book(lines: Sequence[Posting]) -> None:
        for p in lines:
            books[p.account, p.currency] += p.amount_minor

    def position(currency: str) -> int:
        """Debits less credits; it has to be what is owed less what is held."""
        stands = books[f"{CURRENCY_POSITION}:{currency}", currency]
        kept = {name: minor for (name, of), minor in books.items() if of == currency}
        held = kept.get(pounds, 0) + kept.get(euros, 0)
        assert stands == -kept.get(shop, 0) - held
        return stands

    assert CHART[CURRENCY_POSITION].normal == CREDIT
    book(conversion(shop, ("GBP", -100_00), ("EUR", -115_20)))
    assert (position("GBP"), position("EUR")) == (-100_00, 115_20)
    book([
        Posting(pounds, "GBP", -100_00), Posting("currency_position:GBP", "GBP", 100_00),
        Posting(euros, "EUR", 116_00), Posting("currency_position:EUR", "EUR", -116_00),
    ])  # fmt: skip
    assert (position("GBP"), position("EUR")) == (0, -80)


def test_what_a_report_and_a_close_post() -> None:
    """The cost of a report's row replaces the accrued one; funds become available; tiers count."""
    assert [(p.account, p.amount_minor) for p in cost_true_up("sim", "GBP", 95, 102)] == [
        ("gateway_cost:sim", 7), ("gateway_receivable:sim", -7),
    ]  # fmt: skip
    assert cost_true_up("sim", "GBP", 95, 95) == ()
    assert [(p.account, p.amount_minor) for p in made_available("shop", "GBP", 9_840)] == [
        ("merchant_payable:shop", 9_840), ("merchant_available:shop", -9_840),
    ]  # fmt: skip
    assert [(p.account, p.amount_minor) for p in fee_true_up("shop", "GBP", -18_000)] == [
        ("merchant_payable:shop", -18_000), ("fee_revenue:shop", 18_000),
    ]  # fmt: skip


def test_the_chart_has_every_account_of_the_books() -> None:
    """What payouts and reconciliation will post to is there, per currency."""
    assert set(CHART) == {
        "gateway_receivable", "merchant_payable", "merchant_available", "merchant_receivable",
        "reserve", "payouts_in_transit", "bank", "fee_revenue", "gateway_cost",
        "disputes_and_losses", "unapplied_credits", "currency_position", "rounding", "suspense",
    }  # fmt: skip
    assert not is_account("merchant_payable")
    assert not is_account("thief:m1")
