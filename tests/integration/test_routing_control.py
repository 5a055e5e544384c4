"""Two gateways: payments moved between them by a control entry, and one of them dead."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.verify import Sources, verify
from pipeline.domain.model import Payment
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.runtime.control import change_entry
from schemas.codec import default_codec
from tests.support.cli import Cli, Done
from tests.support.topics import read_all
from tests.support.waiting import WAIT_S
from tests.support.whole_flow import WholeFlow, orders

pytestmark = pytest.mark.integration

# Quick to open and to come back: the traffic of a test is small.
QUICK = {"calls_min": 5, "slow_ms": 500, "wait_ms": 300, "wait_ms_max": 600}


@pytest.mark.long
def test_payments_follow_the_control_topic_and_leave_a_gateway_that_is_dead(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Without a restart: an entry moves new payments to the other gateway, a wrong one is refused
    and moves nothing; a gateway that hangs opens its breaker, the other's payments go on, and what
    it had taken is resolved when it answers again."""
    north = start_simulator(tmp_path / "north.sqlite", faults="none")
    south = start_simulator(tmp_path / "south.sqlite", faults="none")
    urls = {"north": north.url, "south": south.url}
    cli = Cli(
        tmp_path / "cli",
        {
            "PAYSTREAM_BOOTSTRAP_SERVERS": kafka,
            "PAYSTREAM_TOPIC_PREFIX": topic_prefix,
            "PAYSTREAM_PARTITIONS": "4",
            "PAYSTREAM_GATEWAYS": json.dumps(urls),
        },
    )

    def entry(name: str, document: dict[str, Any], *more: str) -> Done:
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return cli.run(
            "control", "set", "routing", str(path), "--reason", name, "--by", "tests", *more
        )

    try:
        with WholeFlow(kafka, topic_prefix, tmp_path, settings_given={"gateways": urls}) as flow:
            flow.publish(orders(10, merchant="first"))
            first = settled(flow, "first", 10)
            assert {p.attempts[0].gateway for p in first} == {"north"}

            # An entry moves what is new.
            to_south = {
                "gateways": {
                    "south": {"priority": 1, "breaker": QUICK},
                    "north": {"breaker": QUICK},
                }
            }
            done = entry("to-south", to_south)
            assert (done.code, done.out) == (0, "routing version 1 is in force\n"), done.err
            time.sleep(1.0)
            flow.publish(orders(10, merchant="second"))
            second = settled(flow, "second", 10)
            assert {p.attempts[0].routed_because for p in second} == {
                "south: priority 1 comes before north"
            }

            # A wrong one is refused before it is written.
            done = entry("wrong", {"gateways": {"nroth": {"priority": 0}}})
            assert done.code == 2
            assert "gateways.nroth: there is no such gateway" in done.err
            done = entry("to-south", to_south, "--version", "0")
            assert done.code == 2
            assert "version 1 is the newest, not 0" in done.err
            shown = cli.run("control", "show").out
            assert shown.startswith("routing version 1, by tests at ")
            assert "to-south (in force)" in shown

            # Written by another program, it is refused by the workers, and shown so.
            wrong = {"gateways": {"nroth": {"priority": 0}}}
            change_entry(
                kafka,
                flow.settings.catalogue(),
                default_codec(),
                key="routing",
                value=json.dumps(wrong),
                changed_by="another program",
                reason="by hand",
                now_ms=int(time.time() * 1000),
            )
            done = cli.run("control", "show")
            assert done.code == 1
            refused, instead = done.out.split("in force instead: ")
            assert refused.startswith("routing version 2, by another program at ")
            assert "by hand (refused by workers)\n  gateways.nroth: there is no such" in refused
            assert instead.startswith("routing version 1, by tests at ")

            # The preferred gateway hangs: connections are taken and nothing is answered.
            assert south.pid is not None
            os.kill(south.pid, signal.SIGSTOP)
            try:
                flow.publish(orders(40, merchant="third"))
                flow.keep_until(
                    lambda: any(p.status == "outcome_unknown" for p in newest(flow, "third")),
                    WAIT_S,
                    "the calls that hang are not waited for",
                )
                time.sleep(1.0)
                flow.publish(orders(20, merchant="fourth"))
                fourth = settled(flow, "fourth", 20)
                assert {p.attempts[0].gateway for p in fourth} == {"north"}
                assert {p.attempts[0].routed_because for p in fourth} == {
                    "north: the only one left to choose from; left out, not answering: south"
                }
            finally:
                os.kill(south.pid, signal.SIGCONT)
            third = settled(flow, "third", 40)
            assert {p.attempts[0].gateway for p in third} == {"south"}
            seen = Sources(kafka, topic_prefix, flow.settings.books_url(), [north.url, south.url])
            flow.keep_until(lambda: verify(seen).exit_code != 2, WAIT_S, "everything is booked")
            assert verify(seen).findings == []
            audited = read_all(kafka, f"{topic_prefix}audit")
            assert [m.key() for m in audited] == [b"control/routing"] * 2
    finally:
        stop_simulator(north)
        stop_simulator(south)


def newest(flow: WholeFlow, merchant: str) -> list[Payment]:
    """A merchant's payments as they are now."""
    return [each for each in flow.payments().values() if each.merchant_id == merchant]


def settled(flow: WholeFlow, merchant: str, count: int) -> list[Payment]:
    """A merchant's payments, once all of them are captured."""
    flow.keep_until(
        lambda: sum(p.status == "captured" for p in newest(flow, merchant)) == count,
        WAIT_S,
        f"{count} payments of {merchant} captured",
    )
    return newest(flow, merchant)
