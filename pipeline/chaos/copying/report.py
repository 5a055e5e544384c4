"""What the variants came to, for the terminal, a document, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.chaos.copying.variant import Result
from pipeline.chaos.document import Place

PLACE = Place("copy")
COLUMNS = (
    "variant", "messages", "bounces", "other exits", "missing", "twice", "foreign", "order", "in",
    "",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    command: str
    date: str
    machine: str
    kafka: str
    librdkafka: str
    results: Sequence[Result]

    @property
    def holds(self) -> bool:
        return bool(self.results) and all(result.exact for result in self.results)

    def to_json(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def rows(report: Report) -> list[tuple[str, ...]]:
    """One for each variant; counts of the reader at the end and of the one meanwhile."""
    return [
        (
            one.variant.name,
            f"{one.messages:,}",
            f"{one.bounces}",
            f"{one.exits}",
            f"{one.later.missing}, {one.meanwhile.missing}",
            f"{one.later.doubled}, {one.meanwhile.doubled}",
            f"{one.later.foreign}, {one.meanwhile.foreign}",
            _order(one),
            f"{one.took_s:,.0f} s",
            "exact" if one.exact else "BROKEN",
        )
        for one in report.results
    ]


def _order(result: Result) -> str:
    if not result.variant.check_order:
        return ""
    return "lost" if result.later.disorder or result.meanwhile.disorder else "kept"


def as_text(report: Report) -> str:
    table = [COLUMNS, *rows(report)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([*_head(report), "", *lines])


def as_markdown(report: Report) -> str:
    lines = [f"- {line}" for line in _head(report)]
    lines += [
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows(report)])


def _head(report: Report) -> list[str]:
    return [
        f"command: {report.command}",
        f"date: {report.date}",
        f"{report.machine}; Kafka {report.kafka} (3 brokers), librdkafka {report.librdkafka}",
    ]
