"""The whole proof in its order, and its document."""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.books.agreement import (
    Agreement,
    agree,
    audit_beside,
    books_verified,
    breaks_of,
    broken,
    due_day,
    reconciler_of,
)
from benchmarks.books.carried import PARTS, RATES, Carried, Say, carried
from benchmarks.books.damaged_gateway import damage_gateway
from benchmarks.books.damaged_ledger import damage_ledger
from benchmarks.books.damaged_reports import damaged_reports
from benchmarks.books.findings import (
    CHECKS,
    LEDGER_VERIFY,
    RECONCILE,
    VERIFY,
    Damage,
    compare,
    compare_counts,
)
from benchmarks.machine import Machine
from pipeline.demo import PACE
from pipeline.domain.money import format_amount
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.gateways.simulator.faults import DEFAULT_FAULTS
from pipeline.interrupted_queries import heard_in_queries
from pipeline.ledger.database import open_ledger

# Of each kind of damage to rows.
EACH = 3
# Some 40 MiB: between two pieces of a copy a signal is heard.
COPIED_PAGES = 10_000


@dataclass(frozen=True)
class Proof:
    """``seconds`` from nothing to the last check; ``flow_s`` of them until all was booked."""

    orders: int
    commands: int
    disputes: int
    seed: int
    flow_s: float
    seconds: float
    agreement: Agreement
    damages: tuple[Damage, ...]


def prove(
    orders: int,
    say: Say,
    *,
    seed: int,
    each: int = EACH,
    folder: Path | None = None,
    faults: str = "",
    parts: int = PARTS,
    partitions: int = PACE["partitions"],
) -> Proof:
    """WrongRun when undamaged books do not agree, or a damage is not found by name at its place."""
    began_s = time.monotonic()
    draw = random.Random(seed)
    with (
        heard_in_queries(),
        tempfile.TemporaryDirectory(prefix="paystream-books-", dir=folder) as name,
        carried(
            orders, Path(name), say, seed=seed, faults=faults, parts=parts, partitions=partitions
        ) as on,
    ):
        flow_s = time.monotonic() - began_s
        agreement = agree(on, say)
        copy = _copy(Path(name) / "ledger.sqlite", "ledger-damaged.sqlite")
        damages = _damaged_books(on, copy, draw, each, say)
        damages += damaged_reports(on, draw, each, say)
        return Proof(
            on.orders, on.commands, on.disputes.opened, seed, flow_s, time.monotonic() - began_s,
            agreement, tuple(damages),
        )  # fmt: skip


def _damaged_books(
    on: Carried, file: Path, draw: random.Random, each: int, say: Say
) -> list[Damage]:
    """Damage a copy of the ledger and one of the gateway's books, and ask every check again."""
    gateway = _copy(on.flow.simulator.books, "gateway-damaged.sqlite")
    damages = damage_ledger(file, draw, each) + damage_gateway(gateway, draw, each)
    say(f"Asking every check about {len(damages)} damages in the ledger and the gateway's books")
    url = f"sqlite:///{file}"
    engine = open_ledger(url)
    simulator = start_simulator(gateway, faults="none")
    try:
        with audit_beside(on, url, simulator.url) as audited:
            found = books_verified(engine).damages
            compare(LEDGER_VERIFY, damages, ((each_.name, each_.place) for each_ in found))
            report = audited.result()
        compare_counts(VERIFY, damages, {f.name: f.count for f in broken(report)})
        reconciler_of(on, on.settings.catalogue(), engine).run(as_of=due_day(on))
        compare(RECONCILE, damages, ((b.kind, b.subject) for b in breaks_of(engine)))
    finally:
        stop_simulator(simulator)
        engine.dispose()
    return damages


def _copy(file: Path, name: str) -> Path:
    """As of one moment, beside its writers."""
    to = file.with_name(name)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as target:
        # Held to the end: a copy in pieces begins anew with what is written meanwhile.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master")
        source.backup(target, pages=COPIED_PAGES, progress=lambda *_pages: None)
    return to


def as_markdown(proof: Proof, command: str, machine: Machine) -> str:
    """What the documents say of a run."""
    a = proof.agreement
    percent = 100 * sum(rate for kind, rate in RATES.items() if kind in DEFAULT_FAULTS)
    currencies = sorted({c for _, places in a.sums for _, sums in places for c in sums})
    lines = [
        f"`{command}`, {machine.cores} cores ({machine.cpu}), load before "
        f"{machine.load_1_min:.2f}:",
        "",
        f"{proof.orders:,} orders, {proof.commands:,} refunds and credits, {proof.disputes:,} "
        f"disputes and {a.paid_out.payouts} payouts to merchants ({a.paid_out.returned} of them "
        f"sent back), faults of the simulator in {percent:.1f} % of calls and declines besides "
        f"(seed {proof.seed}), {a.rows:,} rows of reports, {a.bank_lines} lines of the bank, "
        f"{a.entries:,} journal entries; {proof.seconds:.0f} s, {proof.flow_s:.0f} s of "
        "them for the flow. `paystream ledger verify`, `reconcile run` and `verify` found nothing.",
        "",
        "| sum | where | " + " | ".join(currencies) + " |",
        "|---|---|" + "---:|" * len(currencies),
    ]
    for what, places in a.sums:
        for n, (where, sums) in enumerate(places):
            shown = (format_amount(sums.get(c, 0), c).removeprefix(f"{c} ") for c in currencies)
            lines.append(f"| {'' if n else what} | {where} | " + " | ".join(shown) + " |")
    lines += [
        "",
        f"Then {len(proof.damages)} rows were damaged. Each check found exactly this and nothing "
        "else:",
        "",
        "| damage | rows | for example | found by |",
        "|---|---:|---|---|",
    ]
    for kind, of_kind in _by_kind(proof.damages).items():
        lines.append(f"| {kind} | {len(of_kind)} | {of_kind[0].place} | {_found_by(of_kind)} |")
    return "\n".join(lines)


def _by_kind(damages: Sequence[Damage]) -> dict[str, list[Damage]]:
    found: dict[str, list[Damage]] = {}
    for damage in damages:
        found.setdefault(damage.kind, []).append(damage)
    return found


def _found_by(damages: Sequence[Damage]) -> str:
    names: dict[str, set[str]] = {}
    for damage in damages:
        for check, found in damage.found.items():
            names.setdefault(check, set()).update(name for name, _ in found)
    return "; ".join(
        f"`{check}`: {', '.join(sorted(names[check]))}" for check in CHECKS if check in names
    )
