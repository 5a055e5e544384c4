"""Measure paystream on this machine: what `make bench` runs."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from benchmarks.baseline import run_peers
from benchmarks.codec_costs import codec_costs, decision_costs
from benchmarks.drain import drain
from benchmarks.failure import WrongRun
from benchmarks.flow import FlowOptions, quiet_logs
from benchmarks.journal import measure_journal
from benchmarks.kills import measure_kills
from benchmarks.latency import measure_latency
from benchmarks.machine import describe_machine
from benchmarks.order_pool import OrderPool, make_pool
from benchmarks.outage import measure_outage
from benchmarks.reconcile import measure_reconcile
from benchmarks.report import (
    OWN_PLACE,
    Results,
    as_markdown,
    as_text,
    require_markers,
    write_document,
)
from pipeline.errors import UserError

PARTS = (
    "throughput", "latency", "memory", "baseline", "codec", "outage", "journal", "reconcile", "all",
    "books", "kills", "held-up",
)  # fmt: skip

# Latency is measured over so many partitions as well: it grows with what a transaction writes to.
FEW_PARTITIONS = 4

EXAMPLES = """\
parts:
  throughput  a backlog of orders drained through the three hops, verified
  latency     a steady pace and lone orders, from the order's append to its settlement, over the
              partitions chosen and over few
  memory      the same drain as throughput, with one payments worker: memory and CPU by process
  baseline    the peer: three bare confluent-kafka loops over the same orders
  codec       microseconds of each codec and processor; no broker
  outage      one of two gateways hangs under a steady pace: what that costs the others
  journal     the ledger on PostgreSQL beside bare inserts of the same rows, and a hot merchant
  reconcile   one whole run over a million rows of reports and a million settlements
  all         everything above, in about half an hour (the default)
  kills       the ledger's worker killed 50 times on each database, PostgreSQL restarted under it
  held-up     a gateway some of whose calls hang, in a model: how long the other's wait; no broker
  books       no measurement but a proof: whole books agree, and each damage to them is found

examples:
  python -m benchmarks --quick                       everything, small: does it work here?
  python -m benchmarks throughput --orders 400000 --payments-workers 1,2
  python -m benchmarks latency --rate 1000 --seconds 60 --json latency.json
  python -m benchmarks throughput --gateway simulator --orders 20000   with real HTTP calls
  python -m benchmarks --write docs/benchmarks.md    the table of the documentation
  python -m benchmarks reconcile --write docs/benchmarks.md    that part of it alone
  python -m benchmarks books --orders 1000           the proof of the books, short
  python -m benchmarks books --write docs/reconciliation.md
  python -m benchmarks held-up --write docs/routing.md

exit codes: 0 measured, 1 a run came out wrong (lost, doubled or changed), 2 wrong options or
something outside is missing. An aim that is missed is shown and does not change the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    signal.signal(signal.SIGTERM, _leave)
    quiet_logs()
    try:
        if options.write is not None:
            require_markers(options.write, options.part)
        command = shlex.join(["python", "-m", "benchmarks", *given])
        if options.part == "books":
            # Imported here: it takes the whole program, and the measurements a part of it.
            from benchmarks.books.proof import as_markdown as proof_as_markdown
            from benchmarks.books.proof import prove

            machine = describe_machine()
            proof = prove(options.orders, say, seed=options.seed, folder=options.dir)
            table = proof_as_markdown(proof, command, machine)
            print()
            print(table)
        elif options.part == "held-up":
            from benchmarks.held_up import as_markdown as held_up_as_markdown
            from benchmarks.held_up import measured

            # Breakers open and close by hundreds here.
            logging.getLogger("pipeline.runtime.protection").setLevel(logging.ERROR)
            table = held_up_as_markdown(measured(say, seeds=options.runs), command)
            print()
            print(table)
        else:
            results = run(options, command=command)
            print()
            print(as_text(results))
            table = as_markdown(results)
            if options.json is not None:
                options.json.write_text(json.dumps(results.as_dict(), indent=2) + "\n")
        if options.write is not None:
            write_document(options.write, table, options.part)
            print(f"\nThe table is in {options.write}.")
    except WrongRun as error:
        print(f"The run came out wrong: {error}", file=sys.stderr)
        return 1
    except (UserError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; exits with 2 and a sentence when they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, default="all", help="what to measure (default: all)")
    add("--quick", action="store_true", help="small sizes: shows that it works, not how fast")
    add(
        "--orders",
        type=_positive,
        help="orders of a drain or of books (default 200000; quick: 10000)",
    )
    add("--partitions", type=_positive, default=12, help="of every topic (default 12)")
    add(
        "--payments-workers",
        type=_positives,
        default=(1, 2),
        metavar="N[,N]",
        help="a drain with each of these numbers of payments workers (default 1,2)",
    )
    add("--gateway-workers", type=_positive, default=1, help="(default 1)")
    add(
        "--gateway",
        choices=("in-process", "simulator"),
        default="in-process",
        help="answer in the worker's memory, or by HTTP from the simulator (default in-process)",
    )
    add("--rate", type=_positive, default=500, help="orders a second of latency (default 500)")
    add("--seconds", type=_positive, help="length of the paced run (default 30; quick: 3)")
    add("--warm-up", type=_positive, help="seconds before it (default 60; quick: 3)")
    add("--entries", type=_positive, help="entries of a journal run (default 60000; quick: 4000)")
    add("--rows", type=_positive, help="a side of reconcile (default 1000000; quick: 10000)")
    add("--postgres-rows", type=_positive, help="the same on PostgreSQL (default: as --rows)")
    add("--lone", type=_positive, help="lone orders (default 30; quick: 5)")
    add("--outage-rate", type=_positive, default=200, help="orders a second (default 200)")
    add("--outage-seconds", type=_positive, help="of the outage (default 120; quick: 8)")
    add("--heap-mb", type=_positive, default=512, help="heap of the broker (default 512)")
    add("--kills", type=_positive, help="of the ledger's worker (default 50; quick: 3)")
    add("--seed", type=int, default=7, help="draws what is damaged, and the moments of kills")
    add("--dir", type=Path, metavar="FOLDER", help="where the brokers' data goes (default: temp)")
    add("--json", type=Path, metavar="FILE", help="write every figure as JSON as well")
    add("--write", type=Path, metavar="DOCUMENT", help="replace the table between its markers")
    options = parser.parse_args(arguments)
    written = ("all", "books", "kills", "held-up", *OWN_PLACE)
    whole = options.part in written and not options.quick
    if options.write is not None and not whole:
        parser.error(
            "--write needs a whole run: without --quick, and of no part but books, kills, held-up, "
            "latency, reconcile or outage"
        )
    if options.json is not None and options.part in ("books", "held-up"):
        parser.error(f"--json keeps figures, and {options.part} measures none on this machine")
    if options.dir is not None and not options.dir.is_dir():
        parser.error(f"--dir {options.dir} is not a folder")
    quick = options.quick
    options.orders = options.orders or (10_000 if quick else 200_000)
    options.seconds = options.seconds or (3 if quick else 30)
    options.warm_up = options.warm_up or (3 if quick else 60)
    options.lone = options.lone or (5 if quick else 30)
    options.outage_seconds = options.outage_seconds or (8 if quick else 120)
    options.calls = 2_000 if quick else 20_000
    options.entries = options.entries or (4_000 if quick else 60_000)
    options.rounds = 1 if quick else 3
    options.runs = 1 if quick else 10
    options.kills = options.kills or (3 if quick else 50)
    options.rows = options.rows or (10_000 if quick else 1_000_000)
    return options


def run(options: argparse.Namespace, *, command: str) -> Results:
    """Measure what was asked for, saying what is under way."""
    part = options.part
    flow = FlowOptions(
        partitions=options.partitions,
        gateway_workers=options.gateway_workers,
        gateway=options.gateway,
        broker_heap_mb=options.heap_mb,
        folder=options.dir,
    )
    results = Results(
        command=command,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=describe_machine(),
    )
    if results.machine.busy:
        say(
            f"The load average is {results.machine.load_1_min:.1f} on {results.machine.cores} "
            "cores: other work is under way, and the figures will be too low."
        )
    if part in ("codec", "all"):
        say("Codec and processors")
        results.codec = codec_costs(options.calls)
        results.decisions = decision_costs(options.calls)
    if part in ("journal", "all"):
        results.journal = measure_journal(options.entries, options.rounds, say, folder=options.dir)
    if part in ("reconcile", "all"):
        results.reconciled = measure_reconcile(
            options.rows, say, folder=options.dir, postgres_sales=options.postgres_rows
        )
    if part == "kills":
        results.killed = measure_kills(options.kills, say, seed=options.seed, folder=options.dir)
    pool = OrderPool((), {})
    if part in ("throughput", "memory", "baseline", "all"):
        say(f"Preparing {options.orders:,} orders")
        pool = make_pool(options.orders)
    if part in ("throughput", "memory", "all"):
        counts = (1,) if part == "memory" else options.payments_workers
        results.drains = [drain(pool, flow, payments_workers=n, say=say) for n in counts]
    if part in ("baseline", "all"):
        results.peers = run_peers(pool, flow, say)
    if part in ("latency", "all"):
        results.latencies = [
            measure_latency(
                replace(flow, partitions=partitions),
                rate_per_s=options.rate,
                warm_up_s=options.warm_up,
                seconds=options.seconds,
                lone=options.lone,
                say=say,
            )
            for partitions in sorted({FEW_PARTITIONS, options.partitions}, reverse=True)
        ]
    if part in ("outage", "all"):
        results.outage = measure_outage(
            flow,
            rate_per_s=options.outage_rate,
            warm_up_s=options.warm_up,
            normal_s=options.seconds,
            outage_s=options.outage_seconds,
            say=say,
        )
    return results


def say(line: str) -> None:
    """Progress goes to standard error, so that the table alone can be kept."""
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _leave(_signal: int, _frame: object) -> NoReturn:
    """A SIGTERM ends like a Ctrl-C: what was started is stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
