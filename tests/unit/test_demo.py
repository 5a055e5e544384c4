"""What the demo makes of an audit's report: its verdict is its exit code."""

from __future__ import annotations

import json
from dataclasses import asdict
from dataclasses import replace as replace_file
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Example, Finding, Report, Severity
from pipeline.demo import FOLDER_PREFIX, OWNER_FILE, Demo, _work_folder, clear_abandoned, summary
from pipeline.domain.model import Order
from pipeline.embedded.processes import this_process
from pipeline.errors import UserError
from producers.order_file import OrderFile, Problem
from tests.unit.test_import_command import Refuses

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
    "dead_letters": {},
    "order_to_settlement_ms": {"count": 1, "p50": 9, "p95": 9, "p99": 9, "max": 9},
    "gateway": {"charges": 1, "charged_minor": {"GBP": 1_250}},
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
        Report([], {**WHOLE, "gateway": {"charges": 1, "charged_minor": {"GBP": 1_251}}}),
    ],
    ids=["broken", "pending", "more orders than published", "the gateway differs"],
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


def test_every_kind_of_fault_is_counted_also_at_zero() -> None:
    """A kind that was never injected is seen to be missing."""
    lines = list(summary(demo(), Report([], WHOLE), {"decline": 3}, 1.0))
    (faults,) = [line for line in lines if line.startswith("faults injected")]
    assert "decline 3" in faults
    assert "hang_after 0" in faults


def test_an_order_that_cannot_be_a_record_is_named_and_not_expected() -> None:
    """It is left out by its line number, and the rest of the file is carried through."""
    other = replace(ORDER, order_id="o-2")
    found = OrderFile(
        line_count=5, orders=(ORDER, other), problems=(), left_out=0, line_numbers=(1, 5)
    )
    said: list[str] = []
    made = Demo(orders_file=Path("x"), found=found, faults="none", say=said.append)
    publisher: Any = Refuses("o-2")
    made.publish(publisher, lambda: None)
    assert said == ["x:5: order o-2 is too large: 1 bytes"]
    assert (made.found.orders, made.found.line_numbers, made.found.left_out) == ((ORDER,), (1,), 1)
    refuses_all: Any = Refuses("o-1")
    with pytest.raises(UserError, match="no order that can be published"):
        made.publish(refuses_all, lambda: None)


def test_a_long_reason_is_parted_from_its_count() -> None:
    """A rule's name may be longer than the column."""
    reason = "minor_units_must_fit_the_currency_exactly"
    report = Report([], {**WHOLE, "reasons": {"rejected": {reason: 7}}})
    assert f"  {reason} 7" in list(summary(demo(), report, {}, 1.0))


def test_one_bad_line_counts_once() -> None:
    """What became of its order is told by itself, not as another bad line."""
    made = demo()
    problems = (Problem(2, "bad"), Problem(2, "invoice left out", of_order=True))
    made.found = replace_file(made.found, problems=problems, left_out=1)
    lines = [" ".join(line.split()) for line in summary(made, Report([], WHOLE), {}, 1.0)]
    assert "bad lines 1" in lines
    assert "orders left out 1" in lines


def work_folder(place: Path, name: str, started: str | None) -> Path:
    folder = place / f"{FOLDER_PREFIX}{name}"
    (folder / "kafka" / "log").mkdir(parents=True)
    (folder / "workers.log").write_text("x")
    if started is not None:
        owner = {**asdict(this_process()), "started": started}
        (folder / OWNER_FILE).write_text(json.dumps(owner))
    return folder


def test_a_later_demo_clears_the_folder_of_a_killed_one(tmp_path: Path) -> None:
    """A pid that another process has now is no owner; a demo that runs keeps what is its own."""
    dead = work_folder(tmp_path, "dead", "at another time")
    alive = work_folder(tmp_path, "alive", this_process().started)
    nobodys = work_folder(tmp_path, "nobodys", None)
    clear_abandoned(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert nobodys.exists()


def test_a_demo_owns_its_folder_and_takes_it_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left in the temporary folder, a lock included."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = work_folder(tmp_path, "dead", "at another time")
    with _work_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
        clear_abandoned(tmp_path)
        assert (folder / OWNER_FILE).is_file()
    assert list(tmp_path.iterdir()) == []
    assert not dead.exists()
