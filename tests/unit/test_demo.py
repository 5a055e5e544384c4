"""What the demo makes of an audit's report: its verdict is its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Example, Finding, Report, Severity
from pipeline.demo import Demo, sample_file, summary
from pipeline.domain.model import Order
from producers.cancellations import given_back
from producers.invoice_csv import read_invoices
from producers.order_file import OrderFile

ORDER = Order(
    merchant_id="shop",
    order_id="o-1",
    amount_minor=1_250,
    currency="GBP",
    instrument_token="tok_ok",
    business_date="2026-11-01",
    submitted_at_ms=0,
)
WHOLE: dict[str, Any] = {
    "records": {"orders": 1, "settlements": 1},
    "payments": {"captured": 1},
    "amount_minor": {"captured": {"GBP": 1_250}},
    "reasons": {},
    "settled_minor": {"GBP": 1_250},
    "settlements": {"capture": {"count": 1, "amount_minor": {"GBP": 1_250}}},
    "commands": {"by_type": {}, "waiting": 0, "rejected": {}},
    "dead_letters": {},
    "order_to_settlement_ms": {"count": 1, "p50": 9, "p95": 9, "p99": 9, "max": 9},
    "gateway": {
        "charges": 1,
        "charged_minor": {"GBP": 1_250},
        "refunds": 0,
        "refunded_minor": {},
    },
    "ledger": {"entries": 1, "balances": {"a": {"GBP": 1_250}, "b": {"GBP": -1_250}}},
}


def demo(*, seen_minor: int = 1_250) -> Demo:
    found = OrderFile(line_count=1, orders=(ORDER,), problems=(), left_out=0)
    made = Demo(orders_file=Path("x"), found=found, faults="default", say=lambda _line: None)
    made.settled["GBP"] += seen_minor
    made.settled_count = 1
    return made


def finding(name: str, severity: Severity) -> Finding:
    return Finding(name, severity, 1, Example("orders", 0, 0, "shop:o-1", "planted"))


def last_line(made: Demo, report: Report) -> str:
    return list(summary(made, report, {"decline": 1}, 1.0))[-1]


def test_a_whole_report_is_a_success() -> None:
    """Nothing broken, nothing on its way, and the subscriber saw what the audit saw."""
    report = Report([], WHOLE)
    assert demo().held(report)
    assert last_line(demo(), report).startswith("Every guarantee held")


@pytest.mark.parametrize(
    "report",
    [
        Report([finding("charged_twice", Severity.BROKEN)], WHOLE),
        Report([finding("order_without_outcome", Severity.PENDING)], WHOLE),
        Report([], {**WHOLE, "records": {"orders": 2, "settlements": 1}}),
        Report([], {**WHOLE, "gateway": {**WHOLE["gateway"], "charged_minor": {"GBP": 1_251}}}),
        Report([], {**WHOLE, "gateway": {**WHOLE["gateway"], "refunded_minor": {"GBP": 1}}}),
        Report([], {**WHOLE, "commands": {**WHOLE["commands"], "by_type": {"refund": 1}}}),
    ],
    ids=[
        "broken",
        "pending",
        "more orders than published",
        "the gateway charged more",
        "the gateway refunded unasked",
        "more commands than published",
    ],
)
def test_anything_else_is_a_failure_and_is_said(report: Report) -> None:
    """A broken guarantee, something unfinished, or books that differ: not held, and named."""
    assert not demo().held(report)
    assert last_line(demo(), report).startswith("NOT WHOLE")


def test_a_subscriber_that_missed_a_settlement_is_a_failure() -> None:
    """The downstream side is part of the promise."""
    assert not demo(seen_minor=0).held(Report([], WHOLE))


def test_a_wait_for_a_person_is_a_named_wait() -> None:
    """An outcome nobody can tell is neither lost nor guessed: the guarantee holds."""
    assert demo().held(Report([finding("waits_for_a_person", Severity.PENDING)], WHOLE))


def test_orders_that_come_again_are_counted_so_that_the_summary_adds_up() -> None:
    """By the engine's rule: another amount is a letter each time, another customer is not."""
    again, other = replace(ORDER, submitted_at_ms=99), replace(ORDER, amount_minor=1)
    renamed = replace(ORDER, customer_id="another")
    made = demo()
    made.found = OrderFile(
        line_count=7,
        orders=(ORDER, again, other, ORDER, other, other, renamed),
        problems=(),
        left_out=0,
    )
    lines = list(summary(made, Report([], WHOLE), {}, 1.0))
    assert [line.split()[-1] for line in lines if "said once more" in line] == ["3"]
    assert not any("said once more" in line for line in summary(demo(), Report([], WHOLE), {}, 1.0))


def test_every_kind_of_fault_is_counted_also_at_zero() -> None:
    """A kind that was never injected is seen to be missing."""
    lines = list(summary(demo(), Report([], WHOLE), {"decline": 3}, 1.0))
    (faults,) = [line for line in lines if line.startswith("faults injected")]
    assert "decline 3" in faults
    assert "hang_after 0" in faults


@pytest.mark.slow
def test_refunds_credits_and_what_was_rejected_are_told_apart() -> None:
    """A reader sees what went back, what is held, and by which rule a refund was refused."""
    made = demo()
    made.given = given_back(read_invoices(sample_file(), now_ms=0), now_ms=0)
    report = Report(
        [],
        {
            **WHOLE,
            "settlements": {
                **WHOLE["settlements"],
                "refund": {"count": 6, "amount_minor": {"GBP": -13_235}},
                "credit": {"count": 77, "amount_minor": {"GBP": -305_348}},
            },
            "commands": {
                "by_type": {"refund": 7, "credit": 77},
                "waiting": 0,
                "rejected": {"payment_must_be_captured": 1},
            },
        },
    )
    rows = {line[:36].strip(): line[36:] for line in summary(made, report, {}, 1.0)}
    assert rows["refunded"] == "6, GBP 132.35"
    assert rows["credits held"] == "77, GBP 3,053.48"
    assert rows["refunds rejected"] == rows["payment_must_be_captured"] == "1"
