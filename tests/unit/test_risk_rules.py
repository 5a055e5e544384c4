from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipeline.domain.model import RiskCounted, RiskCounter
from pipeline.domain.risk import RiskFacts, RiskRules, assess, counters_of
from pipeline.domain.risk_rules import read_rules
from pipeline.errors import UserError

HOUR_MS = 3_600_000

RULES = """
[[rule]]
name = "large"
type = "amount"
action = "review"
currency = "GBP"
amount_minor_max = 500000

[[rule]]
name = "few_currencies"
type = "currency"
action = "reject"
allowed = ["GBP", "EUR"]

[[rule]]
name = "stolen_cards"
type = "blocklist"
action = "reject"
field = "card_fingerprint"
values = ["fp_stolen"]

[[rule]]
name = "home_only"
type = "country"
action = "review"
allowed = ["GB", "IE"]
merchants = ["shop-uk"]

[[rule]]
name = "card_hour"
type = "velocity"
action = "reject"
by = "card"
window_s = 3600
count_max = 5

[[rule]]
name = "customer_day"
type = "velocity"
action = "review"
by = "customer"
window_s = 86400
currency = "GBP"
sum_minor_max = 100000

[[rule]]
name = "testing"
type = "card_testing"
action = "reject"
shadow = true
by = "merchant"
window_s = 600
currency = "GBP"
amount_minor_max = 200
count_max = 20
"""


def facts(**more: Any) -> RiskFacts:
    fields: dict[str, Any] = {
        "merchant_id": "shop",
        "amount_minor": 1_000,
        "currency": "GBP",
        "instrument_token": "tok_1",
        "customer_id": "c-1",
        "card_fingerprint": "fp_1",
        "country": "GB",
    }
    return RiskFacts(**{**fields, **more})


def counted(by: str, window_ms: int, count: int, sum_minor: int = 0, **more: Any) -> RiskCounted:
    return RiskCounted(by=by, window_ms=window_ms, count=count, sum_minor=sum_minor, **more)


READ = read_rules(RULES, "rules.toml")


def test_a_quiet_order_is_allowed_without_a_word() -> None:
    """Nothing met, nothing told."""
    assessment = assess(READ, facts())
    assert (assessment.action, assessment.reason, assessment.detail) == ("allow", None, None)
    assert assess(RiskRules(), facts()) == assessment


@pytest.mark.parametrize(
    ("more", "action", "detail"),
    [
        ({"amount_minor": 500_000}, "allow", None),
        (
            {"amount_minor": 500_001},
            "review",
            "review by large: GBP 5,000.01 is over GBP 5,000.00",
        ),
        (
            {"currency": "JPY", "amount_minor": 900_000},
            "reject",
            "reject by few_currencies: currency JPY is not among the allowed",
        ),
        (
            {"card_fingerprint": "fp_stolen"},
            "reject",
            "reject by stolen_cards: its card_fingerprint is on the list",
        ),
        ({"country": "FR"}, "allow", None),
        (
            {"merchant_id": "shop-uk", "country": " fr "},
            "review",
            "review by home_only: country FR is not among the allowed",
        ),
        ({"merchant_id": "shop-uk", "country": None}, "allow", None),
        ({"counted": (counted("card", HOUR_MS, 5),)}, "allow", None),
        (
            {"counted": (counted("card", HOUR_MS, 6),)},
            "reject",
            "reject by card_hour: 6 orders of this card within 1 h, over 5",
        ),
        # Another window, another identity: not this rule's.
        ({"counted": (counted("card", 2 * HOUR_MS, 6),)}, "allow", None),
        ({"counted": (counted("customer", HOUR_MS, 6),)}, "allow", None),
        (
            {"counted": (counted("customer", 24 * HOUR_MS, 2, 100_001, currency="GBP"),)},
            "review",
            "review by customer_day: GBP 1,000.01 of this customer within 1 d, over GBP 1,000.00",
        ),
    ],
)
def test_each_rule_says_what_it_saw(more: dict[str, Any], action: str, detail: str | None) -> None:
    """Limits are inclusive, and a reason holds no token, id or fingerprint."""
    assessment = assess(READ, facts(**more))
    assert (assessment.action, assessment.detail) == (action, detail)


def test_the_severest_action_wins_and_every_reason_is_told() -> None:
    """A rejection is named by the rule that rejects, whatever else was seen."""
    assessment = assess(READ, facts(amount_minor=600_000, card_fingerprint="fp_stolen"))
    assert assessment.action == "reject"
    assert assessment.reason == "risk_stolen_cards"
    assert [reason.rule for reason in assessment.reasons] == ["large", "stolen_cards"]


def test_a_shadow_is_told_and_not_acted_on() -> None:
    """A rule on trial changes nothing but what is told."""
    small = (counted("merchant", 600_000, 21, currency="GBP", amount_minor_max=200),)
    assessment = assess(READ, facts(amount_minor=150, counted=small))
    assert (assessment.action, assessment.reason) == ("allow", None)
    assert assessment.detail == (
        "in shadow, reject by testing: 21 small orders of this merchant within 10 min, over 20"
    )
    # An order that is not small is not the pattern, however many small ones there are.
    assert assess(READ, facts(amount_minor=201, counted=small)).detail is None


def test_only_what_can_decide_is_counted() -> None:
    """One counter for each different thing counted, and only those that take the order."""
    assert counters_of(READ, facts(amount_minor=150)) == {
        "card": (RiskCounter(window_ms=HOUR_MS),),
        "customer": (RiskCounter(window_ms=24 * HOUR_MS, currency="GBP"),),
        "merchant": (RiskCounter(window_ms=600_000, currency="GBP", amount_minor_max=200),),
    }
    assert set(counters_of(READ, facts(currency="EUR"))) == {"card"}
    assert counters_of(RiskRules(READ.rules[:4]), facts()) == {}


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_missing_identity_is_never_counted_as_one(missing: str | None) -> None:
    """Orders without a fingerprint or a customer share nothing: no check asks about them."""
    order = facts(card_fingerprint=missing, customer_id=missing)
    assert counters_of(READ, order) == {}


def test_json_is_read_like_toml() -> None:
    """The same rules in JSON are the same rules."""
    rule = {"name": "large", "type": "amount", "action": "review", "currency": "GBP"}
    text = json.dumps({"rule": [{**rule, "amount_minor_max": 500_000}]})
    assert read_rules(text, "rules.json").rules == READ.rules[:1]


GOOD = 'name="a"\ntype="velocity"\naction="review"\nby="card"\nwindow_s=60\ncount_max=1\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rule = 1", "rule in f must be a list: write [[rule]] before each rule."),
        ("", "must be a list named rule and nothing else"),
        ("a = ", "the risk rules in f are neither TOML nor JSON: Invalid value"),
        ("{", "are neither TOML nor JSON"),
        ("[[rules]]\n" + GOOD, "must be a list named rule and nothing else"),
        ("[[rule]]\nname='a'", "risk rule 'a' in f: type is missing."),
        ("[[rule]]\n" + GOOD * 2, "neither TOML nor JSON"),
        (f"[[rule]]\n{GOOD}[[rule]]\n{GOOD}", "two risk rules in f are named 'a'."),
        (GOOD.replace('"a"', '"A b"'), "risk rule 'A b' in f: its name must be 1 to 60 of a-z"),
        (
            GOOD.replace("velocity", "velocty"),
            "type must be one of amount, currency, country, blocklist",
        ),
        (GOOD.replace("review", "deny"), "action must be review or reject, not 'deny'."),
        (GOOD.replace("count_max", "count_mx"), "no field 'count_mx'; did you mean count_max?"),
        ("name='a'\ntype='amount'\naction='review'", "an amount rule needs amount_minor_max."),
        (GOOD.replace("velocity", "amount"), "an amount rule has no field 'by'"),
        (GOOD.replace("count_max=1\n", ""), "a velocity rule needs count_max or sum_minor_max."),
        (GOOD.replace("count_max=1", "count_max=0"), "count_max must be at least 1."),
        (GOOD.replace("count_max=1", "count_max=1.5"), "count_max must be a whole number."),
        (GOOD.replace("count_max=1", "count_max=true"), "count_max must be a whole number."),
        (GOOD.replace("=60", "=59"), "window_s must be 60 to 2678400 (31 days)."),
        (GOOD.replace('"card"', '"cards"'), "by must be one of card, customer, merchant"),
        (GOOD + "sum_minor_max=5", "a sum is of one currency: sum_minor_max needs currency."),
        (GOOD + "currency='GPB'", "currency 'GPB' is not an active ISO 4217 code."),
        (GOOD + "shadow=1", "shadow must be true or false."),
        (GOOD + "merchants='shop'", "merchants must be a list of texts."),
        (GOOD + "merchants=[]", "merchants is empty."),
        (
            "name='a'\ntype='country'\naction='review'",
            "a country rule needs either allowed or denied.",
        ),
        (
            "name='a'\ntype='country'\naction='review'\ndenied=['UK ']",
            "denied holds 'UK '; countries are two capital letters, as GB.",
        ),
        (
            "name='a'\ntype='blocklist'\naction='review'\nfield='amount'\nvalues=['1']",
            "field must be one of customer_id, card_fingerprint, country, instrument_token.",
        ),
        (
            "name='a'\ntype='blocklist'\naction='review'\nfield='instrument_token'\n"
            "values=['4111111111111111']",
            "values holds a card number; list fingerprints or tokens instead.",
        ),
    ],
)
def test_wrong_rules_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    """What is wrong, in which rule of which file, and what would be right."""
    text = text if text.startswith(("[[", "rule", "a =", "{")) or not text else f"[[rule]]\n{text}"
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        read_rules(text, "f")
    assert "4111111111111111" not in str(refused.value)
    assert str(refused.value).endswith(".")
