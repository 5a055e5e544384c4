"""The short form of ``paystream chaos run``: a minute of faults, and a whole flow afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.cli import Cli, Terminal

pytestmark = [pytest.mark.integration, pytest.mark.acceptance, pytest.mark.timeout(900)]

# Of each sort one: a worker beyond its session, a coordinator, a gateway with calls open, the
# database, and ends that arrive in the next transaction.
KINDS = ("freeze-payments-long", "kill-coordinator", "kill-simulator", "kill-postgres", "late-ends")
ENDED_WITHIN_S = 600.0


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def chaos(cli: Cli, *words: str, kinds: Sequence[str] = KINDS) -> Terminal:
    only = [word for kind in kinds for word in ("--only", kind)]
    return cli.start(
        "chaos", "run", "--seed", "2", "--rate", "40", "--every", "6", "--partitions", "4",
        "--dir", str(cli.temporary), *only, *words,
    )  # fmt: skip


def test_a_minute_of_faults_leaves_a_whole_flow(cli: Cli) -> None:
    """Every order has its one outcome, no anomaly is found, and the report says what was done."""
    with chaos(cli, "--minutes", "1") as run:
        assert run.ended(ENDED_WITHIN_S) == 0, run.said
    report = json.loads((cli.cwd / "chaos-reports" / "chaos-2.json").read_text())
    assert report["verdict"] == "whole"
    assert report["command"].endswith("--minutes 1")
    assert report["orders_acknowledged"] == report["orders_published"] == 2_400
    assert sum(report["audit"]["payments"].values()) == 2_400
    happened = [fault for fault in report["faults"] if not fault["skipped"]]
    assert len(happened) >= 3, report["faults"]
    # The judge has read what it judges: the coordinators' decisions and the bytes of the log.
    assert report["looked_at"]["transactions committed"] > 100
    assert report["looked_at"]["records committed"] > 2_400 * 5
    assert all(found["count"] == 0 for found in report["anomalies"].values())
    assert cli.temporary_files() == []
    cli.wait_until_nothing_runs(10)


def test_offsets_that_count_before_the_rows_are_there_are_waited_for(cli: Cli) -> None:
    """A commit's markers land apart on three brokers while a worker's partitions go to another one:
    it waits for the rows, and every order has its one outcome."""
    with chaos(cli, "--minutes", "1", kinds=("markers-apart",)) as run:
        assert run.ended(ENDED_WITHIN_S) == 0, run.said
    report = json.loads((cli.cwd / "chaos-reports" / "chaos-2.json").read_text())
    assert report["verdict"] == "whole"
    # One that nobody met would be skipped.
    skipped = [fault["skipped"] for fault in report["faults"]]
    assert "" in skipped, skipped


@pytest.mark.parametrize(
    ("minutes", "moment"), [("5", "freeze-payments-long ("), ("0.5", "waiting for rest")]
)
def test_an_interrupted_run_leaves_nothing(cli: Cli, minutes: str, moment: str) -> None:
    """Ctrl-C while a worker is frozen, or while the flow comes to rest: no process and no file
    stays."""
    with chaos(cli, "--minutes", minutes) as run:
        run.wait_for(moment)
        run.interrupt()
        assert run.ended() == 130, run.said
    assert "stopping" in run.said
    cli.wait_until_nothing_runs(10)
    assert cli.temporary_files() == []
