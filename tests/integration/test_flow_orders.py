"""What becomes of orders: repeated ones, contradicting ones, the largest and the empty."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.trace import Hop, trace
from pipeline.audit.verify import Sources
from pipeline.demo import sample_file
from pipeline.domain.records import order_from_record
from producers.invoice_csv import read_invoices
from schemas.codec import default_codec
from tests.support.cli import Cli
from tests.support.topics import read_all
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

# Seconds on a quiet machine; the deadline is for one that is busy with other tests.
SETTLE_S = 120.0


def hops(flow: WholeFlow, key: str) -> list[Hop]:
    """The way of one order through the topics."""
    return trace(Sources(flow.bootstrap, flow.prefix), key).hops


def of(found: list[Hop], role: str) -> list[dict[str, Any]]:
    return [hop.fields for hop in found if hop.role == role]


def test_an_order_that_comes_again_is_one_payment(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Thrice at once, and again after a crash: one charge, one settlement, one journal entry."""
    at_once, later = orders(2)
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        flow.publish([at_once, later, at_once, at_once])
        assert flow.settle(SETTLE_S).exit_code == 0
        flow.publish([later])
        (worker,) = flow.supervisor.pids("payments")
        os.kill(worker, signal.SIGKILL)
        flow.publish([later, at_once])
        report = flow.settle(SETTLE_S)
        found = [hops(flow, f"shop:{order.order_id}") for order in (at_once, later)]
    assert report.exit_code == 0, report.findings
    assert report.summary["payments"] == {"captured": 2}
    assert report.summary["orders_repeated"] == 5
    assert report.summary["gateway"]["charges"] == 2
    assert report.summary["ledger"]["entries"] == 2
    assert report.summary["dead_letters"] == {}
    assert [len(of(each, "settlements")) for each in found] == [1, 1]
    # Whoever looks at the payment sees that the others did nothing.
    ordered = [[hop.what for hop in each if hop.role == "orders"] for each in found]
    assert [len([what for what in each if "repeated, no effect" in what]) for each in ordered] == [
        3,
        2,
    ]
    assert not any("repeated" in each[0] for each in ordered)


def test_the_same_order_on_other_terms_is_a_named_conflict(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """It is dead-lettered and told as an event; payment and charge stay as they were."""
    changes: list[dict[str, Any]] = [
        {"amount_minor": 999},
        {"currency": "EUR"},
        {"instrument_token": "tok_other"},
    ]
    first = orders(len(changes))
    total = sum(order.amount_minor for order in first)
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        flow.publish(first)
        assert flow.settle(SETTLE_S).exit_code == 0
        flow.publish([replace(o, **change) for o, change in zip(first, changes, strict=True)])
        report = flow.settle(SETTLE_S)
        found = [hops(flow, f"shop:{order.order_id}") for order in first]
    assert report.exit_code == 0, report.findings
    assert report.summary["dead_letters"] == {"order_conflict": 3}
    books = report.summary["gateway"]
    assert (books["charges"], books["charged_minor"]) == (3, {"GBP": total})
    assert report.summary["ledger"]["entries"] == 3
    for order, way in zip(first, found, strict=True):
        last = of(way, "payments")[-1]
        assert last["status"] == "captured"
        assert last["captured_minor"] == last["amount_minor"] == order.amount_minor
        assert (last["currency"], last["instrument_token"]) == ("GBP", order.instrument_token)
        assert [event["type"] for event in of(way, "payment-events")][-1] == "order_conflict"
        assert len(of(way, "settlements")) == 1


def test_the_largest_and_the_empty_invoices_of_the_sample(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Hundreds of lines arrive whole and are settled to the penny; nothing due is an outcome."""
    read = read_invoices(sample_file(), now_ms=int(time.time() * 1000))
    largest = max(read.orders, key=lambda order: len(order.lines))
    empty = [order for order in read.orders if order.amount_minor == 0]
    assert len(largest.lines) > 200
    assert len(empty) == 45
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        flow.publish([largest, *empty])
        report = flow.settle(SETTLE_S)
        decode = default_codec().decoder("order")
        records = read_all(kafka, flow.settings.catalogue().name("orders"))
        arrived = {
            order.order_id: order
            for order in (order_from_record(decode(m.value() or b"")) for m in records)
        }
        settlements = of(hops(flow, f"{largest.merchant_id}:{largest.order_id}"), "settlements")
        traced = Cli(tmp_path / "cli").run(
            "trace",
            f"{empty[0].merchant_id}:{empty[0].order_id}",
            environment={
                "PAYSTREAM_BOOTSTRAP_SERVERS": kafka,
                "PAYSTREAM_TOPIC_PREFIX": topic_prefix,
                "PAYSTREAM_LEDGER_URL": flow.settings.books_url(),
                "PAYSTREAM_GATEWAY_URL": flow.simulator.url,
            },
        )
    assert report.exit_code == 0, report.findings
    assert report.summary["payments"] == {"captured": 1, "no_payment_due": 45}
    assert arrived == {order.order_id: order for order in [largest, *empty]}
    assert [s["amount_minor"] for s in settlements] == [largest.amount_minor]
    assert sum(x.unit_amount_minor * x.quantity for x in largest.lines) == largest.amount_minor
    assert report.summary["gateway"]["charges"] == 1
    assert traced.code == 0, traced
    assert "no_payment_due" in traced.out
