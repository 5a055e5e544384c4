"""What the runs came to, as a table for people and for the documents, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.chaos.document import Place
from pipeline.chaos.kip890.run import Seen

PLACE = Place("kip890")

COLUMNS = (
    "broker",
    "loop",
    "faults",
    "noticed",
    "late obeyed",
    "late refused",
    "lost",
    "torn",
    "aborted seen",
    "doubled",
    "exposed",
)


@dataclass(frozen=True)
class Report:
    """``kafka`` and ``librdkafka`` are the versions that were held against each other."""

    command: str
    date: str
    kafka: str
    librdkafka: str
    brokers: int
    seen: Sequence[Seen]

    @property
    def holds(self) -> bool:
        """Whether every end was injured, the plain loop exposed by it, and the engine noticed each
        and lost nothing."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """What it would take to hold, in words."""
        words = []
        for one in self.seen:
            where = f"{one.loop}, transaction.version {one.transaction_version}: "
            if one.faults < max(one.wanted, 1):
                words.append(f"{where}{one.faults:,} of {one.wanted:,} ends injured")
            if one.loop != "engine":
                if not one.exposed:
                    words.append(f"{where}not exposed, so that there is nothing to compare with")
                continue
            if one.exposed:
                words.append(f"{where}exposed")
            for count, what in (
                (one.unnoticed, "not noticed"),
                (one.late_obeyed, "obeyed late"),
                (one.copies_unanswered, "copied without an answer"),
            ):
                if count:
                    words.append(f"{where}{count:,} ends {what}")
        return words

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds, "missing": self.missing}


def rows(report: Report) -> list[tuple[str, ...]]:
    """One for each combination, as the columns say."""
    return [
        (
            f"transaction.version {one.transaction_version}",
            one.loop,
            f"{one.faults:,}",
            f"{one.noticed:,}",
            f"{one.late_obeyed:,}",
            f"{one.late_refused:,}",
            f"{one.findings.lost:,}",
            f"{one.findings.torn:,}",
            f"{one.findings.aborted_visible:,}",
            f"{one.findings.doubled:,}",
            "EXPOSED" if one.exposed else "no",
        )
        for one in report.seen
    ]


def as_text(report: Report) -> str:
    table = [COLUMNS, *rows(report)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([*_head(report), "", *lines, "", *_notes(report)])


def as_markdown(report: Report) -> str:
    lines = [f"- {line}" for line in _head(report)]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    return "\n".join([*lines, "", *(f"- {line}" for line in _notes(report))])


def _head(report: Report) -> list[str]:
    brokers = "one broker" if report.brokers == 1 else f"{report.brokers} brokers"
    return [
        f"command: {report.command}",
        f"date: {report.date}",
        f"Kafka {report.kafka} ({brokers}), librdkafka {report.librdkafka}",
    ]


def _notes(report: Report) -> list[str]:
    notes = []
    for one in report.seen:
        where = f"{one.loop}, transaction.version {one.transaction_version}"
        what = (
            f"{where}: {one.transactions:,} transactions in {one.took_s:,.0f} s; of the ends "
            f"{one.answer_lost:,} lost their answer and {one.timed_out:,} timed out, {one.late:,} "
            f"arrived late and {one.doubled_ends:,} twice; {one.findings.unknown:,} "
            "unknown to the loop"
        )
        if one.loop == "engine":
            what += f"; ends that nothing happened to and that cost a producer: {one.false_alarms}"
            codes = ", ".join(f"{code} ({times:,})" for code, times in sorted(one.refusals.items()))
            what += f"; errors that refused the late ones: {codes or 'none'}"
        notes.append(what)
        if one.rebuild_s:
            notes.append(
                f"{where}: a new producer took p50 {_ms(one.rebuild_s, 0.5)}, p99 "
                f"{_ms(one.rebuild_s, 0.99)}, max {_ms(one.rebuild_s, 1.0)}"
            )
        notes += [f"{where}: {example}" for example in one.findings.examples]
    if report.missing:
        notes.append(f"it does not hold: {'; '.join(report.missing)}")
    return notes


def _ms(values: Sequence[float], share: float) -> str:
    """By nearest rank."""
    ranked = sorted(values)
    return f"{ranked[max(0, math.ceil(share * len(ranked)) - 1)] * 1000:,.0f} ms"
