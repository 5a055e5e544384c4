"""The load generator's orders, and errors of the publisher that need no broker."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.domain.policy import DEFAULT_POLICY
from pipeline.domain.records import order_from_record
from pipeline.domain.validation import CURRENCY_MUST_BE_SUPPORTED, broken_rule
from pipeline.errors import UserError
from producers.load_generator import LoadPlan, order_at, orders, prepare, run_load
from producers.order_publisher import InvalidOrder, OrderPublisher, PublishError
from schemas.codec import default_codec

NOW_MS = 1_790_000_000_000
NOWHERE = "127.0.0.1:1"


def plan(count: int = 100, **changes: object) -> LoadPlan:
    least = LoadPlan(count=count, submitted_at_ms=NOW_MS, business_date="2026-09-21")
    values = {name: getattr(least, name) for name in LoadPlan.__slots__}
    return LoadPlan(**{**values, **changes})  # type: ignore[arg-type]


def test_two_runs_make_the_same_orders_and_another_seed_others() -> None:
    """A checker can work out what a generator in another process has made."""
    assert list(orders(plan())) == list(orders(plan()))
    ids = {order.order_id for order in orders(plan())}
    assert len(ids) == 100
    assert ids.isdisjoint(order.order_id for order in orders(plan(seed=8)))
    assert order_at(plan(), 5).lines != order_at(plan(), 6).lines


def test_workers_share_the_orders_without_gap_or_overlap() -> None:
    """Three processes make together exactly what one would have made."""
    shares = [{o.order_id for o in orders(plan(worker=w, workers=3))} for w in range(3)]
    assert sum(map(len, shares)) == 100
    assert set.union(*shares) == {order.order_id for order in orders(plan())}


def test_orders_keep_the_rules_and_have_two_lines() -> None:
    """A benchmark measures payments, not rejections."""
    for order in orders(plan(1_000)):
        assert len(order.lines) == 2
        assert broken_rule(order, NOW_MS, DEFAULT_POLICY) in (None, CURRENCY_MUST_BE_SUPPORTED)


def test_prepared_records_are_the_orders() -> None:
    """The pool holds key and value of each order as the flow reads them."""
    decode = default_codec().decoder("order")
    pool = prepare(plan(10))
    assert [order_from_record(decode(value)) for _, value in pool] == list(orders(plan(10)))
    assert pool[0][0] == b"shop-a:load-7-0"


def test_tokens_are_drawn_from_those_given() -> None:
    """A share of other tokens brings declines or forced faults into a run."""
    tokens = {o.instrument_token for o in orders(plan(instrument_tokens=("tok_ok", "tok_slow")))}
    assert tokens == {"tok_ok", "tok_slow"}


def test_a_pace_without_meaning_is_refused() -> None:
    """No pace at all is None, not zero."""
    with pytest.raises(ValueError, match="rate_per_s"):
        run_load(NOWHERE, [], rate_per_s=0)


@pytest.mark.parametrize("ids", [{"merchant_id": "a:b"}, {"order_id": ""}, {"order_id": "é"}])
def test_ids_that_make_no_key_are_refused(ids: dict[str, str]) -> None:
    """An order whose ids cannot be a key is refused by the publisher, before anything is sent."""
    order = msgspec.structs.replace(order_at(plan(), 0), **ids)
    with OrderPublisher(NOWHERE, config={"log_level": 0}) as publisher, pytest.raises(InvalidOrder):
        publisher.publish(order)


def test_a_field_of_the_wrong_type_is_refused() -> None:
    """A float amount never becomes a record."""
    order = msgspec.structs.replace(order_at(plan(), 0), amount_minor=1.5)
    with (
        OrderPublisher(NOWHERE, config={"log_level": 0}) as publisher,
        pytest.raises(InvalidOrder, match="does not fit its schema"),
    ):
        publisher.publish(order)


@pytest.mark.slow
def test_without_a_broker_flush_names_every_order() -> None:
    """Nobody is left believing that an order was published."""
    publisher = OrderPublisher(NOWHERE, config={"log_level": 0})
    wanted = [order_at(plan(), index) for index in range(20)]
    for order in wanted:
        publisher.publish(order)
    with pytest.raises(PublishError) as raised:
        publisher.flush(timeout_s=0.1)
    assert raised.value.count == 20
    assert set(raised.value.undelivered) == {(o.merchant_id, o.order_id) for o in wanted}
    assert "publish them again" in str(raised.value)
    publisher.flush(timeout_s=0.1)  # said once, and nothing is left


@pytest.mark.slow
def test_a_missing_broker_is_a_sentence() -> None:
    """The check before an import says where nobody answers and what to do."""
    publisher = OrderPublisher(NOWHERE, config={"log_level": 0})
    with pytest.raises(UserError, match=r"No Kafka broker answers at 127\.0\.0\.1:1"):
        publisher.check(timeout_s=0.2)
