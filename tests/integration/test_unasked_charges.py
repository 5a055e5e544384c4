"""A charge made past us at a real gateway: found by its report, and given back once."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from consumers.reconciliation import Reconciler
from pipeline.commands import reconciling
from pipeline.commands.reconciling import now_ms, rules_of
from pipeline.domain.breaks import REFUND_AFTER_REVIEW
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.reconciliation.breaks import list_breaks
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from schemas.codec import default_codec
from tests.integration.test_reconciliation import captured, kept, run
from tests.support.topics import read_all
from tests.support.whole_flow import WholeFlow, orders
from topics.catalogue import DAY_MS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


class Died(Exception):
    pass


def post(url: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def strange_charge(flow: WholeFlow, reference: str, token: str) -> str:
    """Made at the gateway by somebody else; its id there."""
    made = post(
        f"{flow.simulator.url}/v1/charges",
        {"reference": reference, "amount_minor": 1250, "currency": "GBP", "capture": True,
         "instrument_token": token, "merchant_id": "somebody", "order_id": "else"},
        **{"Idempotency-Key": reference, "Content-Type": "application/json"},
    )  # fmt: skip
    return str(made["id"])


def entries(flow: WholeFlow, charge_id: str) -> list[tuple[str, int]]:
    """What the gateway's books have of a charge, itself first."""
    with urllib.request.urlopen(f"{flow.simulator.url}/v1/books?limit=1000", timeout=30) as answer:
        found = json.load(answer)["entries"]
    return [
        (each["kind"], each["amount_minor"])
        for each in found
        if charge_id in (each["id"], each["charge_id"])
    ]


def test_it_goes_back_once_whoever_dies_and_the_books_close(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No order asked for it, and the gateway is silent about its refund. The person's command dies
    after the decision, the next run after it has told the flow, and the workers are killed then:
    one refund in the gateway's books, every break ends, and a rebuild has the same books."""
    monkeypatch.setenv("PAYSTREAM_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("PAYSTREAM_TOPIC_PREFIX", topic_prefix)
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        monkeypatch.setenv("PAYSTREAM_PARTITIONS", str(flow.partitions))
        monkeypatch.setenv("PAYSTREAM_GATEWAY_URL", flow.simulator.url)
        url = flow.settings.books_url()
        engine = open_ledger(url)
        flow.publish(orders(3))
        flow.keep_until(lambda: captured(flow) == 3, 120, "three are captured")
        # Its refund is made and not answered: unknown until it is asked about.
        silent = strange_charge(flow, "typed by hand", "tok_refund_reset_after")
        plain = strange_charge(flow, "typed again", "tok_ok")
        flow.keep_until(lambda: flow.verify().exit_code == 1, 60, "the audit names it")

        today = date.fromisoformat(time.strftime("%Y-%m-%d", time.gmtime()))
        take_in(flow, url, today)
        # After its T+N nothing can be expected to explain it any more.
        later = str(today + timedelta(days=21))
        run(url, "reconcile", "run", "--as-of", later)
        with reading(engine) as connection:
            found = {each.gateway_reference: each for each in list_breaks(connection)}
        assert {each.kind for each in found.values()} == {"missing_here"}
        assert found.keys() == {silent, plain}
        told = run(url, "reconcile", "resolve", found[plain].break_id, "--as",
                   "refund_after_review", "--reason", "seen twice", "--by", "bert")  # fmt: skip
        assert f"{plain} is given back by simulator" in told.output, told.output

        # As far as the command had come when it died.
        with pytest.raises(Died):
            reconciler(flow, until="resolved").resolve(
                found[silent].break_id, REFUND_AFTER_REVIEW, actor="anna", reason="nobody knows it"
            )
        assert commands(flow) == 1
        with pytest.raises(Died):
            reconciler(flow, until="refunds_ordered").run()
        assert commands(flow) == 2
        for worker in flow.supervisor.pids():
            os.kill(worker, signal.SIGKILL)
        run(url, "reconcile", "run", "--as-of", later)
        assert commands(flow) == 3
        flow.keep_until(lambda: given_back(flow) == 2500, 120, "both are given back")
        flow.settle(120)

        # A week on: what is paid for the days before a weekend shares one statement of the bank.
        monkeypatch.setattr(reconciling, "now_ms", lambda: now_ms() + 7 * DAY_MS)
        take_in(flow, url, today + timedelta(days=7))
        last = run(url, "reconcile", "run", "--as-of", later)
        assert (last.exit_code, "  none" in last.output) == (0, True), last.output
        assert entries(flow, silent) == [("charge", 1250), ("refund", 1250)]
        assert entries(flow, plain) == [("charge", 1250), ("refund", 1250)]
        balances = kept(engine)
        assert "suspense:simulator" not in balances
        assert "gateway_receivable:simulator" not in balances
        assert sum(-minor for name, minor in balances.items() if "merchant" in name) == 303
        with reading(engine) as connection:
            done = list_breaks(connection, state="resolved")
        assert {(each.resolution, each.actor) for each in done if each.actor} == {
            ("refund_after_review", "anna"), ("refund_after_review", "bert"),
        }  # fmt: skip
        report = flow.settle(120)
        assert report.exit_code == 0, report.findings
        while seal(engine):
            pass
        with reading(engine) as connection:
            assert verify_books(connection).damages == ()
        rebuilt = run(url, "ledger", "rebuild", "--into", f"sqlite:///{tmp_path / 'again.db'}")
        assert "the SAME" in rebuilt.output, rebuilt.output
        engine.dispose()


def take_in(flow: WholeFlow, url: str, day: date) -> None:
    """The gateway's report of a day, and the bank's statement of what it paid for it."""
    made = post(f"{flow.simulator.url}/v1/admin/reports", {"date": str(day), "late_every": 0})
    assert run(url, "reconcile", "import", "--date", str(day)).exit_code == 0
    for batch in made["batches"]:
        run(url, "reconcile", "bank", "--date", batch["value_date"])


def reconciler(flow: WholeFlow, until: str) -> Reconciler:
    """One whose process ends at a step."""

    def die(step: str) -> None:
        if step == until:
            raise Died

    return Reconciler(
        flow.bootstrap, flow.settings.catalogue(), default_codec(),
        open_ledger(flow.settings.books_url()), rules_of(flow.settings),
        now_ms=now_ms, on_step=die,
    )  # fmt: skip


def commands(flow: WholeFlow) -> int:
    return len(read_all(flow.bootstrap, flow.settings.catalogue().name("payment-commands")))


def given_back(flow: WholeFlow) -> int:
    return sum(
        each.refunded_minor for key, each in flow.payments().items() if key.startswith("unasked:")
    )
