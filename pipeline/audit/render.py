"""Reports and traces for people: plain lines, and tables where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.audit.amounts import amount_text
from pipeline.audit.report import Finding, Report
from pipeline.audit.trace import Hop, Trace, money

_VERDICTS = {
    "whole": "WHOLE: every guarantee holds.",
    "broken": "BROKEN: guarantees do not hold.",
    "pending": "PENDING: nothing is broken, something is still on its way.",
}


def report_lines(report: Report) -> Iterator[str]:
    """The verdict, each finding with where to look, and the numbers."""
    verdict = _VERDICTS[report.verdict]
    if report.verdict == "whole" and report.acknowledged:
        verdict = "WHOLE: every guarantee holds, but for what was acknowledged."
    yield verdict
    for finding in report.findings:
        yield from _finding_lines(finding)
    yield ""
    yield from summary_lines(report.summary)


def _finding_lines(finding: Finding) -> Iterator[str]:
    yield f"  {finding.severity.value:<8} {finding.name} x{finding.count}: {finding.guarantee}"
    # Keys and ids of what was refused are anybody's.
    yield f"           e.g. {printable(str(finding.example))}"


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The numbers of ``summary.summarize`` in aligned lines."""
    records, payments = summary["records"], summary["payments"]
    yield _row("orders", f"{records['orders']:,} ({summary['orders_repeated']:,} repeated)")
    yield _row("payments", _counts(payments) or "none")
    for status, sums in summary["amount_minor"].items():
        yield _row(f"  {status}", _sums(sums))
    for status, reasons in summary["reasons"].items():
        yield _row(f"  {status}: why", _counts(reasons))
    yield _row("settlements", f"{records['settlements']:,}, {_sums(summary['settled_minor'])}")
    for kind, settled in summary["settlements"].items():
        yield _row(f"  {kind}", f"{settled['count']:,}, {_sums(settled['amount_minor'])}")
    commands = summary["commands"]
    if commands["by_type"]:
        yield _row("commands", _counts(commands["by_type"]))
        if commands["waiting"]:
            yield _row("  waiting", f"{commands['waiting']:,}")
        if commands["rejected"]:
            yield _row("  rejected", _counts(commands["rejected"]))
    latency = summary["order_to_settlement_ms"]
    if latency["count"]:
        yield _row(
            "order to settlement",
            f"p50 {latency['p50']} ms, p95 {latency['p95']} ms, p99 {latency['p99']} ms, "
            f"max {latency['max']} ms",
        )
    yield _row("dead letters", _counts(summary["dead_letters"]) or "none")
    if summary["dead_letters"]:
        yield _row("  of them", _counts(summary["dead_letters_by_state"]))
    if "gateway" in summary:
        gateway = summary["gateway"]
        yield _row("gateway charges", f"{gateway['charges']:,}, {_sums(gateway['charged_minor'])}")
        if gateway["refunds"]:
            yield _row(
                "gateway refunds", f"{gateway['refunds']:,}, {_sums(gateway['refunded_minor'])}"
            )
    if "ledger" in summary:
        ledger = summary["ledger"]
        yield _row("journal entries", f"{ledger['entries']:,}")
        for account, sums in ledger["balances"].items():
            yield _row(f"  {account}", _sums(sums))
    for name in summary.get("not_judged", ()):
        yield _row("not judged", f"the {name} (no address was given)")
    if "audit" in summary:
        audit = summary["audit"]
        yield _row(
            "this audit",
            f"read in {audit['read_s']} s, judged in {audit['judged_s']} s, "
            f"at most {audit['peak_memory_mib']} MiB",
        )


def print_trace(trace: Trace, *, pretty: bool) -> None:
    """A table on a terminal, aligned lines elsewhere; the last line is where it all stands."""
    rows = [_hop_cells(hop) for hop in trace.hops]
    heads = ("topic", "at", "UTC time", "since order", "what")
    print(f"{trace.key}  payment {trace.payment_id}  partition {trace.partition}")
    if pretty:
        _print_table(heads, rows)
    else:
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads) - 1)]
        for row in (heads, *rows):
            cells = [
                text.rjust(width) if i == 3 else text.ljust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=False))
            ]
            print("  ".join((*cells, row[-1])))
    for remark in trace.remarks:
        print(remark, file=sys.stderr)
    print(state_line(trace))


def state_line(trace: Trace) -> str:
    """Where the order stands, with its charge and its journal entry where those were asked for."""
    parts = [trace.state or "unknown"]
    parts += [f"{charge['kind']} {charge['id']} of {money(charge)}" for charge in trace.charges]
    parts += [f"journal entry {entry['entry_id']}" for entry in trace.entries]
    return "state: " + "; ".join(parts)


def _print_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads)
    table.columns[3].justify = "right"
    for row in rows:
        # Text: what a record holds is never read as markup.
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _hop_cells(hop: Hop) -> tuple[str, ...]:
    since = "" if hop.since_order_ms is None else f"{hop.since_order_ms:+,} ms"
    return (
        hop.topic,
        f"{hop.partition}@{hop.offset}",
        time_text(hop.at_ms),
        since,
        printable(hop.what),
    )


def time_text(at_ms: int) -> str:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{at_ms % 1000:03d}"


def printable(text: str) -> str:
    """Without control characters: a record must not be able to steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _row(name: str, text: str) -> str:
    return printable(f"{name:<32} {text}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _sums(sums: Mapping[str, int]) -> str:
    return ", ".join(amount_text(amount, code) for code, amount in sorted(sums.items())) or "0"
