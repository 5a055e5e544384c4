"""The main job on real input, from nothing: what ``paystream demo`` does.

A fresh broker, fresh topics and fresh books in a folder of their own; a file of orders is
published by an ``OrderPublisher``, what its cancellations give back by a ``CommandPublisher``;
real workers carry both through payments, gateway and ledger, and a ``SettlementSubscriber`` follows
them downstream. At the end an audit that shares no code with
any of them says whether every guarantee held.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.audit.report import Report
from pipeline.config import Settings, load_settings
from pipeline.domain.model import Order
from pipeline.domain.money import format_amount
from pipeline.embedded.cache import write_atomically
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.embedded.processes import ProcessIdentity, is_alive, this_process
from pipeline.errors import UserError
from pipeline.gateways.simulator.faults import RATED, FaultPlan
from pipeline.local import LocalFlow
from pipeline.loopback import open_url
from pipeline.processors.order import differing_from
from producers.cancellations import GivenBack, given_back
from producers.invoice_csv import InvoiceFile
from producers.order_file import OrderFile

if TYPE_CHECKING:
    from producers.order_publisher import OrderPublisher

# The first workers, their group joins and the slowest wait of the default faults take about 20 s;
# a file of a million orders takes minutes. Progress is what counts: give up when none is made.
STALLED_S_MAX = 60.0
PROGRESS_INTERVAL_S = 1.0
# After the last visible step the audit itself may still find something on its way.
AUDIT_WAIT_S = 30.0

FOLDER_PREFIX = "paystream-demo-"
# In a run's folder: whose it is, for a later run to tell whether that one was killed.
OWNER_FILE = "owner.json"

# The demo's payments must not wait for minutes: on one machine clocks agree, calls are local, and
# tiers of two seconds show a retry and an inquiry within the demo's patience.
PACE: dict[str, Any] = {
    "partitions": 6,
    "retry_delay_ms": 1_000,
    "inquiry_delay_ms": 1_500,
    "call_timeout_ms": 2_000,
    "gateway_grace_ms": 500,
    "send_within_ms": 20_000,
    # Half a minute of questions; then the payment waits for a person, and the demo says so.
    "inquiry_max": 20,
    "clock_skew_ms": 100,
    "metrics_port": 0,
    "ledger_url": "",
    "topic_prefix": "",
    "schema_registry_url": "",
}


@dataclass
class Demo:
    """One run. ``faults`` is none, default, or the path of a plan for the simulator."""

    orders_file: Path
    found: OrderFile
    faults: str
    say: Callable[[str], None]
    settled: Counter[str] = field(default_factory=Counter)
    settled_count: int = 0
    given: GivenBack = field(default_factory=GivenBack)

    def __post_init__(self) -> None:
        if isinstance(self.found, InvoiceFile):
            self.given = given_back(self.found, now_ms=int(time.time() * 1000))

    def run(self) -> int:
        """Do it all; 0 when every guarantee held, 1 otherwise."""
        began_s = time.monotonic()
        with _work_folder() as folder:
            settings = load_settings(**PACE, state_dir=folder)
            flow = LocalFlow(
                settings,
                {"payments": 1, "gateway": 1, "ledger": 1},
                faults=self.faults,
                log_file=folder / "workers.log",
                say=self.say,
                # A broker of half a minute is over before the second compiler would pay.
                jvm_flags=SHORT_LIVED,
            )
            with flow:
                try:
                    report, faults = self._carry_through(flow)
                except Exception:
                    _show_log(folder / "workers.log", self.say)
                    raise
        self.say("")
        for line in summary(self, report, faults, time.monotonic() - began_s):
            self.say(line)
        return 0 if self.held(report) else 1

    def held(self, report: Report) -> bool:
        """Whether every guarantee held. A payment whose outcome nobody could tell is a named wait:
        the guarantee is that it is neither guessed nor lost."""
        waits = all(finding.name == "waits_for_a_person" for finding in report.pending)
        return not report.broken and waits and not self.wrong(report)

    def _carry_through(self, flow: LocalFlow) -> tuple[Report, dict[str, int]]:
        from pipeline.audit.verify import Sources, verify
        from producers.command_publisher import CommandPublisher
        from producers.order_publisher import OrderPublisher

        s = flow.settings
        stop = threading.Event()
        follower = threading.Thread(target=self._follow, args=(s, stop), daemon=True)
        follower.start()
        try:
            # Otherwise the latencies would be those of workers that are still starting.
            flow.wait_until_joined()
            with OrderPublisher(
                s.bootstrap_servers,
                topic=s.catalogue().name("orders"),
                # The broker stops before this process ends; its loss is not worth a line.
                config={"log_level": 0},
            ) as to:
                self.publish(to, flow.tick)
            self.say(f"Published {len(self.found.orders)} orders of {self.orders_file.name}")
            if self.given.commands:
                with CommandPublisher(
                    s.bootstrap_servers,
                    topic=s.catalogue().name("payment-commands"),
                    config={"log_level": 0},
                ) as asks:
                    for command in self.given.commands:
                        asks.publish(command)
                self.say(
                    f"Published {len(self.given.refunds)} refunds and "
                    f"{len(self.given.credits)} credits of its cancellations"
                )
            self._watch(flow)
            report = verify(
                Sources(
                    s.bootstrap_servers,
                    s.topic_prefix,
                    ledger_url=s.books_url(),
                    gateway_urls=(s.gateway_url,),
                ),
                wait_s=AUDIT_WAIT_S,
            )
            # The subscriber is downstream of it all: let it see what the audit saw.
            expected = report.summary["records"]["settlements"]
            deadline = time.monotonic() + AUDIT_WAIT_S
            while self.settled_count < expected and time.monotonic() < deadline:
                time.sleep(0.05)
            with open_url(f"{s.gateway_url}/v1/faults", timeout=10) as answer:
                said = json.load(answer)
            return report, said["faults"]
        finally:
            stop.set()
            follower.join(10.0)

    def publish(self, to: OrderPublisher, tick: Callable[[], None]) -> None:
        """Publish all; an order that cannot be a record is named by its line and expected nowhere.

        UserError when none is left.
        """
        from producers.order_publisher import InvalidOrder

        found = self.found
        taken: list[int] = []
        for index, order in enumerate(found.orders):
            try:
                to.publish(order)
                taken.append(index)
            except InvalidOrder as error:
                self.say(f"{self.orders_file}:{found.line_numbers[index]}: {error}")
            if index % 1_000 == 0:
                tick()
        if not taken:
            raise UserError(f"{self.orders_file} holds no order that can be published.")
        self.found = replace(
            found,
            orders=tuple(found.orders[index] for index in taken),
            line_numbers=tuple(found.line_numbers[index] for index in taken),
            left_out=found.left_out + len(found.orders) - len(taken),
        )

    def _follow(self, settings: Settings, stop: threading.Event) -> None:
        """A downstream system: counts what it may ship."""
        from consumers.settlement_subscriber import SettlementSubscriber

        seen: set[str] = set()
        with SettlementSubscriber(
            settings.bootstrap_servers,
            f"{settings.topic_prefix}demo-fulfilment",
            topic=settings.catalogue().name("settlements"),
            start="earliest",
            config={"log_level": 0},
        ) as settlements:
            while not stop.is_set():
                found = settlements.poll(0.2)
                if found is None:
                    continue
                settlement, _ = found
                if settlement.settlement_id not in seen:
                    seen.add(settlement.settlement_id)
                    self.settled[settlement.currency] += settlement.amount_minor
                    self.settled_count += 1
            settlements.commit()

    def _watch(self, flow: LocalFlow) -> None:
        """Show progress by stage until all orders have an outcome and all settled is booked."""
        from pipeline.observability.progress import progress

        running = flow.running
        if running is None:
            return
        # The same order twice in the file is one payment.
        published = len({(order.merchant_id, order.order_id) for order in self.found.orders})
        before: tuple[object, ...] = ()
        moved_s = shown_s = time.monotonic()
        while True:
            flow.tick()
            at = progress(running.supervisor.metrics_dir)
            now_s = time.monotonic()
            if (at, self.settled_count) != before:
                before, moved_s = (at, self.settled_count), now_s
            finished = (
                at.ended + at.dead >= published
                and at.answered >= len(self.given.commands)
                and at.posted >= at.moved
            )
            if finished or now_s - shown_s >= PROGRESS_INTERVAL_S:
                shown_s = now_s
                self.say(
                    f"orders {at.taken:>6,}/{published:,}   gateway calls {at.calls:>6,}   "
                    f"captured {at.captured:>6,}   ended {at.ended:>6,}   "
                    f"settlements seen {self.settled_count:>6,}   booked {at.posted:>6,}"
                )
            if finished:
                return
            if now_s - moved_s > STALLED_S_MAX:
                self.say(f"Nothing has moved for {STALLED_S_MAX:.0f} s; judging what is there")
                return
            time.sleep(0.2)

    def wrong(self, report: Report) -> list[str]:
        """What this run knows beyond the audit: what it published and what a subscriber saw."""
        wrong = []
        records = report.summary["records"]
        if records["orders"] != len(self.found.orders):
            wrong.append(f"{len(self.found.orders)} orders published, {records['orders']} read")
        commands = sum(report.summary["commands"]["by_type"].values())
        if commands != len(self.given.commands):
            wrong.append(f"{len(self.given.commands)} commands published, {commands} read")
        if not _books_agree(report.summary):
            wrong.append("the gateway's books and the settlements differ")
        if dict(self.settled) != {k: v for k, v in report.summary["settled_minor"].items() if v}:
            wrong.append("the subscriber saw other settlements than the audit")
        return wrong


def _moved(summary: dict[str, Any], *kinds: str) -> dict[str, int]:
    """What the settlements of some kinds come to, by currency."""
    sums: Counter[str] = Counter()
    for kind in kinds:
        for currency, amount_minor in (
            summary["settlements"].get(kind, _NONE)["amount_minor"].items()
        ):
            sums[currency] += amount_minor
    return {currency: amount_minor for currency, amount_minor in sums.items() if amount_minor}


_NONE: dict[str, Any] = {"count": 0, "amount_minor": {}}


def _books_agree(summary: dict[str, Any]) -> bool:
    """Whether the gateway charged and refunded what was settled. No gateway knows of credits."""
    gateway = summary.get("gateway")
    return gateway is None or (
        gateway["charged_minor"] == _moved(summary, "capture")
        and {code: -minor for code, minor in gateway["refunded_minor"].items() if minor}
        == _moved(summary, "refund", "refund_failed")
    )


def _repeats(orders: Sequence[Order]) -> int:
    """Orders that say what the first of their id has said: no payment, no rejection, no letter."""
    first: dict[tuple[str, str], Order] = {}
    for order in orders:
        first.setdefault((order.merchant_id, order.order_id), order)
    same = sum(not differing_from(first[o.merchant_id, o.order_id], o) for o in orders)
    return same - len(first)


def summary(demo: Demo, report: Report, faults: dict[str, int], seconds: float) -> Iterator[str]:
    """What happened, in the words of the people who use it."""
    s = report.summary
    payments, amounts, reasons = s["payments"], s["amount_minor"], s["reasons"]

    def row(label: str, text: str) -> str:
        # The space also where a reason is longer than the column.
        return f"{label:<35} {text}"

    def sums(by_currency: dict[str, int]) -> str:
        shown = [format_amount(minor, code) for code, minor in sorted(by_currency.items())]
        return ", ".join(shown) or "nothing"

    def why(status: str) -> Iterator[str]:
        for reason, count in reasons.get(status, {}).items():
            yield row(f"  {reason}", f"{count:,}")

    ordered: Counter[str] = Counter()
    for order in demo.found.orders:
        ordered[order.currency] += order.amount_minor
    cancellations = getattr(demo.found, "cancellations", ())
    yield row("orders read", f"{len(demo.found.orders):,}, {sums(ordered)}")
    if repeats := _repeats(demo.found.orders):
        yield row("  of these said once more", f"{repeats:,}")
    if demo.found.bad_line_count:
        yield row("  bad lines", f"{demo.found.bad_line_count:,}")
    if demo.found.left_out:
        yield row("  orders left out", f"{demo.found.left_out:,}")
    if cancellations:
        back = sum(c.amount_minor for c in cancellations)
        lines = sum(len(c.lines) for c in cancellations)
        yield row(
            "cancellations read",
            f"{len(cancellations):,} with {lines:,} lines, {format_amount(back, 'GBP')}",
        )
    yield row("captured", f"{payments.get('captured', 0):,}, {sums(amounts.get('captured', {}))}")
    if demo.given.commands:
        for label, kind in (("refunded", "refund"), ("credits held", "credit")):
            settled = s["settlements"].get(kind, _NONE)
            back_minor = {code: -minor for code, minor in settled["amount_minor"].items()}
            yield row(label, f"{settled['count']:,}, {sums(back_minor)}")
        yield row("refunds rejected", f"{sum(s['commands']['rejected'].values()):,}")
        for rule, count in s["commands"]["rejected"].items():
            yield row(f"  {rule}", f"{count:,}")
    yield row("settled (subscriber)", f"{demo.settled_count:,}, {sums(dict(demo.settled))}")
    yield row("no payment due", f"{payments.get('no_payment_due', 0):,}")
    yield row("failed", f"{payments.get('failed', 0):,}, {sums(amounts.get('failed', {}))}")
    yield from why("failed")
    yield row("rejected", f"{payments.get('rejected', 0):,}")
    yield from why("rejected")
    waiting = {k: amounts.get(k, {}) for k in ("processing", "outcome_unknown") if payments.get(k)}
    yield row("waiting", f"{sum(payments.get(k, 0) for k in waiting):,}")
    for status, by_currency in waiting.items():
        yield row(f"  {status}", f"{payments[status]:,}, {sums(by_currency)}")
        yield from why(status)
    letters = s["dead_letters"]
    yield row("dead letters", f"{sum(letters.values()):,}")
    for cause, count in letters.items():
        yield row(f"  {cause}", f"{count:,}")
    if "ledger" in s:
        yield row("journal entries", f"{s['ledger']['entries']:,}")
        totals: Counter[str] = Counter()
        for account, by_currency in s["ledger"]["balances"].items():
            yield row(f"  {account}", sums(by_currency))
            totals.update(by_currency)
        for code, total in sorted(totals.items()):
            yield row(f"  debits less credits, {code}", format_amount(total, code))
    if "gateway" in s:
        gateway = s["gateway"]
        refunds = ""
        if gateway["refunds"]:
            refunds = f"; {gateway['refunds']:,} refunds, {sums(gateway['refunded_minor'])}"
        yield row(
            "gateway's own books",
            f"{gateway['charges']:,} charges, {sums(gateway['charged_minor'])}{refunds}: "
            + ("agree" if _books_agree(s) else "DIFFER"),
        )
    # Each kind that the plan has, also at zero: one that was never met is seen to be missing.
    rates = FaultPlan.named(demo.faults).rates
    yield row(
        "faults injected",
        ", ".join(f"{k} {faults.get(k, 0)}" for k in RATED if rates.get(k)) or "none",
    )
    latency = s["order_to_settlement_ms"]
    if latency["count"]:
        yield row(
            "order to settlement",
            f"p50 {latency['p50']:,} ms, p95 {latency['p95']:,} ms, p99 {latency['p99']:,} ms",
        )
    yield ""
    for finding in report.findings:
        yield f"{finding.severity.value} {finding.name} x{finding.count}: {finding.guarantee}"
        yield f"  e.g. {finding.example}"
    wrong = demo.wrong(report)
    yield from wrong
    held = demo.held(report)
    yield (
        f"{'Every guarantee held' if held else 'NOT WHOLE: ' + report.verdict} "
        f"({seconds:.0f} s in all)"
    )


@contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder that goes with the run; those of runs that were killed go with the next one."""
    with _turn():
        clear_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        write_atomically(folder / OWNER_FILE, json.dumps(asdict(this_process())))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _turn() -> Iterator[None]:
    """One demo at a time looks at the folders; the lock is the temporary folder's own, so that
    none is left behind. Where it has none, the demo goes on without."""
    with ExitStack() as held:
        with suppress(OSError):
            opened = os.open(tempfile.gettempdir(), os.O_RDONLY)
            held.callback(os.close, opened)
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def clear_abandoned(place: Path) -> None:
    """Remove the work folders of this user's demos whose process is gone."""
    for folder in place.glob(f"{FOLDER_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            owner = ProcessIdentity(**json.loads((folder / OWNER_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            # Not a demo's, or another one has cleared it.
            continue
        if is_alive(owner):
            continue
        # Its owner's name last: a worker that is still draining may write meanwhile, and what is
        # left is then found by the next run.
        for path in folder.iterdir():
            if path.name == OWNER_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if [path.name for path in folder.iterdir()] == [OWNER_FILE]:
            shutil.rmtree(folder, ignore_errors=True)


def _show_log(log: Path, say: Callable[[str], None]) -> None:
    """The end of the workers' log, since its folder goes with the run."""
    if log.is_file():
        lines = [x for x in log.read_text(errors="replace").splitlines() if " INFO " not in x]
        for line in lines[-20:]:
            say(f"  | {line}")


def sample_file() -> Path:
    """The orders that come with the project."""
    path = Path(__file__).resolve().parent.parent / "data" / "online-retail-2010-12-01-to-03.csv"
    if not path.is_file():
        raise UserError(
            "the sample orders are not installed with the package; run the demo in a clone of the "
            "project, or name a file with --orders."
        )
    return path
