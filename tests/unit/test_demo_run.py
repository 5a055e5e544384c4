"""What a demo does with its file and its folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Report
from pipeline.demo import FOLDER_PREFIX, OWNER_FILE, Demo, _work_folder, clear_abandoned, summary
from pipeline.embedded.processes import this_process
from pipeline.errors import UserError
from producers.order_file import OrderFile, Problem
from tests.unit.test_demo import ORDER, WHOLE, demo
from tests.unit.test_import_command import Refuses


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
    made.found = dataclasses.replace(made.found, problems=problems, left_out=1)
    lines = [" ".join(line.split()) for line in summary(made, Report([], WHOLE), {}, 1.0)]
    assert "bad lines 1" in lines
    assert "orders left out 1" in lines


def work_folder(place: Path, name: str, started: str | None) -> Path:
    folder = place / f"{FOLDER_PREFIX}{name}"
    (folder / "kafka" / "log").mkdir(parents=True)
    (folder / "workers.log").write_text("x")
    if started is not None:
        owner = {**dataclasses.asdict(this_process()), "started": started}
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
