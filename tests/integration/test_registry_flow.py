"""A flow whose schema ids come from a registry, whose numbers are not those of the lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.audit.verify import Sources, verify
from pipeline.domain.model import Order
from pipeline.record_codec import record_codec
from producers.order_publisher import OrderPublisher
from schemas.registry import register
from tests.support.cli import Cli
from tests.support.whole_flow import WholeFlow
from topics.catalogue import TopicSettings, build_catalogue

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.long
def test_workers_commands_and_publishers_take_their_ids_from_the_registry(
    kafka: str, registry_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """An order published by a command and one published from Python are settled and booked."""
    catalogue = build_catalogue(TopicSettings(prefix=topic_prefix))
    register(registry_url, {s.name: s.schema for s in catalogue.topics.values() if s.schema})
    codec = record_codec(catalogue, registry_url)
    given = {"schema_registry_url": registry_url}
    with WholeFlow(kafka, topic_prefix, tmp_path, settings_given=given) as flow:
        done = Cli(
            tmp_path,
            {
                "PAYSTREAM_BOOTSTRAP_SERVERS": kafka,
                "PAYSTREAM_TOPIC_PREFIX": topic_prefix,
                "PAYSTREAM_SCHEMA_REGISTRY_URL": registry_url,
            },
        ).run(
            *[
                "order",
                "submit",
                "--merchant",
                "shop",
                "--order-id",
                "1",
                "--amount",
                "5",
                "--currency",
                "GBP",
            ],
            *["--token", "tok_ok"],
        )
        assert done.code == 0, done.err
        with OrderPublisher(kafka, topic=catalogue.name("orders"), codec=codec) as publisher:
            publisher.publish(order("2"))
        s = flow.settings
        sources = Sources(kafka, topic_prefix, s.books_url(), (s.gateway_url,))
        report = verify(sources, wait_s=60, codec=codec)
    assert report.exit_code == 0, report.findings
    assert report.summary["payments"] == {"captured": 2}
    assert report.summary["ledger"]["entries"] == 2


def order(order_id: str) -> Order:
    import time

    return Order(
        merchant_id="shop",
        order_id=order_id,
        amount_minor=700,
        currency="GBP",
        instrument_token="tok_ok",
        business_date="2026-11-23",
        submitted_at_ms=int(time.time() * 1000),
    )
