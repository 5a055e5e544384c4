"""The gateway in memory: what a benchmark relies on beyond the port's own promises."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from pipeline.gateways.in_process import InProcessGateway
from tests.unit.test_gateway_http import a_request


def charge(gateway: InProcessGateway, key: str) -> tuple[str, str | None, str | None]:
    request = msgspec.structs.replace(a_request(), idempotency_key=key)
    answer = asyncio.run(gateway.charge(request, send_before_ms=1 << 60))
    return answer.outcome, answer.code, answer.gateway_reference


@pytest.mark.slow
def test_the_declined_share_is_near_the_asked_one_and_the_same_each_time() -> None:
    """Which charges are declined follows from the key, so two runs agree."""
    keys = [f"key-{n}" for n in range(2_000)]
    first, second = (
        [charge(gateway, key) for key in keys[:200]]
        for gateway in (InProcessGateway(decline_rate=0.2), InProcessGateway(decline_rate=0.2))
    )
    assert first == second
    gateway = InProcessGateway(decline_rate=0.2)
    declined = sum(
        gateway.charge_now(
            msgspec.structs.replace(a_request(), idempotency_key=key), send_before_ms=1 << 60
        ).outcome
        == "declined"
        for key in keys
    )
    assert 300 < declined < 500


def test_its_memory_is_bounded_and_keeps_the_newest_keys() -> None:
    """However many charges pass, at most two generations of keys are kept, the newest among them.

    A charge under a forgotten key still gets the same reference.
    """
    gateway = InProcessGateway(keys_max=10)
    references = [charge(gateway, f"key-{n}")[2] for n in range(100)]
    assert len(gateway._young) + len(gateway._old) <= 20
    newest = msgspec.structs.replace(a_request(), idempotency_key="key-99")
    oldest = msgspec.structs.replace(a_request(), idempotency_key="key-0")
    assert asyncio.run(gateway.inquire(newest)).gateway_reference == references[99]
    assert asyncio.run(gateway.inquire(oldest)).outcome == "not_found"
    assert charge(gateway, "key-0")[2] == references[0]


@pytest.mark.parametrize(("rate", "keys_max"), [(-0.1, 1), (1.1, 1), (0.0, 0)])
def test_settings_without_meaning_are_refused(rate: float, keys_max: int) -> None:
    """A wrong share or size is named at once."""
    with pytest.raises(ValueError, match="must be"):
        InProcessGateway(decline_rate=rate, keys_max=keys_max)
