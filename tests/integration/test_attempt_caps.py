"""Caps on attempts over a real broker: exact with several workers, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.model import Order, Payment, PaymentCommand, RiskVelocity
from pipeline.domain.records import FROM_RECORD
from schemas.codec import default_codec
from tests.support.topics import read_all
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(240)]

SETTLE_S = 60.0
CAP = 5
CAPS = f"""
[[cap]]
name = "hour"
declines_max = {CAP}
window_s = 3600
"""
CODEC = default_codec()


def nouns(flow: WholeFlow, role: str) -> list[Any]:
    catalogue = flow.settings.catalogue()
    schema = catalogue[role].schema
    assert schema is not None
    decode, build = CODEC.decoder(schema), FROM_RECORD[schema]
    messages = read_all(flow.bootstrap, catalogue.name(role), "read_committed")
    return [build(decode(m.value() or b"")) for m in messages]


def payments(flow: WholeFlow) -> dict[str, Payment]:
    return {p.order_id: p for p in nouns(flow, "payments")}


def capped(bootstrap: str, prefix: str, folder: Path, workers: dict[str, int]) -> WholeFlow:
    caps = folder / "caps.toml"
    caps.write_text(CAPS)
    return WholeFlow(
        bootstrap,
        prefix,
        folder,
        workers=workers,
        settings_given={"attempt_caps": str(caps), "timer_delay_ms": 500},
    )


def kill(flow: WholeFlow, stage: str, seen: set[int]) -> None:
    pid = next(pid for pid in flow.supervisor.pids(stage) if pid not in seen)
    seen.add(pid)
    os.kill(pid, signal.SIGKILL)


def card(prefix: str, count: int, token: str, fingerprint: str) -> list[Order]:
    return [
        replace(o, order_id=f"{prefix}-{n}", card_fingerprint=fingerprint)
        for n, o in enumerate(orders(count, token=token))
    ]


def resting(flow: WholeFlow, count: int) -> bool:
    found = payments(flow)
    ended = [p for p in found.values() if p.status in ("captured", "failed")]
    return len(ended) == count


def test_one_card_at_two_workers_is_declined_no_more_often_than_its_cap(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Forty orders of a card that is always declined, over all lanes, workers killed meanwhile:
    exactly as many as the cap reach the gateway, the others fail by name; thirty of a good card at
    the same time all pay; a lost card is tried once, and another card pays instead."""
    poor = card("poor", 40, "tok_decline_insufficient_funds", "fp_poor")
    good = card("good", 30, "tok_ok", "fp_good")
    lost = card("lost", 6, "tok_decline_lost_card", "fp_lost")
    workers = {"payments": 2, "risk": 2, "gateway": 1, "ledger": 1}
    with capped(kafka, topic_prefix, tmp_path, workers) as flow:
        killed: set[int] = set()
        flow.publish([lost[0], *poor[:15], *good[:10]])
        flow.keep_until(lambda: bool(nouns(flow, "risk-results")), SETTLE_S, "a permit is given")
        kill(flow, "risk", killed)
        flow.publish([*poor[15:30], *good[10:20]], per_s=200)
        kill(flow, "payments", killed)
        flow.publish([*poor[30:], *good[20:]], per_s=200)
        # The same orders again: each is one order, and asks once.
        flow.publish(poor[:20])
        kill(flow, "risk", killed)
        flow.keep_until(lambda: resting(flow, 71), SETTLE_S, "every order has ended")
        flow.publish(lost[1:])
        flow.keep_until(lambda: resting(flow, 76), SETTLE_S, "the lost card's orders have ended")
        flow.ask(
            PaymentCommand(
                merchant_id="shop",
                order_id="lost-3",
                command_id="again",
                type="retry",
                submitted_at_ms=int(time.time() * 1000),
                instrument_token="tok_ok",
                card_fingerprint="fp_new",
            )
        )
        flow.keep_until(
            lambda: payments(flow)["lost-3"].status == "captured", SETTLE_S, "another card pays"
        )
        report = flow.settle(SETTLE_S)
        found = payments(flow)
        asked = Counter(r.order_id.split("-")[0] for r in nouns(flow, "payment-requests"))
        rows: dict[str, RiskVelocity] = {r.identity: r for r in nouns(flow, "risk-velocity")}

    ended = Counter((p.status, p.reason) for name, p in found.items() if name.startswith("poor"))
    assert ended == {
        ("failed", "insufficient_funds"): CAP,
        ("failed", "attempts_must_not_exceed_the_cap"): 40 - CAP,
    }
    assert all(found[o.order_id].status == "captured" for o in good)
    assert found["lost-0"].reason == "lost_card"
    assert {found[f"lost-{n}"].reason for n in (1, 2, 4, 5)} == {"card_must_not_be_tried_again"}
    assert asked == {"poor": CAP, "good": 30, "lost": 2}
    assert len(rows["fp_poor"].declined) == CAP
    assert all(row.in_flight == row.waiting == () for row in rows.values())
    assert report.exit_code == 0, report.findings
    assert report.summary["gateway"]["charges"] == 31
