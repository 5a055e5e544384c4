"""Disputes through the whole flow: told by gateways, or ended by a person."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from pipeline.domain.model import AuditEntry, Payment, PaymentCommand
from pipeline.embedded.ports import free_ports
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.local import simulated
from tests.support.cli import Cli
from tests.support.engine_flow import EngineFlow
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(420)]

# Seconds on a quiet machine; the deadline is for one that is busy with other tests.
SETTLE_S = 120.0
# One counts the events of a dispute, one dates them, one numbers its case's versions.
TELLING = ("simulator", "northbank", "pacific")


def call(method: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        said: dict[str, Any] = json.loads(response.read())
        return said


def test_disputes_that_come_back_and_one_that_a_person_ends(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """At each gateway an inquiry, during which a part is refunded, becomes a dispute that is won,
    goes to pre-arbitration and is won again: the money is back, whatever order the notices came in.
    A win that a gateway does not tell is entered by a person. The audit finds nothing then, and the
    person's name and evidence are kept."""
    port = free_ports(1)[0]
    secret = f"whsec_{base64.b64encode(uuid4().bytes + uuid4().bytes).decode()}"
    with ExitStack() as stack:
        handles = {}
        for name in TELLING:
            handles[name] = start_simulator(
                tmp_path / f"{name}.sqlite",
                faults="none",
                gateway=name,
                notice_url=f"http://127.0.0.1:{port}/webhooks/{name}",
                notice_secrets=[secret],
            )
            stack.callback(stop_simulator, handles[name])
        gateways = simulated(handles, secret)
        for name, entry in gateways.items():
            entry["merchants"] = [f"at-{name}"]
        flow = stack.enter_context(
            WholeFlow(
                kafka,
                topic_prefix,
                tmp_path,
                workers={"payments": 1, "gateway": 1, "ledger": 1, "webhooks": 1},
                settings_given={"gateways": gateways, "webhook_port": port},
            )
        )
        reader = EngineFlow(kafka, topic_prefix, tmp_path, partitions=flow.partitions)
        sold = [
            replace(order, merchant_id=f"at-{name}", order_id=f"{name}-{n}", amount_minor=1_000)
            for name in TELLING
            for n, order in enumerate(orders(1 if name != "simulator" else 2))
        ]
        flow.publish(sold)
        flow.settle(SETTLE_S)

        def payments() -> dict[str, Payment]:
            return {p.order_id: p for p in reader.nouns("payments")}

        def dispute(order_id: str, state: str, **more: Any) -> str:
            name = order_id.partition("-")[0]
            charge = payments()[order_id].attempts[0].gateway_reference
            body = {"charge_id": charge, "state": state, **more}
            return str(call("POST", f"{handles[name].url}/v1/admin/disputes", body)["id"])

        opened = {f"{name}-0": dispute(f"{name}-0", "inquiry") for name in TELLING}
        flow.keep_until(
            lambda: all(payments()[o].disputes for o in opened), SETTLE_S, "inquiries are told"
        )
        flow.ask(
            *(
                PaymentCommand(
                    merchant_id=f"at-{o.partition('-')[0]}",
                    order_id=o,
                    command_id=f"refund-{o}",
                    type="refund",
                    amount_minor=100,
                    submitted_at_ms=int(time.time() * 1000),
                )
                for o in opened
            )
        )
        flow.keep_until(
            lambda: all(payments()[o].refunded_minor == 100 for o in opened), SETTLE_S, "refunded"
        )
        for order_id, dispute_id in opened.items():
            for state in ("opened", "won", "pre_arbitration", "won"):
                dispute(order_id, state, dispute_id=dispute_id, amount_minor=900)
        report = flow.settle(SETTLE_S)
        assert report.exit_code == 0, report.findings
        for order_id in opened:
            (each,) = payments()[order_id].disputes
            assert (each.state, each.withdrawn_minor) == ("won", 0), order_id
            assert each.event_sequence

        # A gateway that stops telling.
        key = "at-simulator:simulator-1"
        silent = dispute("simulator-1", "opened")
        flow.keep_until(lambda: bool(payments()["simulator-1"].disputes), SETTLE_S, "told")
        call("PUT", f"{handles['simulator'].url}/v1/admin/notices", {"url": None})
        dispute("simulator-1", "won", dispute_id=silent)
        assert [f.name for f in flow.verify().pending] == ["notice_outstanding"]
        options = ("--bootstrap-servers", kafka, "--prefix", topic_prefix)
        cli = Cli(tmp_path)
        word = ("payment", "resolve-dispute", key, "--won", "--evidence", "case closed")
        unknown = cli.run(*word, "--dispute", "dp_x", "--by", "ann", *options, "--wait", "60")
        done = cli.run(*word, "--dispute", silent, "--by", "ann", *options, "--wait", "60")
        report = flow.settle(SETTLE_S)
        shown = cli.run("payment", "show", key, *options, "--no-ledger", "--no-gateway")
        entries: list[AuditEntry] = reader.nouns("audit")
    assert (unknown.code, "dispute_must_be_known" in unknown.out) == (1, True), unknown
    assert done.code == 0, done.out + done.err
    assert report.exit_code == 0, report.findings
    assert report.summary["ledger"]["balances"].get("disputes_and_losses:at-simulator", {}) in (
        {}, {"GBP": 0},
    )  # fmt: skip
    assert [(e.action, e.actor, e.subject) for e in entries] == [
        ("dispute_resolve", "ann", key)
    ] * 2
    assert [json.loads(e.detail)["outcome"] for e in entries] == ["refused", "done"]
    assert f"by hand: dispute_resolve, done, won, dispute {silent}, case closed, ann" in shown.out
    assert "refused by dispute_must_be_known" in shown.out
    assert f"{silent} at simulator: won, by ann (the gateway said opened)" in shown.out
