"""A gateway that declines, hangs, loses answers, is away or dies: every payment has its outcome."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Report
from pipeline.audit.trace import trace
from pipeline.audit.verify import Sources, verify, worth_waiting
from pipeline.domain.model import Order
from pipeline.gateways.simulator import kill_simulator, start_simulator
from pipeline.gateways.simulator.faults import RATED
from pipeline.gateways.simulator.tokens import FORCED
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

SETTLE_S = 150.0

# Of docs/simulator.md: how a payment with each token ends, why, and how many charges there are.
ENDS: dict[str, tuple[str, str | None, int]] = {
    "tok_ok": ("captured", None, 1),
    "tok_decline_insufficient_funds": ("failed", "insufficient_funds", 0),
    "tok_decline_expired": ("failed", "expired_card", 0),
    "tok_decline_do_not_honor": ("failed", "do_not_honor", 0),
    "tok_decline_lost_card": ("failed", "lost_card", 0),
    "tok_slow": ("captured", None, 1),
    "tok_rate_limited_once": ("captured", None, 1),
    "tok_500_before": ("captured", None, 1),
    "tok_500_after": ("captured", None, 1),
    "tok_reset_before": ("captured", None, 1),
    "tok_reset_after": ("captured", None, 1),
    "tok_hang_before": ("captured", None, 1),
    "tok_hang_after": ("captured", None, 1),
    "tok_not_found_grace": ("captured", None, 1),
    # Proven never to have been charged, and sent again as often as is allowed.
    "tok_always_500": ("failed", "resends_exhausted", 0),
    # Charged, and never told: only a person can find out.
    "tok_always_unknown": ("outcome_unknown", "gateway_error", 1),
    "tok_in_progress_once": ("captured", None, 1),
    "tok_malformed": ("captured", None, 1),
    "tok_pending_success": ("captured", None, 1),
    "tok_pending_failure": ("failed", "do_not_honor", 0),
    "tok_fails_later": ("captured", None, 1),
    "tok_notice_duplicate": ("captured", None, 1),
    "tok_notice_before_answer": ("captured", None, 1),
    "tok_notice_bad_signature": ("captured", None, 1),
}
# Waits for the customer, who is not here.
ENDLESS = {"tok_action_required"}


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST of a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


def charged_twice(flow: WholeFlow) -> list[int]:
    """By the simulator's own word: references and orders that were charged more than once."""
    said = ask(f"{flow.simulator.admin_url}/v1/books/summary")
    return [
        said["references_charged_more_than_once"]["count"],
        said["orders_charged_more_than_once"]["count"],
    ]


def settle_what_can(flow: WholeFlow) -> Report:
    """The report once nothing is on its way that time alone would bring."""
    report = flow.verify()

    def done() -> bool:
        nonlocal report
        # An audit costs as much of the machine as the flow.
        time.sleep(0.5)
        report = flow.verify()
        return not worth_waiting(report)

    flow.keep_until(done, SETTLE_S, "everything has settled that can")
    return report


def with_token(order: Order, token: str) -> Order:
    return replace(order, instrument_token=token)


def test_every_fault_of_the_default_plan_is_met_and_survived(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """400 orders meet each kind of fault; what was ordered is captured or failed, once each."""
    sent = orders(400)
    with WholeFlow(kafka, topic_prefix, tmp_path, faults="default") as flow:
        flow.publish(sent)
        report = flow.settle(SETTLE_S)
        met = ask(f"{flow.simulator.url}/v1/faults")["faults"]
        assert charged_twice(flow) == [0, 0]
    assert report.exit_code == 0, report.findings
    assert {kind for kind in RATED if not met.get(kind)} == set()
    amounts, counts = report.summary["amount_minor"], report.summary["payments"]
    assert set(counts) == {"captured", "failed"}
    assert sum(counts.values()) == 400
    assert counts["failed"] == met["decline"]
    ordered = sum(order.amount_minor for order in sent)
    assert amounts["captured"]["GBP"] + amounts["failed"]["GBP"] == ordered
    assert report.summary["settled_minor"] == {"GBP": amounts["captured"]["GBP"]}
    assert report.summary["ledger"]["entries"] == counts["captured"]


@pytest.mark.long
def test_every_test_token_ends_as_its_document_says(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Statuses, reasons and charges by token; an outcome nobody can tell is left to a person."""
    assert set(ENDS) | ENDLESS == set(FORCED)
    sent = [with_token(o, t) for o, t in zip(orders(len(ENDS)), ENDS, strict=True)]
    flow = WholeFlow(
        kafka,
        topic_prefix,
        tmp_path,
        # Proof that nothing was charged takes as long as a request may be sent, and some questions.
        settings_given={
            "inquiry_max": 15,
            "inquiry_delay_ms": 300,
            "send_within_ms": 1_000,
        },
    )
    with flow:
        flow.publish(sent)
        report = settle_what_can(flow)
        payments = flow.payments()
        person = sent[list(ENDS).index("tok_always_unknown")]
        unknown = trace(Sources(kafka, topic_prefix), f"shop:{person.order_id}")
        books = ask(f"{flow.simulator.url}/v1/books?after=0&limit=100")["entries"]
        assert charged_twice(flow) == [0, 0]
    last = [payments[f"shop:{o.order_id}"] for o in sent]
    charges = [
        sum(b["kind"] == "charge" and b["order_id"] == o.order_id for b in books) for o in sent
    ]
    found = {
        token: (payment.status, payment.reason, count)
        for token, payment, count in zip(ENDS, last, charges, strict=True)
    }
    assert found == ENDS
    assert report.broken == []
    assert [(f.name, f.count) for f in report.pending] == [("waits_for_a_person", 1)]
    assert payments[f"shop:{person.order_id}"].attempts[-1].state == "inquiry_exhausted"
    events = [h.fields["type"] for h in unknown.hops if h.role == "payment-events"]
    assert events[-1] == "inquiry_exhausted"


def waits(records: dict[str, int]) -> int:
    """Waits in all retry and inquiry tiers so far."""
    tiers = ("payment-retry-", "payment-inquiry-")
    return sum(count for role, count in records.items() if role.startswith(tiers))


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False])
def test_payments_wait_while_the_gateway_is_away(
    kafka: str, topic_prefix: str, tmp_path: Path, known: bool
) -> None:
    """Refused connections are no failures: each payment waits its turn and is captured.

    ``known``: its worker has its partitions. Of what was requested before that, it cannot know
    whether another worker has sent it, so those payments ask instead.
    """
    flow = WholeFlow(kafka, topic_prefix, tmp_path, settings_given={"retry_max": 1_000})
    with flow:
        if known:
            flow.publish(orders(40, merchant="first"))
            flow.settle(SETTLE_S)
        outage = f"{flow.simulator.admin_url}/v1/admin/outage"
        ask(outage, {"mode": "refuse"})
        flow.publish(orders(100))
        # The books can be read at the other port, which knows no outage.
        seen = Sources(kafka, topic_prefix, flow.settings.books_url(), [flow.simulator.admin_url])
        # Each has been refused twice on average, and is still waiting.
        flow.keep_until(
            lambda: waits(verify(seen).summary["records"]) >= 200,
            SETTLE_S,
            "payments wait in the tiers",
        )
        report = verify(seen)
        assert report.broken == []
        payments = report.summary["payments"]
        assert payments.pop("captured", 0) == (40 if known else 0)
        assert sum(payments.values()) == 100
        assert set(payments) <= {"processing", "outcome_unknown"}
        ask(outage, {"mode": "none"})
        report = flow.settle(SETTLE_S)
        assert charged_twice(flow) == [0, 0]
    assert report.exit_code == 0, report.findings
    assert report.summary["payments"] == {"captured": 140 if known else 100}


def test_a_gateway_that_dies_and_comes_back_charges_nobody_twice(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Thrice killed with calls open, and back on its books: whole, one charge each."""
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        for part in range(3):
            flow.publish(orders(200, merchant=f"shop-{part}"))
            at = 200 * part + 40
            flow.keep_until(
                lambda at=at: ask(f"{flow.simulator.url}/v1/books/summary")["charges"] >= at,  # type: ignore[misc]
                SETTLE_S,
                "charges are made",
            )
            port = flow.simulator.port
            kill_simulator(flow.simulator)
            flow.simulator = start_simulator(flow.simulator.books, faults="none", port=port)
        report = flow.settle(SETTLE_S)
        assert charged_twice(flow) == [0, 0]
    assert report.exit_code == 0, report.findings
    assert report.summary["payments"] == {"captured": 600}
    assert report.summary["gateway"]["charges"] == 600
