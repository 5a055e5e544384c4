"""A gateway that asks to be left alone for long, beside one that is well: what becomes of the
payments that it has, and of new ones."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.health import REST_MS_MAX, SNAPSHOT_EVERY_MS, HealthBook
from pipeline.domain.model import PaymentRequest
from pipeline.domain.policy import DEFAULT_POLICY, HOUR_MS, GatewayProfile
from tests.support.payment_story import NOT_FOUND, ORDER, SECOND, Story, yes

TWO = replace(
    DEFAULT_POLICY,
    gateways=(GatewayProfile(name="full", priority=1), GatewayProfile(name="well", priority=2)),
)


def told(story: Story, rest_s: int, until_ms: int) -> list[tuple[str, str, int]]:
    """Every request of an order that ``full`` turns away: gateway, kind and second."""
    began_ms, seen = story.flow.now_ms, []

    def gateways(request: PaymentRequest) -> GatewayAnswer:
        seconds = (story.flow.now_ms - began_ms) // 1000
        seen.append((request.gateway, request.kind, seconds))
        if request.gateway == "well":
            return yes(request)
        if request.kind == "inquire":
            return NOT_FOUND
        return GatewayAnswer(
            outcome="not_sent", code="rate_limited", retry_after_ms=rest_s * SECOND
        )

    while story.flow.now_ms < began_ms + until_ms and story.status != "captured":
        if story.flow.open_requests:
            story.flow.answer(gateways)
        else:
            story.wait()
    return seen


@pytest.mark.parametrize("rest_s", [600, 3_600])
def test_its_payments_go_elsewhere_once_its_rest_is_over(rest_s: int) -> None:
    """It is called by nobody sooner, so that is when it can be asked; it is not waited for anew."""
    assert told(Story(ORDER, TWO), rest_s, 6 * HOUR_MS) == [
        ("full", "charge", 0), ("full", "inquire", rest_s), ("well", "charge", rest_s),
    ]  # fmt: skip


def test_where_there_is_no_other_they_wait_for_it() -> None:
    """Again and again, up to the order's own deadline."""
    story = Story(ORDER, replace(TWO, gateways=TWO.gateways[:1]))
    asked = told(story, 600, HOUR_MS)
    assert {(gateway, kind) for gateway, kind, _ in asked} == {("full", "charge")}
    assert [second for _, _, second in asked] == [600 * each for each in range(6)]


def test_new_payments_go_elsewhere_until_its_rest_is_over() -> None:
    """Then as before, without a trial: it was never in trouble. A short rest is ordinary."""
    book = HealthBook()
    book.saw("full", "charge", "not_sent", "rate_limited", 1_000, REST_MS_MAX)
    assert not book.health(1_000).down
    book.saw("full", "charge", "not_sent", "rate_limited", 1_000, 600_000)
    book.saw("full", "charge", "not_sent", "rate_limited", 2_000, 20_000)
    assert book.health(1_000).down == {"full"}
    assert book.health(600_999).down == {"full"}
    over = book.health(601_000 + SNAPSHOT_EVERY_MS)
    assert not over.down
    assert not over.on_trial
