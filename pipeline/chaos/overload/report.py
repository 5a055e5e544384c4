"""What the scenarios came to, for the terminal, a document, and as JSON.

In a document each scenario has a block of its own, which says which run it is from: scenarios take
minutes each, and one that is run again replaces its own block only.
"""

from __future__ import annotations

import re
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


def as_markdown(report: Report, before: str = "") -> str:
    """The blocks of the report's scenarios, in place of theirs in ``before``, or added to it."""
    blocks = {found[1]: found[0].strip() for found in _BLOCK.finditer(before)}
    for outcome in report.outcomes:
        blocks[outcome.name] = _block(report, outcome)
    return "\n\n".join(blocks.values())


# A block begins with the scenario's name and ends where the next one begins.
_BLOCK = re.compile(r"^\*\*([\w-]+)\*\*:.*?(?=^\*\*|\Z)", re.MULTILINE | re.DOTALL)


def _block(report: Report, outcome: Outcome) -> str:
    lines = [f"**{outcome.name}**: {outcome.what} ({outcome.took_s:,.0f} s in all).", ""]
    lines += [f"- {line}" for line in _head(report)]
    lines += ["", "| measured, or must hold | seen | |", "|---|---|---|"]
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
