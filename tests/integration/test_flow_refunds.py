"""Money back through the whole flow: refunds in parts, what must not be refunded, lost answers, and
the cancellations of the sample."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Report
from pipeline.demo import sample_file
from pipeline.domain.model import PaymentCommand
from producers.cancellations import given_back
from producers.invoice_csv import read_invoices
from tests.support.cli import Cli
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

# Seconds on a quiet machine; the deadline is for one that is busy with other tests.
SETTLE_S = 120.0


def command(type_: str, order_id: str, command_id: str, **more: Any) -> PaymentCommand:
    return PaymentCommand(
        merchant_id="shop",
        order_id=order_id,
        command_id=command_id,
        type=type_,
        submitted_at_ms=int(time.time() * 1000),
        actor="test",
        **more,
    )


def balances(report: Report) -> dict[str, int]:
    return {account: sums["GBP"] for account, sums in report.summary["ledger"]["balances"].items()}


@pytest.mark.long
def test_refunds_in_parts_lost_answers_and_what_must_not_be(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Two parts are refunded, a third that is too much and one of a payment that failed are
    rejected by name, a refund whose answer was lost is inquired about and done once, one that came
    before its order waits for it, and the same command twice is one. The audit finds nothing and
    the ledger balances."""
    tokens = ("tok_ok", "tok_refund_reset_after", "tok_ok", "tok_ok", "tok_decline_expired")
    parts, lost, early, whole, failed = (
        replace(order, amount_minor=1_000, instrument_token=token)
        for order, token in zip(orders(5), tokens, strict=True)
    )
    key = f"shop:{parts.order_id}"
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        flow.ask(command("refund", early.order_id, "early", amount_minor=250))
        flow.publish([parts, lost, early, whole, failed])
        flow.ask(
            command("refund", parts.order_id, "one", amount_minor=300),
            command("refund", parts.order_id, "one", amount_minor=300),
            command("refund", parts.order_id, "two", amount_minor=200),
            command("refund", parts.order_id, "too-much", amount_minor=501),
            command("refund", lost.order_id, "lost", amount_minor=400),
            command("refund", whole.order_id, "all"),
            command("refund", failed.order_id, "of-nothing"),
        )
        report = flow.settle(SETTLE_S)
        options = ("--bootstrap-servers", kafka, "--prefix", topic_prefix)
        cli = Cli(tmp_path)
        shown = cli.run("payment", "show", key, *options, "--no-ledger", "--no-gateway", "--json")
        books = ("--gateway-url", flow.simulator.url, "--ledger-url", flow.settings.books_url())
        told = cli.run("payment", "show", key, *options, *books)
        traced = cli.run("trace", key, *options, *books)
        lost_traced = cli.run("trace", f"shop:{lost.order_id}", *options, *books)
        again = cli.run("payment", "refund", key, "--amount", "6.00", *options, "--wait", "30")
        taken = cli.run("payment", "refund", key, "--amount", "5.00", *options, "--wait", "30")
        after = flow.settle(SETTLE_S)
    assert report.exit_code == 0, report.findings
    assert report.summary["commands"]["rejected"] == {
        "refund_must_not_exceed_captured": 1,
        "payment_must_be_captured": 1,
    }
    assert report.summary["settlements"]["refund"] == {
        "count": 5,
        "amount_minor": {"GBP": -(300 + 200 + 400 + 250 + 1_000)},
    }, lost_traced.out
    assert report.summary["gateway"]["refunds"] == 5
    assert balances(report) == {
        "gateway_receivable:simulator": 4_000 - 2_150,
        "merchant_payable:shop": 2_150 - 4_000,
    }

    story = json.loads(shown.out)
    assert story["statuses"] == ["captured", "partially_refunded"]
    assert story["payment"]["refunded_minor"] == 500
    states = {a["operation_id"]: a["state"] for a in story["payment"]["attempts"]}
    assert states == {parts.order_id: "charged", "one": "refunded", "two": "refunded"}
    assert "refunded          GBP 5.00" in told.out
    assert "refund_must_not_exceed_captured" in told.out
    # What the gateway's own books say of each, and the journal.
    assert told.out.count("at the gateway    refund re_") == 2
    assert told.out.count("journal entry     settlement:") == 3
    state = traced.out.splitlines()[-1]
    assert "refunded GBP 5.00" in state
    assert state.count("refund re_") == 2

    assert (again.code, "refund_must_not_exceed_captured" in again.out) == (1, True)
    assert taken.code == 0, taken.out + taken.err
    assert "done      refund of GBP 5.00 at simulator: refunded" in taken.out
    assert after.exit_code == 0, after.findings
    assert after.summary["gateway"]["refunds"] == 6


def test_the_cancellations_of_the_sample_come_out_to_the_penny(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Of 84 cancelled lines 7 are refunded (£136.10), 77 are credits that are held (£3,053.48),
    published twice and done once."""
    found = read_invoices(sample_file(), now_ms=int(time.time() * 1000))
    given = given_back(found, now_ms=int(time.time() * 1000))
    refunded = {c.order_id for c in given.refunds}
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        flow.publish([order for order in found.orders if order.order_id in refunded])
        flow.ask(*given.commands, *given.commands)
        report = flow.settle(SETTLE_S)
    assert report.exit_code == 0, report.findings
    settlements = report.summary["settlements"]
    assert settlements["refund"] == {"count": 7, "amount_minor": {"GBP": -13_610}}
    assert settlements["credit"] == {"count": 77, "amount_minor": {"GBP": -305_348}}
    assert report.summary["payments"]["credit_held"] == 77
    assert report.summary["gateway"]["refunded_minor"] == {"GBP": 13_610}
    assert balances(report)["unapplied_credits:online-retail"] == -305_348
    assert sum(balances(report).values()) == 0
