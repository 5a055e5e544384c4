"""Four gateways at once, each in its own wire format, behind one gateway worker."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.verify import Sources, verify, worth_waiting
from pipeline.config import load_settings
from pipeline.domain.model import Order
from pipeline.gateways.simulator import FaultPlan, start_simulator, stop_simulator
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.local import simulated
from pipeline.runtime.cluster import groups_joined
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

SETTLE_S = 150.0
# Of each merchant's orders: answers that come, answers that are lost, and one decline.
TOKENS = ("tok_ok", "tok_reset_after", "tok_malformed", "tok_decline_expired", "tok_500_after")


@pytest.mark.long
def test_each_merchant_is_charged_at_its_own_gateway_and_once(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Lost answers are found out by our reference at every one, also where there are no keys."""
    handles = {
        name: start_simulator(tmp_path / f"{name}.sqlite", faults="none", gateway=name)
        for name in PERSONALITIES
    }
    try:
        entries = simulated(handles)
        for name, entry in entries.items():
            entry["merchants"] = [f"shop-{name}"]
        sent: list[Order] = []
        for name in handles:
            for token in TOKENS:
                (order,) = orders(1, token=token, merchant=f"shop-{name}")
                sent.append(_renamed(order, f"o-{token}"))
        flow = WholeFlow(
            kafka,
            topic_prefix,
            tmp_path,
            settings_given={"gateways": entries, "send_within_ms": 2_000},
        )
        with flow:
            sources = Sources(
                kafka,
                topic_prefix,
                ledger_url=flow.settings.books_url(),
                gateway_urls=flow.settings.gateway_urls(),
            )
            assert len(sources.gateway_urls) == len(handles)

            def done() -> bool:
                time.sleep(0.5)
                return not worth_waiting(verify(sources))

            # What a worker finds already asked for it may have sent before, so at a gateway without
            # keys it calls for nothing of that: it has to be at work before those are published.
            group = flow.settings.catalogue().group("gateway")
            missing = groups_joined(kafka, {group: 1})
            flow.keep_until(lambda: not next(missing), 60, "the gateway worker has joined")
            flow.publish([order for order in sent if order.merchant_id != "shop-legacy"])
            flow.keep_until(done, SETTLE_S, "the gateways with keys have settled")
            flow.publish([order for order in sent if order.merchant_id == "shop-legacy"])
            flow.keep_until(done, SETTLE_S, "everything has settled")
            report = verify(sources)
        assert report.exit_code == 0, report.summary
        captured = len(handles) * (len(TOKENS) - 1)
        assert report.summary["payments"] == {"captured": captured, "failed": len(handles)}
        for handle in handles.values():
            summary = _get(f"{handle.admin_url}/v1/books/summary")
            assert summary["charges"] == len(TOKENS) - 1
            assert summary["orders_charged_more_than_once"]["count"] == 0
    finally:
        for handle in handles.values():
            stop_simulator(handle)


@pytest.mark.long
def test_what_the_first_gateway_cannot_do_the_second_one_does(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """One declines everything for reasons of its own; each order is charged once at the other, and
    the audit, which has the books of both, finds nothing."""
    ill = FaultPlan(rates={"decline": 1.0}, decline_weights={"processing_error": 1})
    handles = {
        name: start_simulator(tmp_path / f"{name}.sqlite", faults=faults, gateway=name)
        for name, faults in (("simulator", ill), ("northbank", "none"))
    }
    try:
        flow = WholeFlow(
            kafka, topic_prefix, tmp_path, settings_given={"gateways": simulated(handles)}
        )
        with flow:
            sources = Sources(
                kafka,
                topic_prefix,
                ledger_url=flow.settings.books_url(),
                gateway_urls=flow.settings.gateway_urls(),
            )
            flow.publish(orders(20))

            def done() -> bool:
                time.sleep(0.5)
                return not worth_waiting(verify(sources))

            flow.keep_until(done, SETTLE_S, "everything has settled")
            report = verify(sources)
        assert report.exit_code == 0, report.summary
        assert report.summary["payments"] == {"captured": 20}
        charges = {
            name: _get(f"{handle.admin_url}/v1/books/summary")["charges"]
            for name, handle in handles.items()
        }
        assert charges == {"simulator": 0, "northbank": 20}
    finally:
        for handle in handles.values():
            stop_simulator(handle)


def test_a_running_flow_tells_all_its_gateways(tmp_path: Path) -> None:
    """What `up` writes down for other commands is a configuration that they can read."""
    urls = {"simulator": "http://127.0.0.1:1", "legacy": "http://127.0.0.1:2"}

    class Handle:
        def __init__(self, url: str) -> None:
            self.url = url

    said = json.dumps(simulated({name: Handle(url) for name, url in urls.items()}))
    settings = load_settings(gateways=json.loads(said), state_dir=tmp_path)
    assert settings.gateway_urls() == tuple(urls.values())


def _renamed(order: Order, order_id: str) -> Order:
    from msgspec.structs import replace

    return replace(order, order_id=order_id)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)
