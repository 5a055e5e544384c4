"""Caps on attempts with a card: which ones hold, what a payment counts, how they are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.config import load_settings
from pipeline.domain.attempt_caps import NETWORK_CAPS, cap_reached, caps_for
from pipeline.domain.cap_rules import CapRules, read_caps
from pipeline.domain.model import Attempt, AttemptCap
from pipeline.errors import UserError
from pipeline.runtime.policy_options import policy_of
from tests.house import TOP

DAY_MS = 86_400_000
NOW = 90 * DAY_MS

ANY = AttemptCap(name="any", declines_max=3, window_ms=30 * DAY_MS)
NORTH = AttemptCap(name="north", declines_max=2, window_ms=DAY_MS, gateway="north")
VISA = AttemptCap(name="visa", declines_max=5, window_ms=DAY_MS, scheme="visa")
OTHER = AttemptCap(name="mastercard", declines_max=4, window_ms=DAY_MS, scheme="mastercard")


def attempt(at_ms: int, state: str = "declined", kind: str = "charge", at: str = "g") -> Attempt:
    return Attempt(
        operation_id="o", kind=kind, gateway=at, attempt=1, state=state, tries=1,
        retries=0, inquiries=0, started_at_ms=at_ms, updated_at_ms=at_ms,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("visa", ["any", "north", "visa"]),
        (" Visa ", ["any", "north", "visa"]),
        ("mastercard", ["any", "north", "mastercard"]),
        (None, ["any", "north", "visa", "mastercard"]),
        ("", ["any", "north", "visa", "mastercard"]),
        ("a network without a cap", ["any", "north", "visa", "mastercard"]),
    ],
)
def test_a_card_is_held_to_the_caps_of_its_network(scheme: str | None, names: list[str]) -> None:
    """And to all of them where its network is not told, or has none of its own."""
    assert [cap.name for cap in caps_for((ANY, NORTH, VISA, OTHER), scheme)] == names


def test_a_payment_counts_its_own_declines_and_what_may_still_become_one() -> None:
    """Not what succeeded, failed unsent, is a refund, is too old, or was elsewhere."""
    own = [
        attempt(NOW - DAY_MS),
        attempt(NOW - DAY_MS, "inquiring"),
        attempt(NOW, "charged"),
        attempt(NOW, "failed"),
        attempt(NOW, kind="refund"),
        attempt(NOW - 31 * DAY_MS),
    ]
    assert cap_reached([ANY], own, "south", NOW) is None
    assert cap_reached([ANY], [*own, attempt(NOW)], "south", NOW) == ANY
    assert cap_reached([NORTH], [attempt(NOW, at="south")] * 2, "north", NOW) is None
    assert cap_reached([NORTH], [attempt(NOW, at="north")] * 2, "north", NOW) == NORTH
    assert cap_reached([NORTH], [attempt(NOW, at="north")] * 2, "south", NOW) is None


def test_the_networks_caps_are_those_of_the_document() -> None:
    """Each default, with where it comes from, in docs/risk.md."""
    told = (TOP / "docs" / "risk.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (\d+) \| (\d+) (h|d) \| (.+) \|$", told, re.MULTILINE
    )
    said = {
        name: (scheme, int(count), int(length) * (DAY_MS if unit == "d" else DAY_MS // 24))
        for name, scheme, count, length, unit, source in rows
        if "](http" in source
    }
    assert said == {c.name: (c.scheme, c.declines_max, c.window_ms) for c in NETWORK_CAPS}


def test_the_setting_says_which_caps_hold(tmp_path: Path) -> None:
    """The networks', counted across payments, unless it names a file or says off."""
    policy = policy_of(load_settings(state_dir=tmp_path).worker_options())
    assert (policy.attempt_caps, policy.count_cards) == (NETWORK_CAPS, True)
    off = load_settings(state_dir=tmp_path, attempt_caps="off")
    assert not off.counts
    policy = policy_of(off.worker_options())
    assert (policy.attempt_caps, policy.count_cards) == (NETWORK_CAPS, False)
    file = tmp_path / "caps.toml"
    file.write_text(f"never_again_days = 7\n[[cap]]\n{GOOD}gateway='simulator'\n")
    settings = load_settings(state_dir=tmp_path, attempt_caps=str(file))
    policy = policy_of(settings.worker_options())
    assert ([cap.gateway for cap in policy.attempt_caps], policy.card_bar_ms) == (
        ["simulator"], 7 * DAY_MS,
    )  # fmt: skip
    assert policy.count_cards
    file.write_text(f"[[cap]]\n{GOOD}gateway='nroth'\n")
    with pytest.raises(UserError, match="'nroth', which is no gateway; configured are simulator"):
        policy_of(settings.worker_options())
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(state_dir=tmp_path, attempt_caps="no such file").worker_options()


GOOD = 'name="a"\ndeclines_max=3\nwindow_s=3600\n'


def test_a_file_replaces_the_networks_caps() -> None:
    """In TOML or JSON; what it does not say stays as it is."""
    read = read_caps(f'never_again_days = 7\n[[cap]]\n{GOOD}scheme=" VISA "\n', "f")
    cap = AttemptCap(name="a", declines_max=3, window_ms=3_600_000, scheme="visa")
    assert read == CapRules((cap,), 7 * DAY_MS)
    text = json.dumps({"cap": [{"name": "a", "declines_max": 3, "window_s": 3600}]})
    assert read_caps(text, "f").caps[0].declines_max == 3
    assert read_caps("never_again_days = 31", "f") == CapRules((), 31 * DAY_MS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = ", "the caps on attempts in f are neither TOML nor JSON"),
        ("caps = []", "may have never_again_days and a list named cap, and nothing else"),
        ("never_again_days = 32", "never_again_days in f must be a whole number from 1 to 31"),
        ("never_again_days = 0", "never_again_days in f must be a whole number from 1 to 31"),
        ("never_again_days = true", "never_again_days in f must be a whole number from 1 to 31"),
        ("cap = 1", "cap in f must be a list of at most 32"),
        ("cap = [1]", "cap number 1 in f: it must be a table of fields."),
        (f"[[cap]]\n{GOOD}[[cap]]\n{GOOD}", "cap 'a' in f: another cap has that name."),
        (f"[[cap]]\n{GOOD}x = 1", "cap 'a' in f: it has no field 'x'"),
        ("[[cap]]\nname='a'\nwindow_s=60", "cap 'a' in f: declines_max is missing."),
        (f"[[cap]]\n{GOOD}scheme = 1", "cap 'a' in f: scheme must be a text."),
        (f"[[cap]]\n{GOOD}".replace("=3\n", "=101\n"), "declines_max must be 1 to 100."),
        (f"[[cap]]\n{GOOD}".replace("3600", "2678401"), "window_s must be 1 to 2678400 (31 days)."),
        (f"[[cap]]\n{GOOD}".replace('"a"', '"A b"'), "cap 'A b' in f: its name must be 1 to 60"),
    ],
)
def test_wrong_caps_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    """What is wrong, in which cap of which file, and what would be right."""
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        read_caps(text, "f")
    assert str(refused.value).endswith(".")
