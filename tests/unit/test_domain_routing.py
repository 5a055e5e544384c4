"""Which gateway a payment goes to, and the sentence that says why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.model import Order
from pipeline.domain.policy import DEFAULT_POLICY, GatewayProfile, Policy
from pipeline.domain.routes import (
    AmountRange,
    Fee,
    Health,
    MerchantRoute,
    Rate,
    RouteRule,
    Routes,
)
from pipeline.domain.routing import RouteFacts, route
from pipeline.processors.order import process_order

NORTH = GatewayProfile(name="north", priority=10)
SOUTH = GatewayProfile(name="south", priority=20)
NB = GatewayProfile(name="nb", priority=1, token_prefixes=("nb_",))
BOTH = Policy(gateways=(SOUTH, NORTH))


def facts(number: int = 1, **more: Any) -> RouteFacts:
    given: dict[str, Any] = {"merchant_id": "shop", "currency": "GBP", "amount_minor": 1_000}
    return RouteFacts(payment_id=f"pay-{number}", **{**given, **more})


def chosen(policy: Policy, told: RouteFacts | None = None, **more: Any) -> tuple[str, str]:
    found = route(policy, told or facts(), **more)
    return ("", "") if found is None else (found.profile.name, found.because)


def even(*names: str, **more: Any) -> Policy:
    """Gateways that differ in nothing but what is given."""
    return Policy(
        gateways=tuple(GatewayProfile(name=n, **{k: v[n] for k, v in more.items()}) for n in names)
    )


def test_the_lowest_priority_number_goes_first_and_the_sentence_says_so() -> None:
    """Whoever reads the payment's history learns which gateway it was preferred to."""
    assert chosen(BOTH) == ("north", "north: priority 10 comes before south")


@pytest.mark.parametrize(
    ("limit", "inside", "outside"),
    [
        ({"currencies": frozenset({"GBP"})}, {}, {"currency": "EUR"}),
        ({"merchants": frozenset({"shop"})}, {}, {"merchant_id": "other"}),
        ({"methods": frozenset({"card"})}, {}, {"payment_method": "sepa_debit"}),
        ({"countries": frozenset({"GB"})}, {"country": "GB"}, {"country": "DE"}),
        ({"countries": frozenset({"GB"})}, {"country": "GB"}, {"country": None}),
        ({"amounts": {"GBP": AmountRange(max_minor=1_000)}}, {}, {"amount_minor": 1_001}),
        ({"amounts": {"GBP": AmountRange(min_minor=1_000)}}, {}, {"amount_minor": 999}),
    ],
)
def test_a_gateway_gets_only_what_it_takes(
    limit: dict[str, Any], inside: dict[str, Any], outside: dict[str, Any]
) -> None:
    """A payment outside any one limit of the preferred gateway goes to the other."""
    policy = Policy(gateways=(replace(NORTH, **limit), SOUTH))
    assert chosen(policy, facts(**inside))[0] == "north"
    assert chosen(policy, facts(**outside)) == (
        "south",
        f"south: the only one that serves {facts(**outside).currency} by "
        f"{facts(**outside).payment_method} here",
    )


def test_a_token_is_charged_where_it_lives_and_nowhere_else() -> None:
    """A gateway cannot use another's token, so such a payment has no other gateway to go to."""
    policy = Policy(gateways=(NORTH, NB))
    assert chosen(policy, facts(instrument_token="nb_1"))[0] == "nb"
    assert chosen(policy, facts(instrument_token="tok_1"))[0] == "north"
    assert route(policy, facts(instrument_token="nb_1"), tried={"nb"}) is None


def test_failover_takes_the_next_untried_gateway_until_none_is_left() -> None:
    """The second attempt says where the first was."""
    assert chosen(BOTH, tried={"north"}) == (
        "south",
        "south: the only one left to choose from; tried before: north",
    )
    assert route(BOTH, facts(), tried={"north", "south"}) is None


@pytest.mark.slow
def test_a_split_comes_out_as_its_weights_say_and_is_the_same_for_the_same_payment() -> None:
    """Of 4,000 payments three quarters, give or take three standard deviations, go to 3 of 4."""
    policy = even("a", "b", "c", weight={"a": 3, "b": 1, "c": 0})
    counts = Counter(chosen(policy, facts(n))[0] for n in range(4_000))
    assert set(counts) == {"a", "b"}
    assert abs(counts["a"] - 3_000) < 3 * 28
    assert {chosen(policy, facts(7)) for _ in range(5)} == {chosen(policy, facts(7))}
    why = {chosen(policy, facts(n)) for n in range(20)}
    assert why == {
        ("a", "a: its share of 3 in 4 against b, c"),
        ("b", "b: its share of 1 in 4 against a, c"),
    }


def test_the_cheaper_gateway_for_this_amount_is_chosen() -> None:
    """Percentage against fixed fee: which is less depends on the amount; both are told."""
    fees = {
        "a": {"GBP": Fee(basis_points=140, fixed_minor=20)},
        "b": {"GBP": Fee(basis_points=290)},
    }
    policy = even("a", "b", fees=fees)
    assert chosen(policy, facts(amount_minor=10_000)) == (
        "a",
        "a: costs 160 minor units, against b 290",
    )
    assert chosen(policy, facts(amount_minor=1_000)) == (
        "b",
        "b: costs 29 minor units, against a 34",
    )


def test_a_gateway_that_approves_clearly_less_is_left() -> None:
    """Within five points is chance; a gateway with too few results to judge stays in."""
    policy = replace(even("a", "b", "c"), routes=Routes(order_by=("success_rate",)))
    near = Health(rates={"a": Rate(90, 100), "b": Rate(94, 100)})
    far = Health(rates={"a": Rate(80, 100), "b": Rate(94, 100)})
    assert chosen(policy, health=near)[0] == "a"
    assert chosen(policy, health=far) == (
        "b",
        "b: approves 94 % lately, against a 80 %, and first by name of b, c",
    )


def test_a_gateway_that_is_down_is_left_out_while_another_is_left() -> None:
    """New payments go elsewhere; without elsewhere they wait where they have to."""
    down = Health(down=frozenset({"north"}))
    assert chosen(BOTH, health=down) == (
        "south",
        "south: the only one left to choose from; left out, not answering: north",
    )
    all_down = Health(down=frozenset({"north", "south"}))
    assert chosen(BOTH, health=all_down)[0] == "north"


def test_a_gateway_that_comes_back_gets_one_payment_of_twenty() -> None:
    """Enough to see that it is back, too few to hurt if it is not."""
    trial = Health(on_trial=frozenset({"north"}))
    counts = Counter(chosen(BOTH, facts(n), health=trial)[0] for n in range(2_000))
    assert 60 <= counts["north"] <= 140


def test_the_first_rule_that_matches_decides_and_is_named() -> None:
    """Large euro payments to the one, split by the rule's own weights, everything else as usual."""
    rules = (
        RouteRule(
            name="large",
            currencies=frozenset({"EUR"}),
            amounts={"EUR": AmountRange(min_minor=100_000)},
            gateways=("south",),
        ),
        RouteRule(name="euro", currencies=frozenset({"EUR"}), order_by=("cost",)),
    )
    policy = replace(BOTH, routes=Routes(rules=rules))
    large = facts(currency="EUR", amount_minor=100_000)
    assert chosen(policy, large) == (
        "south",
        "south: the only one left to choose from; by rule large",
    )
    assert route(policy, large, tried={"south"}) is None
    assert chosen(policy, facts(currency="EUR")) == (
        "north",
        "north: first by name of north, south; by rule euro",
    )
    assert "rule" not in chosen(policy)[1]


def test_a_merchant_s_wishes_go_before_everything_but_eligibility() -> None:
    """Its preferred gateway first, never the one it does not want."""
    wishes = {
        "shop": MerchantRoute(prefer=("south",)),
        "pub": MerchantRoute(never=frozenset({"north"})),
    }
    policy = replace(BOTH, routes=Routes(merchants=wishes))
    assert chosen(policy) == ("south", "south: shop prefers it to north")
    assert chosen(policy, facts(merchant_id="pub"))[0] == "south"
    assert chosen(policy, facts(merchant_id="other"))[0] == "north"
    assert chosen(policy, tried={"south"})[0] == "north"


@given(
    st.permutations(["a", "b", "c", "d"]),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)),
    st.sets(st.sampled_from("abcd")),
    st.sets(st.sampled_from("abcd")),
    st.integers(0, 50),
)
def test_the_choice_does_not_depend_on_the_order_in_which_gateways_are_listed(
    order: list[str], weights: dict[str, int], tried: set[str], down: set[str], number: int
) -> None:
    """Two workers that list the same gateways differently choose the same one, for one reason."""
    profiles = {n: GatewayProfile(name=n, weight=weights.get(n)) for n in "abcd"}
    health = Health(down=frozenset(down))
    listed = Policy(gateways=tuple(profiles[n] for n in order))
    sorted_ = Policy(gateways=tuple(profiles[n] for n in "abcd"))
    found = route(listed, facts(number), tried, health)
    assert found == route(sorted_, facts(number), tried, health)
    if found is None:
        assert tried == set("abcd")
    else:
        assert found.profile.name not in tried
        assert found.profile.name not in down or set("abcd") - tried <= down


def test_an_order_that_no_gateway_takes_is_rejected_by_name_and_a_taken_one_says_why() -> None:
    """The reason stands in the payment's attempt, decided in the transaction that starts it."""
    order = Order(
        merchant_id="shop",
        order_id="1",
        amount_minor=500,
        currency="GBP",
        instrument_token="tok",
        business_date="2026-11-25",
        submitted_at_ms=1_764_000_000_000,
    )
    now_ms = order.submitted_at_ms
    taken = process_order(None, order, now_ms, BOTH).payment
    assert taken is not None
    assert taken.attempts[0].routed_because == "north: priority 10 comes before south"
    narrow = Policy(gateways=(replace(NORTH, amounts={"GBP": AmountRange(min_minor=501)}),))
    refused = process_order(None, order, now_ms, narrow).payment
    assert refused is not None
    assert (refused.status, refused.reason) == ("rejected", "a_gateway_must_serve_the_payment")


def test_the_merchant_s_own_gateway_goes_first() -> None:
    """Eligibility decides first, then a gateway that names the merchant, then priority and name."""
    policy = Policy(
        gateways=(
            GatewayProfile(name="cheap", priority=1),
            GatewayProfile(name="alike", priority=1),
            GatewayProfile(name="own", merchants=frozenset({"shop"}), priority=9),
            GatewayProfile(name="euro", currencies=frozenset({"EUR"}), priority=0),
        )
    )

    def order_of(merchant: str, currency: str) -> list[str]:
        tried: list[str] = []
        told = facts(merchant_id=merchant, currency=currency)
        while (found := route(policy, told, tried)) is not None:
            tried.append(found.profile.name)
        return tried

    assert order_of("shop", "GBP") == ["own", "alike", "cheap"]
    assert order_of("other", "EUR") == ["euro", "alike", "cheap"]


def test_a_single_gateway_needs_no_choice_and_is_still_asked_whether_it_serves() -> None:
    """Most installations have one; it gets what it takes, once."""
    assert chosen(DEFAULT_POLICY) == ("simulator", "simulator: the only gateway there is")
    assert route(DEFAULT_POLICY, facts(), tried={"simulator"}) is None
    euro = Policy(gateways=(GatewayProfile(name="euro", currencies=frozenset({"EUR"})),))
    assert route(euro, facts()) is None
