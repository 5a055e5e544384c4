"""What the scenarios came to, for the terminal, a document, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.chaos.document import Place
from pipeline.chaos.overload.scenario import Outcome

PLACE = Place("overload")


@dataclass(frozen=True)
class Report:
    """``machine``: what it ran on, in a line; figures of another one are others."""

    command: str
    date: str
    machine: str
    kafka: str
    librdkafka: str
    outcomes: Sequence[Outcome]

    @property
    def holds(self) -> bool:
        return bool(self.outcomes) and all(outcome.held for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def as_text(report: Report) -> str:
    lines = _head(report)
    for outcome in report.outcomes:
        lines += ["", f"{outcome.name}: {outcome.what}"]
        lines += [f"  {name}: {value}" for name, value in outcome.figures]
        lines += [
            f"  {'holds ' if claim.held else 'BROKEN'} {claim.must}: {claim.seen}"
            for claim in outcome.claims
        ]
    return "\n".join(lines)


def as_markdown(report: Report) -> str:
    lines = [f"- {line}" for line in _head(report)]
    for outcome in report.outcomes:
        lines += ["", f"**{outcome.name}**: {outcome.what} ({outcome.took_s:,.0f} s in all).", ""]
        lines += ["| measured, or must hold | seen | |", "|---|---|---|"]
        lines += [f"| {name} | {value} | |" for name, value in outcome.figures]
        lines += [
            f"| {claim.must} | {claim.seen} | {'holds' if claim.held else 'BROKEN'} |"
            for claim in outcome.claims
        ]
    return "\n".join(lines)


def _head(report: Report) -> list[str]:
    return [
        f"command: {report.command}",
        f"date: {report.date}",
        f"{report.machine}; Kafka {report.kafka} (one broker), librdkafka {report.librdkafka}",
    ]
