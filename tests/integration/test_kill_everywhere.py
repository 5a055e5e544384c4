"""Workers are killed between every two steps of a transaction; nothing is lost or doubled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runtime import failpoints
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),
]

# How many orders flow, and how often each point kills: two minutes alone.
ORDERED = 5_000
KILLS_EACH = 2
# Nothing stands for longer by itself: a session ends after 10 s, and so does a transaction.
STILL_S = 60.0
# The passage at which a point kills: the third, so that a worker has committed before it dies.
# Restoring is passed once in a life, and a ledger that comes back books all that has gathered in a
# few large batches: there it is the first.
PASSAGE = {"payments.restoring": 1} | {
    point: 1 for point in failpoints.POINTS if point.startswith("ledger.")
}


def test_a_kill_at_every_step_of_payments_gateway_and_ledger_costs_nothing(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Orders flow while each named point kills a worker; the audit finds nothing."""
    counts = tmp_path / "kills"
    counts.mkdir()
    armed = ",".join(f"{point}={KILLS_EACH}@{PASSAGE.get(point, 3)}" for point in failpoints.POINTS)
    flow = WholeFlow(
        kafka,
        topic_prefix,
        tmp_path,
        workers={"payments": 2, "gateway": 1, "ledger": 1},
        environment={
            "PAYSTREAM_FAILPOINTS": armed,
            "PAYSTREAM_FAILPOINTS_DIR": str(counts),
        },
        # Small transactions: many passages of every step while the orders last.
        settings_given={"batch_records_max": 40},
    )
    with flow:
        flow.publish(orders(ORDERED), per_s=200)
        flow.keep_until(
            lambda: all(
                failpoints.fired(counts).get(point, 0) >= KILLS_EACH for point in failpoints.POINTS
            ),
            STILL_S,
            "every point has killed as often as it should",
            progress=lambda: failpoints.fired(counts),
        )
        report = flow.settle(STILL_S)
    fired = failpoints.fired(counts)
    assert fired == dict.fromkeys(failpoints.POINTS, KILLS_EACH)
    killed = sum(codes.count(-9) for codes in flow.supervisor.exits.values())
    assert killed == KILLS_EACH * len(failpoints.POINTS)
    assert report.exit_code == 0, report.findings
    # A record in hand at three of these deaths is put aside as one that kills: it lies whole in the
    # dead letters. An order so put aside is not charged; nothing else may be missing.
    said = json.dumps(report.summary)
    letters = report.summary["dead_letters"]
    assert set(letters) <= {"killed_the_process"}, said
    captured = report.summary["payments"]["captured"]
    assert report.summary["payments"] == {"captured": captured}, said
    assert ORDERED - min(3, sum(letters.values())) <= captured <= ORDERED, said
    assert report.summary["gateway"]["charges"] == captured
    assert report.summary["ledger"]["entries"] == captured
