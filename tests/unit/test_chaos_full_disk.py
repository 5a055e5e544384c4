"""A disk that is full: the fault lasts until a write was refused, and is none without."""

from __future__ import annotations

import resource
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.chaos.flow import worker_faults
from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.draw import Drawn
from pipeline.chaos.flow.worker_faults import WRITE_LATE_S_MAX, FullDisk

LASTS_S = 5.0


class PaymentsDisk(FullDisk):
    stage = "payments"


class FakeNode:
    name = "n1"

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self.exits: Counter[tuple[str, int]] = Counter()
        log_file.write_text("File too large, an earlier time\n")

    def pids(self, _stage: str) -> list[int]:
        return [1]

    def log_size(self) -> int:
        return self.log_file.stat().st_size

    def log_since(self, size: int) -> str:
        return self.log_file.read_text()[size:]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """By process, what its files may come to."""
    found: dict[int, int] = {}
    monkeypatch.setattr(worker_faults, "_limit_files", found.__setitem__)
    return found


def begun(node: FakeNode) -> FullDisk:
    cluster: Any = SimpleNamespace(workers=lambda _: [(node, 1)], later=lambda _: None)
    fault = PaymentsDisk(Drawn(1, 0.0, "full-disk", LASTS_S, 0), cast("Cluster", cluster))
    fault.start()
    return fault


def pass_s(fault: FullDisk, seconds: float) -> None:
    fault._begun_s -= seconds


def test_it_ends_when_its_time_is_over_and_a_write_was_refused(
    tmp_path: Path, limits: dict[int, int]
) -> None:
    node = FakeNode(tmp_path / "workers.log")
    fault = begun(node)
    with node.log_file.open("a") as log:
        log.write("While appending to file: 000072.sst: File too large\n")
    assert not fault.is_over()
    pass_s(fault, LASTS_S)
    assert fault.is_over()
    fault.end()
    assert fault.came_to_nothing == ""
    assert limits == {1: resource.RLIM_INFINITY}


def test_it_waits_for_a_write_and_is_none_if_there_is_not_one(
    tmp_path: Path, limits: dict[int, int]
) -> None:
    """What an earlier one left in the log does not count."""
    fault = begun(FakeNode(tmp_path / "workers.log"))
    pass_s(fault, LASTS_S)
    assert not fault.is_over()
    pass_s(fault, WRITE_LATE_S_MAX)
    assert fault.is_over()
    fault.end()
    assert fault.came_to_nothing == "nothing was written meanwhile"
