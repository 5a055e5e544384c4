"""What the faults of requests did: each says how many it injured, and one of none was no fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.chaos.faults import Rule
from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.draw import Drawn
from pipeline.chaos.flow.load import Load
from pipeline.chaos.flow.report import Done, Report, as_markdown
from pipeline.chaos.flow.rounds import Rounds

KINDS = ("late-ends", "doubled-ends", "dropped-answers", "doubled-writes", "reordered-writes")


class BusyProxy:
    """So many requests as ``injuries`` come by as soon as there is a rule for them."""

    def __init__(self, *injuries: int) -> None:
        # What earlier faults injured is none of a later one's.
        self.injected: list[object] = [object()] * 7
        self._injuries = list(injuries)
        self._rules = 0

    def inject(self, rule: Rule) -> Rule:
        if self._rules == 0:
            self.injected += [object()] * self._injuries.pop(0)
        self._rules += 1
        return rule

    def heal(self) -> None:
        self._rules = 0

    def release(self) -> None: ...


class QuietCluster:
    """Nothing runs in it but the proxy."""

    is_busy = False

    def __init__(self, proxy: BusyProxy) -> None:
        self.proxy = proxy
        self.watch = SimpleNamespace(samples=[], stuck_now=dict)

    def tick(self) -> None: ...

    def later(self, work: Callable[[], None]) -> None:
        work()


def rounds_of(kind: str, log_file: Path, *injuries: int) -> list[Done]:
    cluster = cast("Cluster", QuietCluster(BusyProxy(*injuries)))
    load = cast("Load", SimpleNamespace(is_over=True, seconds=3_600.0, published=0))
    drawn = [Drawn(number + 1, 0.0, kind, 0.0, 0) for number in range(len(injuries))]
    rounds = Rounds(cluster, load, drawn, log_file, lambda _text: None)
    rounds.run()
    return rounds.done()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_requests_says_how_many_it_injured(kind: str, tmp_path: Path) -> None:
    """Its own, in the list of the report and as JSON; one is said in the singular."""
    done = rounds_of(kind, tmp_path / "faults.jsonl", 5, 1)
    assert [(one.injured, one.skipped) for one in done] == [(5, ""), (1, "")]
    report = Report("chaos", "today", 3, 3, 6, 60, 60, "4.3.1", "2.16.0", faults=done)
    assert "| producers of n2: 5 requests injured |" in as_markdown(report)
    assert "| producers of n2: 1 request injured |" in as_markdown(report)
    assert [fault["injured"] for fault in report.to_json()["faults"]] == [5, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_injured_no_request_did_not_happen(kind: str, tmp_path: Path) -> None:
    """It is in the list with its reason, and in no sum: the flow has withstood nothing."""
    log_file = tmp_path / "faults.jsonl"
    done = rounds_of(kind, log_file, 0, 2)
    assert [(one.injured, one.skipped) for one in done] == [(0, "it injured no request"), (2, "")]
    report = Report("chaos", "today", 3, 3, 6, 60, 60, "4.3.1", "2.16.0", faults=done)
    assert [fault.number for fault in report.happened] == [2]
    assert "it injured no request" in as_markdown(report)
    said = [json.loads(line) for line in log_file.read_text().splitlines()]
    assert [line["what"] for line in said if line["number"] == 1] == ["begin", "skip"]
