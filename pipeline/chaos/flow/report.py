"""What a run came to: for the terminal and a document, and as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.chaos.counted import counted
from pipeline.chaos.flow.anomalies import ANOMALIES, Found
from pipeline.chaos.flow.recovery import percentile

WHOLE, BROKEN, RESTLESS = "whole", "broken", "not at rest"
EXIT_CODES = {WHOLE: 0, BROKEN: 1, RESTLESS: 2}


@dataclass
class Done:
    """One fault as it was: times in seconds since the load began; ``alone`` if no other fault was
    under way until the flow had recovered; ``where`` the longest stand was. ``injured``: so many
    requests, None for a fault of another sort. ``skipped`` says why it did not happen."""

    number: int
    kind: str
    hit: str
    begun_s: float
    ended_s: float
    recovered_s: float | None = None
    still_s: float = 0.0
    where: str = ""
    alone: bool = True
    injured: int | None = None
    skipped: str = ""


@dataclass
class Report:
    """``at_rest``: nothing was on its way any more when it was judged."""

    command: str
    date: str
    seed: int
    brokers: int
    partitions: int
    rate_per_s: float
    load_s: float
    kafka: str
    librdkafka: str
    at_rest: bool = False
    rest_s: float = 0.0
    took_s: float = 0.0
    orders_published: int = 0
    orders_acknowledged: int = 0
    orders_given_up: int = 0
    ends_injured: int = 0
    stuck_s_max: float = 0.0
    faults: list[Done] = field(default_factory=list)
    anomalies: dict[str, Found] = field(default_factory=dict)
    looked_at: dict[str, int] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    exits: dict[str, int] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if any(found.count for found in self.anomalies.values()):
            return BROKEN if self.at_rest else RESTLESS
        return WHOLE if self.at_rest else RESTLESS

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def happened(self) -> list[Done]:
        return [fault for fault in self.faults if not fault.skipped]

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, **asdict(self)}


COLUMNS = (
    "fault", "times", "recovered p50", "p99", "max", "stood still p50", "p99", "max", "not seen",
)  # fmt: skip


_ALL, _ALONE = "all", "those with no other at the time"


def recovery_rows(faults: Sequence[Done]) -> list[tuple[str, ...]]:
    """One for each kind, and two for all; seconds. ``not seen``: the run ended before it."""
    kinds: dict[str, list[Done]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
        kinds[_ALL].append(fault)
        if fault.alone:
            kinds[_ALONE].append(fault)
    order = sorted(kinds, key=lambda kind: (kind == _ALONE, kind == _ALL, kind))
    return [_row(kind, kinds[kind]) for kind in order]


def _row(kind: str, faults: Sequence[Done]) -> tuple[str, ...]:
    recovered = [f.recovered_s for f in faults if f.recovered_s is not None]
    still = [f.still_s for f in faults]
    return (
        kind,
        str(len(faults)),
        *(f"{percentile(recovered, share):.1f}" for share in (0.5, 0.99, 1.0)),
        *(f"{percentile(still, share):.1f}" for share in (0.5, 0.99, 1.0)),
        str(len(faults) - len(recovered)),
    )


def head(report: Report) -> list[str]:
    faults = report.happened
    return [
        f"command: {report.command}",
        f"date: {report.date}",
        f"Kafka {report.kafka} ({counted(report.brokers, 'brokers')}, "
        f"{counted(report.partitions, 'partitions')}), "
        f"librdkafka {report.librdkafka}",
        f"verdict: {report.verdict}",
        f"{counted(report.orders_published, 'orders')} in {report.load_s:,.0f} s, "
        f"{report.orders_acknowledged:,} acknowledged; {counted(len(faults), 'faults')} of "
        f"{counted(len({fault.kind for fault in faults}), 'kinds')}, "
        f"{counted(report.ends_injured, 'requests injured')}",
        "looked at: "
        + (
            ", ".join(counted(count, what) for what, count in report.looked_at.items()) or "nothing"
        ),
        f"at rest {report.rest_s:,.0f} s after the last order; the longest that a last stable "
        f"offset stood: {report.stuck_s_max:.0f} s",
    ]


def lines(report: Report) -> list[str]:
    """For the terminal."""
    table = [COLUMNS, *recovery_rows(report.happened)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    told = [*head(report), ""]
    told += [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return [*told, "", *_verdict_lines(report)]


def _verdict_lines(report: Report) -> list[str]:
    told = []
    for name in ANOMALIES:
        found = report.anomalies.get(name, Found())
        told.append(f"{name}: {found.count}")
        told += [f"  e.g. {example}" for example in found.examples]
    told += [f"on its way: {text}" for text in report.pending]
    if report.exits:
        ended = ", ".join(f"{where} x{times}" for where, times in sorted(report.exits.items()))
        told.append(f"workers ended: {ended}")
    return told


def as_markdown(report: Report) -> str:
    """A document: what was run, how each fault was felt, what was judged, every fault."""
    text = [f"# Chaos run, seed {report.seed}: {report.verdict}", ""]
    text += [f"- {line}" for line in head(report)]
    text += [
        "",
        "Seconds from a fault's end until every step has moved in every partition; and the",
    ]
    text += ["longest that any of them stood meanwhile.", ""]
    text += _table(COLUMNS, recovery_rows(report.happened))
    text += ["", *_table(("anomaly", "found", "what it would be"), [
        (name, str(report.anomalies.get(name, Found()).count), says)
        for name, says in ANOMALIES.items()
    ]), ""]  # fmt: skip
    text += [f"- {line}" for line in _verdict_lines(report) if line.startswith((" ", "o", "w"))]
    text += ["", "## Faults", ""]
    text += _table(
        ("number", "at", "for", "fault", "hit", "recovered", "stood still", "alone"),
        [
            (
                str(f.number),
                f"{f.begun_s:.1f}",
                f.skipped or f"{f.ended_s - f.begun_s:.1f}",
                f.kind,
                _hit(f),
                "" if f.recovered_s is None else f"{f.recovered_s:.1f}",
                f"{f.still_s:.1f} {f.where}".rstrip(),
                "yes" if f.alone else "",
            )
            for f in report.faults
        ],
    )
    return "\n".join(text) + "\n"


def _hit(fault: Done) -> str:
    if fault.injured is None:
        return fault.hit
    return f"{fault.hit}: {counted(fault.injured, 'requests injured')}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    told = ["| " + " | ".join(columns) + " |", "|---|" + "---|" * (len(columns) - 1)]
    return told + ["| " + " | ".join(row) + " |" for row in rows]


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """``chaos-SEED.md`` and ``chaos-SEED.json`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / f"chaos-{report.seed}.md"
    data = folder / f"chaos-{report.seed}.json"
    document.write_text(as_markdown(report), encoding="utf-8")
    data.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return document, data
