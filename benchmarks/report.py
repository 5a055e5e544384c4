"""Results as one aligned table, as JSON, and as the table of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.baseline import PeerDrained
from benchmarks.codec_costs import CallCost
from benchmarks.drain import Drained
from benchmarks.journal import JournalMeasured
from benchmarks.kills import Killed
from benchmarks.latency import Latency, Percentiles
from benchmarks.machine import Machine
from benchmarks.outage import OutageSeen
from benchmarks.process_use import ProcessCost
from benchmarks.reconcile import Reconciled
from pipeline.errors import UserError

# What the flow is built to reach on two cores with the broker on them; shown beside the figure.
AIM_ORDERS_PER_S = 8_000
AIM_P50_MS = 150
AIM_P99_MS = 400
# What a dead gateway may do to the payments of the others.
AIM_OUTAGE_P99_RATIO = 2.0
# A gateway is tried with few, which wait: one of fifty orders, where half of them were its own.
AIM_OUTAGE_TRIALS_SHARE = 0.02
# Of bare inserts of the same rows, and of the rate without a hot merchant.
AIM_JOURNAL_OF_CORE = 0.6
AIM_JOURNAL_HOT_OF_EVEN = 0.9
# Of a million on each side.
AIM_RECONCILE_S = 60
AIM_RECONCILE_MIB = 500

BEGIN = "<!-- written by python -m benchmarks --write: begin -->"
END = "<!-- written by python -m benchmarks --write: end -->"
# Parts of ``all`` whose table may be written alone.
OWN_PLACE = ("latency", "outage", "reconcile")


@dataclass(frozen=True)
class Row:
    """One figure. ``met`` is None where there is no aim."""

    group: str
    name: str
    value: str
    aim: str = ""
    met: bool | None = None


@dataclass
class Results:
    """Whatever the run has measured."""

    command: str
    date: str
    machine: Machine
    drains: list[Drained] = field(default_factory=list)
    peers: list[PeerDrained] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    outage: OutageSeen | None = None
    journal: JournalMeasured | None = None
    reconciled: list[Reconciled] = field(default_factory=list)
    killed: list[Killed] = field(default_factory=list)
    codec: list[CallCost] = field(default_factory=list)
    decisions: list[CallCost] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; rates a second, times in the unit of the name."""
        return asdict(self)


def rows(results: Results) -> list[Row]:
    """Every figure, in the order of the parts."""
    found: list[Row] = []
    for drained in results.drains:
        found += _drain_rows(drained)
    for peer in results.peers:
        found += _peer_rows(peer)
    for latency in results.latencies:
        found += _latency_rows(latency)
    if results.outage is not None:
        found += _outage_rows(results.outage)
    if results.journal is not None:
        found += _journal_rows(results.journal)
    for reconciled in results.reconciled:
        found += _reconcile_rows(reconciled)
    for killed in results.killed:
        found += _kill_rows(killed)
    found += [_cost_row("codec", cost) for cost in results.codec]
    found += [_cost_row("decisions", cost) for cost in results.decisions]
    return found


def as_text(results: Results) -> str:
    """The table for a terminal, the machine above it."""
    table = rows(results)
    width = max((len(row.name) for row in table), default=0)
    value_width = max((len(row.value) for row in table), default=0)
    lines = [f"{label:<12} {text}" for label, text in _head(results)]
    group = None
    for row in table:
        if row.group != group:
            group = row.group
            lines += ["", group]
        line = f"  {row.name:<{width}}  {row.value:>{value_width}}  {_aim(row)}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def as_markdown(results: Results) -> str:
    """The same for the documents."""
    lines = [f"- {label}: {text}" for label, text in _head(results)]
    group = None
    for row in rows(results):
        if row.group != group:
            group = row.group
            lines += ["", f"**{group}**", "", "| measured | figure | aim |", "|---|---:|---|"]
        lines.append(f"| {row.name} | {row.value} | {_aim(row)} |")
    return "\n".join(lines)


def write_document(path: Path, table: str, part: str = "all") -> None:
    """Replace what stands between the two markers of a document."""
    require_markers(path, part)
    begin, end = _markers(part)
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}")


def _markers(part: str) -> tuple[str, str]:
    """A part that is measured by itself has a place of its own beside the table of all."""
    if part not in OWN_PLACE:
        return BEGIN, END
    named = f"benchmarks {part}"
    return BEGIN.replace("benchmarks", named), END.replace("benchmarks", named)


def require_markers(path: Path, part: str = "all") -> None:
    """UserError, before anything is measured, when the table has no place in the document."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; --write replaces the table of an existing one.")
    text = path.read_text()
    begin, end = _markers(part)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(
            f"{path} does not say where the table goes: put the lines {begin} and {end} into it."
        )


def _head(results: Results) -> list[tuple[str, str]]:
    return [
        ("date", results.date),
        ("command", results.command),
        *results.machine.lines(),
    ]


def _aim(row: Row) -> str:
    if row.met is None:
        return row.aim
    return f"{row.aim}: {'met' if row.met else 'MISSED'}"


def _drain_rows(drained: Drained) -> list[Row]:
    workers = f"{drained.payments_workers} payments + {drained.gateway_workers} gateway"
    group = f"drain of {drained.orders:,} orders, {workers} (verified: each settled once)"
    return [
        Row(
            group,
            "from the workers' start",
            f"{drained.overall_per_s:,.0f} orders/s",
            f"at least {AIM_ORDERS_PER_S:,}",
            drained.overall_per_s >= AIM_ORDERS_PER_S,
        ),
        Row(group, "once flowing", _rate(drained.flowing_per_s)),
        Row(group, "first settlement after", f"{drained.first_settlement_s:.2f} s"),
        *_process_rows(group, drained.processes),
    ]


def _journal_rows(journal: JournalMeasured) -> list[Row]:
    group = (
        f"ledger on PostgreSQL, {journal.entries:,} entries of {journal.lines:,} lines, "
        f"{journal.writers} writers, medians of {journal.rounds} rounds"
    )
    return [
        Row(group, "journal entries", f"{journal.even_per_s:,.0f} entries/s"),
        Row(group, "peer: Core inserts of the same rows", f"{journal.core_per_s:,.0f} entries/s"),
        Row(
            group,
            "of the peer",
            f"{journal.of_core:.2f}",
            f"at least {AIM_JOURNAL_OF_CORE}",
            journal.of_core >= AIM_JOURNAL_OF_CORE,
        ),
        Row(group, "one merchant has 90 %", f"{journal.hot_per_s:,.0f} entries/s"),
        Row(
            group,
            "of evenly spread",
            f"{journal.hot_of_even:.2f}",
            f"at least {AIM_JOURNAL_HOT_OF_EVEN}",
            journal.hot_of_even >= AIM_JOURNAL_HOT_OF_EVEN,
        ),
        Row(group, "sealed afterwards, by one process", f"{journal.sealed_per_s:,.0f} entries/s"),
    ]


def _kill_rows(killed: Killed) -> list[Row]:
    group = (
        f"the ledger's worker killed on {killed.database} (verified: each settlement booked once, "
        "chains and balances whole)"
    )
    rows = [
        Row(group, "kills under load", f"{killed.kills}"),
        Row(group, "settlements booked", f"{killed.settlements:,}"),
        Row(group, "in aborted transactions, and not booked", f"{killed.aborted:,}"),
        Row(group, "in all", f"{killed.seconds:.0f} s"),
    ]
    if killed.restarts:
        said = f"{killed.restarts}, {killed.died} of them by SIGKILL"
        rows.insert(1, Row(group, "restarts of its server", said))
    return rows


def _reconcile_rows(done: Reconciled) -> list[Row]:
    group = (
        f"reconciliation on {done.database}: {done.sales:,} settlements and {done.rows:,} rows, "
        f"shuffled, {done.breaks:,} breaks (verified: each found)"
    )
    matching_s = done.matched_s * 1e6 / done.sales
    whole_s = done.seconds * 1e6 / done.sales
    return [
        Row(group, "rows taken in from their topic", f"{done.taken_s:,.1f} s"),
        Row(group, "both sides matched, what matches decided", f"{done.decided_s:,.1f} s"),
        Row(
            group,
            f"decisions published, {done.entries:,} entries booked",
            f"{done.booked_s:,.1f} s",
        ),
        Row(group, "books held against the settlements, breaks published", f"{done.kept_s:,.1f} s"),
        Row(
            group,
            "reconciled alone, of a million a side: matched, each break found, nothing booked",
            f"{matching_s:,.1f} s",
            f"below {AIM_RECONCILE_S} s",
            matching_s < AIM_RECONCILE_S,
        ),
        Row(
            group,
            "the whole run, of a million a side: an entry booked for each row besides",
            f"{whole_s:,.1f} s",
            f"below {AIM_RECONCILE_S} s",
            whole_s < AIM_RECONCILE_S,
        ),
        Row(
            group,
            "memory (peak)",
            f"{done.peak_mib:,.0f} MiB",
            f"below {AIM_RECONCILE_MIB} MiB",
            done.peak_mib < AIM_RECONCILE_MIB,
        ),
    ]


def _peer_rows(peer: PeerDrained) -> list[Row]:
    group = f"peer: three bare loops, {peer.codec}, transactions of up to {peer.batch_max:,}"
    return [
        Row(group, "from the loops' start", f"{peer.overall_per_s:,.0f} orders/s"),
        Row(group, "once flowing", _rate(peer.flowing_per_s)),
        *_process_rows(group, peer.processes),
    ]


def _process_rows(group: str, processes: Sequence[ProcessCost]) -> list[Row]:
    return [
        Row(
            group,
            f"{process.name}: CPU an order, memory (peak)",
            f"{process.cpu_us_per_order:,.0f} µs, {process.rss_mib:,.0f} MiB "
            f"({process.peak_rss_mib:,.0f})",
        )
        for process in processes
    ]


def _latency_rows(latency: Latency) -> list[Row]:
    over = f"over {latency.partitions} partitions"
    group = (
        f"latency at {latency.rate_per_s:,.0f} orders/s {over} for {latency.seconds:.0f} s, "
        f"after {latency.warm_up_s:.0f} s of warm-up"
    )
    lone = f"latency of a lone order {over} ({latency.lone_seen.count} times)"
    return [
        *_percentile_rows(group, "order append → settlement append", latency.append, aimed=False),
        *_percentile_rows(group, "order append → seen committed", latency.seen, aimed=True),
        Row(group, "generator behind its schedule, max", _ms(latency.generator_late_ms_max)),
        *_percentile_rows(lone, "order append → settlement append", latency.lone_append),
        *_percentile_rows(lone, "order append → seen committed", latency.lone_seen),
    ]


def _outage_rows(outage: OutageSeen) -> list[Row]:
    group = (
        f"one of two gateways hangs for {outage.outage_s:.0f} s at {outage.rate_per_s:,.0f} "
        "orders/s (verified: each settled once)"
    )
    before = outage.others_before
    return [
        Row(group, "before: order append → settlement append, p50", _ms(outage.normal.p50)),
        Row(group, "before: p99", _ms(outage.normal.p99)),
        Row(group, "new orders go elsewhere after", f"{outage.open_after_s:.1f} s"),
        Row(group, "orders sent to it until then", f"{outage.sent_before:,}"),
        Row(
            group,
            "orders sent to it later, as trials",
            f"{outage.sent_after:,} of {outage.ordered_after:,}",
            f"at most {100 * AIM_OUTAGE_TRIALS_SHARE:.0f} %",
            outage.trials_share <= AIM_OUTAGE_TRIALS_SHARE,
        ),
        Row(group, "others until then, p99", "none" if before is None else _ms(before.p99)),
        Row(group, "others from then on, p50", _ms(outage.others.p50)),
        Row(
            group,
            "others from then on, p99",
            f"{_ms(outage.others.p99)}, {outage.p99_ratio:.2f} times",
            f"at most {AIM_OUTAGE_P99_RATIO:.0f} times",
            outage.p99_ratio <= AIM_OUTAGE_P99_RATIO,
        ),
        Row(
            group,
            "orders without an outcome when it was back, about",
            f"{outage.waiting_at_return:,}",
        ),
        Row(
            group,
            "others once it was back, p99",
            "none" if outage.others_back is None else _ms(outage.others_back.p99),
        ),
        Row(group, "of its orders, charged at the other gateway", f"{outage.moved:,}"),
        Row(
            group,
            "orders charged more than once, by both gateways' books",
            f"{outage.charged_twice:,}",
            "none",
            outage.charged_twice == 0,
        ),
        Row(group, "the last of its orders resolved after", f"{outage.resolved_s:.1f} s"),
    ]


def _percentile_rows(
    group: str, what: str, found: Percentiles, *, aimed: bool = False
) -> list[Row]:
    aims = {"p50": AIM_P50_MS, "p99": AIM_P99_MS} if aimed else {}
    made = []
    for name in ("p50", "p95", "p99", "max"):
        value: float = getattr(found, name)
        aim = aims.get(name)
        made.append(
            Row(
                group,
                f"{what}, {name}",
                _ms(value),
                f"below {aim} ms" if aim is not None else "",
                value < aim if aim is not None else None,
            )
        )
    return made


def _cost_row(group: str, cost: CallCost) -> Row:
    size = f" ({cost.bytes} bytes)" if cost.bytes is not None else ""
    peer = f" (fastavro alone {cost.fastavro_us:.2f})" if cost.fastavro_us is not None else ""
    return Row(group, cost.name + size, f"{cost.us:.2f} µs{peer}")


def _rate(per_s: float | None) -> str:
    return "too short to say" if per_s is None else f"{per_s:,.0f} orders/s"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"
