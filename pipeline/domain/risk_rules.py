"""Reading risk rules: TOML or JSON in, ``RiskRules`` out, or one sentence about what is wrong.

::

    [[rule]]
    name = "cards_an_hour"
    type = "velocity"
    action = "reject"
    by = "card"
    window_s = 3600
    count_max = 5

Every rule has ``name``, ``type`` and ``action`` (review or reject), and may have ``shadow = true``
and ``merchants = [...]``; what else a type needs or allows stands in ``_FIELDS``.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from pipeline.domain.card_numbers import holds_card_number
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.risk import (
    AMOUNT,
    BLOCKLIST,
    CARD_TESTING,
    COUNTING,
    COUNTRY,
    CURRENCY,
    IDENTITIES,
    REJECT,
    REVIEW,
    VELOCITY,
    RiskRules,
    Rule,
)
from pipeline.domain.risk_velocity import BUCKETS, SERIES_MAX, WINDOW_MS_MAX
from pipeline.errors import UserError

# A person reads them, and every order is held against each.
RULES_MAX: Final = 200
# A list is held in memory by every worker; longer ones belong into a service of their own.
VALUES_MAX: Final = 100_000
AMOUNT_MINOR_MAX: Final = 999_999_999_999
COUNT_MAX: Final = 1_000_000

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_COUNTRY = re.compile(r"[A-Z]{2}")
_COMMON: Final = {"name", "type", "action", "shadow", "merchants"}
# By type: the fields it needs, and those it may have besides.
_FIELDS: Final[Mapping[str, tuple[set[str], set[str]]]] = {
    AMOUNT: ({"currency", "amount_minor_max"}, set()),
    CURRENCY: (set(), {"allowed", "denied"}),
    COUNTRY: (set(), {"allowed", "denied", "missing"}),
    BLOCKLIST: ({"field", "values"}, set()),
    VELOCITY: ({"by", "window_s"}, {"count_max", "sum_minor_max", "currency"}),
    CARD_TESTING: ({"by", "window_s", "currency", "amount_minor_max", "count_max"}, set()),
}
_BLOCKLIST_FIELDS: Final = ("customer_id", "card_fingerprint", "country", "instrument_token")
_KINDS: Final[Mapping[str, tuple[type, str]]] = {
    "name": (str, "a text"),
    "type": (str, "a text"),
    "action": (str, "a text"),
    "shadow": (bool, "true or false"),
    "merchants": (list, "a list of texts"),
    "currency": (str, "a text"),
    "amount_minor_max": (int, "a whole number of minor units"),
    "allowed": (list, "a list of texts"),
    "denied": (list, "a list of texts"),
    "missing": (bool, "true or false"),
    "field": (str, "a text"),
    "values": (list, "a list of texts"),
    "by": (str, "a text"),
    "window_s": (int, "a whole number of seconds"),
    "count_max": (int, "a whole number"),
    "sum_minor_max": (int, "a whole number of minor units"),
}


def read_rules(text: str, where: str) -> RiskRules:
    """The rules of a file's text. ``where`` names the file; JSON is told by its first character.

    Raises UserError: one sentence that says which rule is wrong, in what, and what would be right.
    """
    try:
        given = json.loads(text) if text.lstrip()[:1] == "{" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the risk rules in {where} are neither TOML nor JSON: {str(error)[:200]}."
        ) from None
    if not isinstance(given, dict) or set(given) != {"rule"}:
        raise UserError(
            f"the risk rules in {where} must be a list named rule and nothing else: [[rule]] "
            'before each rule in TOML, {"rule": [...]} in JSON.'
        )
    rules = given["rule"]
    if not isinstance(rules, list):
        raise UserError(f"rule in {where} must be a list: write [[rule]] before each rule.")
    if len(rules) > RULES_MAX:
        raise UserError(f"{where} has {len(rules)} risk rules; at most {RULES_MAX} are taken.")
    read: list[Rule] = []
    for number, rule in enumerate(rules, start=1):
        try:
            read.append(_rule(rule))
        except _Wrong as wrong:
            raise UserError(f"risk rule {_called(rule, number)} in {where}: {wrong}.") from None
        if read[-1].name in {earlier.name for earlier in read[:-1]}:
            raise UserError(f"two risk rules in {where} are named {read[-1].name!r}.")
    counters = {(rule.by, rule.counter) for rule in read if rule.type in COUNTING}
    if len(counters) > SERIES_MAX // 2:
        raise UserError(
            f"the risk rules in {where} count {len(counters)} different things; at most "
            f"{SERIES_MAX // 2} are taken."
        )
    return RiskRules(tuple(read))


class _Wrong(ValueError):
    """What is wrong with a rule, as the end of a sentence."""


def _a(kind: str) -> str:
    return f"an {kind}" if kind == AMOUNT else f"a {kind}"


def _called(rule: Any, number: int) -> str:
    name = rule.get("name") if isinstance(rule, dict) else None
    return repr(name) if isinstance(name, str) and name else f"number {number}"


def _rule(given: Any) -> Rule:
    if not isinstance(given, dict):
        raise _Wrong("it must be a table of fields")
    for name in ("name", "type", "action"):
        if name not in given:
            raise _Wrong(f"{name} is missing")
    for name, value in given.items():
        if name in _KINDS:
            _of_kind(name, value)
    if not _NAME.fullmatch(given["name"]):
        raise _Wrong("its name must be 1 to 60 of a-z 0-9 _, a letter first")
    kind = given["type"]
    if kind not in _FIELDS:
        raise _Wrong(f"type must be one of {', '.join(_FIELDS)}, not {kind[:40]!r}")
    if given["action"] not in (REVIEW, REJECT):
        raise _Wrong(f"action must be {REVIEW} or {REJECT}, not {given['action'][:40]!r}")
    needed, may = _FIELDS[kind]
    known = _COMMON | needed | may
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise _Wrong(f"{_a(kind)} rule has no field {str(name)[:40]!r}{hint}")
    for name in sorted(needed):
        if name not in given:
            raise _Wrong(f"{_a(kind)} rule needs {name}")
    return _checked(given, kind)


def _checked(given: Mapping[str, Any], kind: str) -> Rule:
    if "currency" in given and given["currency"] not in MINOR_UNITS:
        raise _Wrong(f"currency {given['currency'][:10]!r} is not an active ISO 4217 code")
    for name in ("amount_minor_max", "sum_minor_max"):
        if name in given and not 0 <= given[name] <= AMOUNT_MINOR_MAX:
            raise _Wrong(f"{name} must be 0 to {AMOUNT_MINOR_MAX}")
    for name in ("count_max", "sum_minor_max"):
        if name in given and given[name] < 1:
            raise _Wrong(f"{name} must be at least 1")
    if given.get("count_max", 1) > COUNT_MAX:
        raise _Wrong(f"count_max must be at most {COUNT_MAX}")
    if kind in COUNTING:
        if given["by"] not in IDENTITIES:
            raise _Wrong(f"by must be one of {', '.join(IDENTITIES)}, not {given['by'][:40]!r}")
        # A minute is the shortest: its buckets are a second.
        if not BUCKETS <= given["window_s"] <= WINDOW_MS_MAX // 1000:
            raise _Wrong(f"window_s must be {BUCKETS} to {WINDOW_MS_MAX // 1000} (31 days)")
    if kind == VELOCITY:
        if "count_max" not in given and "sum_minor_max" not in given:
            raise _Wrong("a velocity rule needs count_max or sum_minor_max")
        if "sum_minor_max" in given and "currency" not in given:
            raise _Wrong("a sum is of one currency: sum_minor_max needs currency")
    if kind == CARD_TESTING and not given["amount_minor_max"]:
        raise _Wrong("amount_minor_max must be at least 1: up to where an amount is small")
    if kind in (CURRENCY, COUNTRY):
        _lists(given, kind)
    if kind == BLOCKLIST:
        if given["field"] not in _BLOCKLIST_FIELDS:
            raise _Wrong(f"field must be one of {', '.join(_BLOCKLIST_FIELDS)}")
        if given["field"] == COUNTRY:
            _countries("values", given["values"])
        if any(holds_card_number(value, opaque=True) for value in given["values"]):
            raise _Wrong("values holds a card number; list fingerprints or tokens instead")
        # As what orders name is compared (``RiskFacts.named``).
        given = {**given, "values": [value.strip() for value in given["values"]]}
    fields = {name: value for name, value in given.items() if name != "window_s"}
    for name in ("merchants", "allowed", "denied", "values"):
        if name in fields:
            fields[name] = frozenset(fields[name])
    return Rule(**fields, window_ms=given.get("window_s", 0) * 1000)


def _lists(given: Mapping[str, Any], kind: str) -> None:
    if ("allowed" in given) == ("denied" in given):
        raise _Wrong(f"a {kind} rule needs either allowed or denied")
    name = "allowed" if "allowed" in given else "denied"
    if kind == COUNTRY:
        _countries(name, given[name])
        return
    for code in given[name]:
        if code not in MINOR_UNITS:
            raise _Wrong(f"{name} holds {code[:10]!r}, which is not an active ISO 4217 code")


def _countries(name: str, codes: list[str]) -> None:
    for code in codes:
        if not _COUNTRY.fullmatch(code):
            raise _Wrong(f"{name} holds {code[:10]!r}; countries are two capital letters, as GB")


def _of_kind(name: str, value: Any) -> None:
    kind, said = _KINDS[name]
    if type(value) is not kind:
        raise _Wrong(f"{name} must be {said}")
    if not isinstance(value, list):
        return
    if not value:
        raise _Wrong(f"{name} is empty")
    if len(value) > VALUES_MAX:
        raise _Wrong(f"{name} has {len(value)} values; at most {VALUES_MAX} are taken")
    if not all(type(each) is str and each for each in value):
        raise _Wrong(f"{name} must be {said}")
