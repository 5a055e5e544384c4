"""What committed readers see, held against what a loop was told: every damage has its name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.chaos.kip890.report import PLACE, Report, as_markdown, as_text
from pipeline.chaos.kip890.run import Seen
from pipeline.chaos.kip890.script import PAIRS, PARTS, many
from pipeline.chaos.kip890.verdict import End, Findings, Told, Written, judge
from pipeline.errors import UserError

C, N, U = End.COMMITTED, End.NOT_COMMITTED, End.UNKNOWN


def whole(number: int, attempt: int) -> list[Written]:
    return [Written(number, attempt, part) for part in range(PARTS)]


@pytest.mark.parametrize(
    ("told", "visible", "offset", "found"),
    [
        ([Told(0, 0, C)], whole(0, 0), 1, Findings()),
        ([Told(0, 0, N), Told(0, 1, C)], whole(0, 1), 1, Findings()),
        ([Told(0, 0, U), Told(0, 1, C)], whole(0, 1), 1, Findings(unknown=1)),
        ([Told(0, 0, U), Told(1, 1, C)], [*whole(0, 0), *whole(1, 1)], 2, Findings(unknown=1)),
        ([Told(0, 0, U), Told(1, 1, C)], whole(1, 1), 2, Findings(lost=1, unknown=1)),
        ([Told(0, 0, C)], [], 1, Findings(lost=1)),
        ([Told(0, 0, C)], whole(0, 0)[:1], 1, Findings(torn=1)),
        ([Told(0, 0, U), Told(0, 1, C)], [*whole(0, 0)[1:], *whole(0, 1)], 1,
         Findings(torn=1, doubled=1, unknown=1)),
        ([Told(0, 0, N), Told(0, 1, C)], [*whole(0, 0), *whole(0, 1)], 1,
         Findings(aborted_visible=1, doubled=1)),
        ([Told(0, 0, C)], [*whole(0, 0), *whole(0, 0)], 1, Findings(doubled=1)),
        ([Told(0, 0, C)], whole(0, 0), 0, Findings(offsets_wrong=1)),
    ],
    ids=[
        "all is well",
        "an abort that is done again",
        "an unknown end that was none",
        "an unknown end that was a commit",
        "lost behind an unknown end",
        "lost",
        "torn",
        "torn and done again",
        "aborted and visible",
        "twice",
        "offsets behind",
    ],
)  # fmt: skip
def test_each_damage_is_named(
    told: Sequence[Told], visible: Sequence[Written], offset: int, found: Findings
) -> None:
    """And nothing is called damage that is none."""
    judged = judge(told, visible, offset)
    assert bool(judged.examples) is judged.broken
    judged.examples = ()
    assert judged == found


def test_the_same_seed_injures_the_same_ends() -> None:
    """Each of them loses its answer, and arrives once more: no fault of the script is idle."""
    steps = list(many(50, seed=3))
    assert steps == list(many(50, seed=3))
    assert steps != list(many(50, seed=4))
    injured = [step.fault for step in steps if step.fault is not None]
    assert len(injured) == 50
    assert all(fault.copy is not None and fault.lost.value != "nothing" for fault in injured)
    assert all(first.fault is not None for first, _ in PAIRS.values())


def report_of(*seen: Seen) -> Report:
    return Report("command", "date", "4.3.1", "2.16.0", 1, seen)


@pytest.mark.parametrize(
    ("seen", "holds"),
    [
        (Seen("engine", 2, 3, faults=3, noticed=3), True),
        (Seen("plain", 2, 3, faults=3, findings=Findings(lost=1)), True),
        (Seen("engine", 2), False),
        (Seen("engine", 2, 4, faults=3, noticed=3), False),
        (Seen("plain", 2, 4, faults=3, findings=Findings(lost=1)), False),
        (Seen("plain", 2, 3, faults=3), False),
        (Seen("engine", 2, faults=3, noticed=2), False),
        (Seen("engine", 2, faults=3, noticed=3, findings=Findings(torn=1)), False),
        (Seen("engine", 2, faults=3, noticed=3, copies_unanswered=1), False),
        (Seen("engine", 2, faults=3, noticed=3, late_obeyed=1), False),
    ],
    ids=[
        "whole", "plain breaks", "nothing injured", "an end left alone", "one of the plain loop's",
        "plain is whole", "unnoticed", "torn", "a copy that never arrived", "obeyed",
    ],
)  # fmt: skip
def test_the_verdict_is_about_the_engine(seen: Seen, holds: bool) -> None:
    """It holds only if every fault happened, was noticed and did nothing, and broke a plain loop;
    a line says what is missing."""
    report = report_of(seen)
    assert report.holds is holds
    assert ("it does not hold: " in as_text(report)) is not holds


def test_the_table_names_who_is_exposed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """In the terminal and in a document, where only the table is replaced."""
    report = report_of(
        Seen("plain", 1, faults=3, findings=Findings(lost=1, unknown=2)),
        Seen("engine", 1, faults=3, noticed=3, rebuild_s=[0.05, 0.02]),
    )
    rows = [
        line.split() for line in as_text(report).splitlines() if "transaction.version 1 " in line
    ]
    assert [row[-1] for row in rows if row[2] in ("plain", "engine")][:2] == ["EXPOSED", "no"]
    assert "max 50 ms" in as_text(report)
    assert "2 unknown to the loop" in as_text(report)
    document = tmp_path / "document.md"
    document.write_text("no place")
    with pytest.raises(UserError, match="put the lines"):
        PLACE.require(document)
    document.write_text(f"before\n{PLACE.begin}\nold\n{PLACE.end}\nafter\n")
    PLACE.write(document, as_markdown(report))
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| transaction.version 1 | plain | 3 | 0 |" in text
