"""The fault plan of the gateway simulator: a function of seed, key and count, and nothing else."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.gateways.simulator.faults import (
    DEFAULT_FAULTS,
    FaultKind,
    FaultPlan,
    call_fault,
    decline_code,
    forecast,
    inquiry_fault,
    slow_ms,
)
from tests.support.examples import share_of

DEFAULT_SEED = 7
PINNED = [(1, "500_before"), (2, "reset_before"), (5, "reset_before"), (12, "reset_after")]
PINNED_DECLINES = [(10, "expired_card"), (14, "insufficient_funds")]


def keys_like_real_ones(shop: str, count: int = 337) -> list[str]:
    """Idempotency keys as the pipeline makes them: payment, operation, gateway, attempt."""
    return [
        f"{uuid.uuid5(uuid.NAMESPACE_OID, f'{shop}:{n}')}"
        f":{uuid.uuid5(uuid.NAMESPACE_OID, f'op:{shop}:{n}')}:simulator:1"
        for n in range(count)
    ]


def test_the_same_seed_gives_the_same_faults_in_any_order_of_arrival() -> None:
    """Two runs over the same keys meet the same faults, however the calls interleave."""
    plan = FaultPlan.default()
    calls = [(key, count) for key in keys_like_real_ones("a") for count in range(2)]
    first = {call: call_fault(plan, DEFAULT_SEED, *call) for call in calls}
    random.Random(1).shuffle(calls)

    assert {call: call_fault(plan, DEFAULT_SEED, *call) for call in calls} == first


def test_the_faults_of_a_seed_stay_the_same_from_version_to_version() -> None:
    """A seed noted in a bug report still finds the same faults after an upgrade."""
    plan = FaultPlan.default()
    met = [call_fault(plan, DEFAULT_SEED, f"key-{n}", 0) for n in range(400)]

    assert [(n, kind.value) for n, kind in enumerate(met) if kind][:4] == PINNED
    assert [
        (n, code) for n in range(100) if (code := decline_code(plan, DEFAULT_SEED, f"key-{n}"))
    ][:2] == PINNED_DECLINES


def test_another_seed_gives_other_faults() -> None:
    """The seed matters: two seeds do not fault the same keys."""
    plan = FaultPlan.default()
    keys = keys_like_real_ones("a")

    by_seed = [[call_fault(plan, seed, key, 0) for key in keys] for seed in (1, 2)]

    assert by_seed[0] != by_seed[1]


@pytest.mark.parametrize("shop", [f"shop-{n}" for n in range(share_of(20))])
def test_the_default_plan_meets_every_kind_within_337_orders(shop: str) -> None:
    """A run over a few hundred orders shows each fault and some declines, but not too many."""
    counts = forecast(FaultPlan.default(), DEFAULT_SEED, keys_like_real_ones(shop))

    assert set(counts) == {FaultKind.DECLINE, *DEFAULT_FAULTS}
    assert max(counts.values()) <= 30
    assert sum(counts.values()) < 337 * 0.4


@pytest.mark.slow
def test_default_rates_hit_the_declared_share_on_average() -> None:
    """Over many keys about 15 of 337 are declined and about 10 meet each fault."""
    counts: Counter[FaultKind] = Counter()
    for n in range(30):
        counts += forecast(FaultPlan.default(), DEFAULT_SEED, keys_like_real_ones(f"mean-{n}"))

    assert 13 < counts[FaultKind.DECLINE] / 30 < 17
    for kind in DEFAULT_FAULTS:
        assert 8 < counts[kind] / 30 < 13, kind


def test_the_faults_of_a_key_come_to_an_end() -> None:
    """Even if every call is to fail, the third call of a key is served and inquiries answer."""
    plan = FaultPlan(rates={"reset_after": 1.0, "inquiry_500": 1.0})

    assert [call_fault(plan, 1, "k", n) for n in range(4)] == [
        FaultKind.RESET_AFTER,
        FaultKind.RESET_AFTER,
        None,
        None,
    ]
    assert [inquiry_fault(plan, 1, "r", n) for n in range(3)] == [True, True, False]


def test_a_key_to_be_declined_meets_no_other_fault() -> None:
    """A decline is a plain answer, so that counts by kind mean one thing each."""
    plan = FaultPlan(rates={"decline": 1.0, "reset_before": 1.0})

    assert decline_code(plan, 1, "k") is not None
    assert call_fault(plan, 1, "k", 0) is None


def test_decline_codes_follow_their_weights() -> None:
    """A code with most of the weight is drawn most often; one without weight never."""
    plan = FaultPlan(rates={"decline": 1.0}, decline_weights={"common": 9, "rare": 1})

    codes = Counter(decline_code(plan, 1, f"k{n}") for n in range(1_000))

    assert set(codes) == {"common", "rare"}
    assert 850 < codes["common"] < 950


def test_slow_calls_take_a_time_within_the_range() -> None:
    """The delay lies between the plan's bounds and differs from key to key."""
    plan = FaultPlan(slow_ms_min=100, slow_ms_max=200)

    delays = {slow_ms(plan, 1, f"k{n}") for n in range(50)}

    assert all(100 <= delay < 200 for delay in delays)
    assert len(delays) > 10


def test_nothing_goes_wrong_without_faults() -> None:
    """The empty plan injects nothing."""
    assert not forecast(FaultPlan.none(), DEFAULT_SEED, keys_like_real_ones("a"))


def test_a_plan_survives_its_json_form(tmp_path: Path) -> None:
    """What is written to a file is read back equal."""
    file = tmp_path / "plan.json"
    file.write_bytes(FaultPlan.default().to_json())

    assert FaultPlan.named(str(file)) == FaultPlan.default()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"rates": {"explode": 0.5}}', "no rate 'explode'"),
        (b'{"rates": {"slow": 1.5}}', "share from 0 to 1"),
        (b'{"rates": {"slow": 0.7, "hang_after": 0.7}}', "more than 1"),
        (b'{"slow_ms_mim": 3}', "unknown field 'slow_ms_mim'"),
        (b'{"hang_ms": -1}', "hang_ms is below zero"),
        (b'{"slow_ms_min": 9, "slow_ms_max": 3}', "slow_ms_max is below"),
        (b'{"decline_weights": {}}', "positive weight"),
        (b'{"rates": {"slow": "often"}}', "Expected `float`"),
        (b"[]", "not a JSON object"),
        (b"{", "truncated"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_by_name(raw: bytes, says: str) -> None:
    """A wrong or misspelt field is named instead of being ignored."""
    with pytest.raises(UserError, match=says):
        FaultPlan.from_json(raw, where="The file x")


def test_a_plan_without_a_fault_is_not_taken_for_one(tmp_path: Path) -> None:
    """An empty object in a file is a mistake, not faults: none has its own word."""
    empty = tmp_path / "plan.json"
    empty.write_text("{}")
    with pytest.raises(UserError, match="names no fault"):
        FaultPlan.named(str(empty))


def test_a_missing_plan_file_says_what_to_do() -> None:
    """A path that cannot be read gets a sentence that names the choices."""
    with pytest.raises(UserError, match="default, none, or the path"):
        FaultPlan.named("/nowhere/plan.json")
