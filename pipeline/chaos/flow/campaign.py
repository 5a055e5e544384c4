"""One run: start everything, let the faults happen under load, heal, wait for rest, judge."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.audit.report import Report as AuditReport
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.audit.verify import Sources, verify, worth_waiting
from pipeline.chaos.counted import counted
from pipeline.chaos.flow.anomalies import Anomalies
from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.draw import KINDS, MARKERS_APART, UPGRADE, Kind, draw
from pipeline.chaos.flow.judge import from_audit, from_exits, judge
from pipeline.chaos.flow.load import Load
from pipeline.chaos.flow.report import Report
from pipeline.chaos.flow.rounds import Rounds
from pipeline.chaos.versions import kafka_version, librdkafka_version
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.errors import UserError
from pipeline.runtime.cluster import groups_joined

T = TypeVar("T")

FOLDER_PREFIX = "paystream-chaos-"
JOIN_S_MAX = 90.0
TURN_S = 0.05
# A run of this length earns back what the brokers' second compiler costs.
LONG_S = 600.0
# Rest comes within half a minute; a flow in which nothing has moved for this long will not.
STILL_S_MAX = 90.0
# One audit that goes on reading costs less than several: a look at a long run takes minutes.
AUDIT_WAIT_S = 3_600.0


@dataclass(frozen=True)
class Options:
    """``every_s``: between the begins of two faults, on average. ``command`` is what made it."""

    command: str
    seed: int
    seconds: float
    rate_per_s: float
    every_s: float
    brokers: int
    partitions: int
    place: Path
    keep: bool = False
    kinds: Sequence[Kind] = KINDS


def run_campaign(options: Options, say: Callable[[str], None]) -> tuple[Report, Path | None]:
    """The report, and the folder with all logs where it was kept: unless the flow was whole.

    UserError when it cannot run here, or what it starts does not start.
    """
    if sys.platform != "linux":
        raise UserError("a chaos run freezes and limits processes by means that only Linux has.")
    with _work_folder(options.place) as (folder, keep):
        report = _carry_out(options, folder, say)
        if options.keep or report.exit_code != 0:
            keep()
            return report, folder
        return report, None


def _carry_out(options: Options, folder: Path, say: Callable[[str], None]) -> Report:
    begun_s = time.monotonic()
    report = _new_report(options)
    kinds = [kind for kind in options.kinds if kind.needs <= options.brokers]
    drawn = draw(options.seed, options.seconds, every_s=options.every_s, kinds=kinds)
    with Cluster(
        folder,
        brokers=options.brokers,
        partitions=options.partitions,
        seed=options.seed,
        say=say,
        jvm_flags=SHORT_LIVED if options.seconds < LONG_S else (),
        older=any(one.kind == UPGRADE for one in drawn),
        holds_markers=any(one.kind == MARKERS_APART for one in drawn),
    ) as cluster:
        say("Starting the workers")
        cluster.start_nodes()
        _wait_until_joined(cluster)
        load = Load(
            cluster.settings,
            rate_per_s=options.rate_per_s,
            seconds=options.seconds,
            seed=options.seed,
        )
        say(f"{counted(len(drawn), 'faults')} in {options.seconds:.0f} s")
        load.start()
        try:
            rounds = Rounds(cluster, load, drawn, folder / "faults.jsonl", say)
            rounds.run()
        finally:
            load.stop()
        load_ended_s = time.monotonic()
        report.load_s = load_ended_s - rounds.begun_s
        say("Every fault has ended; waiting for rest")
        audited, report.at_rest = _in_background(cluster, lambda: _rest(cluster, load, say))
        report.rest_s = time.monotonic() - load_ended_s
        report.faults = rounds.done()
        report.orders_published = load.published
        report.orders_acknowledged = len(load.acknowledged)
        report.orders_given_up = load.given_up
        report.ends_injured = len(cluster.proxy.injected)
        if report.at_rest:
            cluster.stop_nodes()
            anomalies = judge(cluster, load, audited, say)
        else:
            cluster.tell_where_they_stand()
            anomalies = Anomalies()
            from_audit(audited, anomalies)
            from_exits(cluster.exits - cluster.excused, cluster.gave_up, anomalies)
        report.stuck_s_max = cluster.watch.stuck_s_max
        report.anomalies = anomalies.found
        report.looked_at = anomalies.looked_at
        report.pending = [f"{f.name} ({f.count}): {f.example}" for f in audited.pending]
        report.exits = dict(cluster.exits)
        report.audit = audited.summary
    report.took_s = time.monotonic() - begun_s
    return report


def _new_report(options: Options) -> Report:
    return Report(
        command=options.command,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        seed=options.seed,
        brokers=options.brokers,
        partitions=options.partitions,
        rate_per_s=options.rate_per_s,
        load_s=options.seconds,
        kafka=kafka_version(),
        librdkafka=librdkafka_version(),
    )


def _wait_until_joined(cluster: Cluster) -> None:
    catalogue = cluster.settings.catalogue()
    wanted = {catalogue.group(stage): len(cluster.nodes) for stage in ("payments", "gateway")}
    deadline_s = time.monotonic() + JOIN_S_MAX
    for missing in groups_joined(cluster.settings.bootstrap_servers, wanted):
        if not missing:
            return
        if time.monotonic() > deadline_s:
            raise UserError(f"the workers of {', '.join(missing)} did not join their groups")
        cluster.tick()
        time.sleep(0.1)


def _in_background(cluster: Cluster, work: Callable[[], T]) -> T:
    """Do it while this thread, which started the workers, keeps them alive.

    In a daemon's thread: a Ctrl-C does not wait for a flow that may never come to rest.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="chaos-rest", daemon=True).start()
    while not done.done():
        cluster.tick()
        time.sleep(TURN_S)
    return done.result()


def _rest(cluster: Cluster, load: Load, say: Callable[[str], None]) -> tuple[AuditReport, bool]:
    """The audit's last report, and whether nothing is on its way any more but for a person."""
    load.finish()
    s = cluster.settings
    sources = Sources(
        s.bootstrap_servers, s.topic_prefix, ledger_url=s.books_url(), gateway_urls=s.gateway_urls()
    )
    movement = _Movement()

    def told(report: AuditReport) -> None:
        say("waiting: " + ", ".join(f"{f.name} ({f.count:,})" for f in report.pending))
        movement.look(report)

    away_s = 0.0
    while True:
        look_s = time.monotonic()
        try:
            report = verify(sources, wait_s=AUDIT_WAIT_S, on_round=told)
            away_s = 0.0
            if not worth_waiting(_without_broken(report)):
                return report, True
            movement.look(report)
        except _Still as still:
            return still.report, False
        except AuditUnavailable as error:
            # Counted from here: a first look at a long run takes minutes by itself.
            away_s = away_s or time.monotonic()
            if time.monotonic() - away_s > STILL_S_MAX:
                raise UserError(f"the flow cannot be judged: {error}") from error
        # Once something is broken each look begins anew; half of the time is the flow's at least.
        time.sleep(max(2.0, min(30.0, time.monotonic() - look_s)))


class _Still(Exception):
    """Nothing has moved for so long that nothing will."""

    def __init__(self, report: AuditReport) -> None:
        super().__init__()
        self.report = report


class _Movement:
    """Whether one look of the audit differs from the one before."""

    def __init__(self) -> None:
        self._last: dict[str, Any] | None = None
        self._moved_s = time.monotonic()

    def look(self, report: AuditReport) -> None:
        """_Still when the flow has stood for too long."""
        # Its own time and memory are different each time.
        now = {name: what for name, what in report.summary.items() if name != "audit"}
        if now != self._last:
            self._last, self._moved_s = now, time.monotonic()
        elif time.monotonic() - self._moved_s > STILL_S_MAX:
            raise _Still(report)


def _without_broken(report: AuditReport) -> AuditReport:
    """What is broken makes the audit return at once; rest is waited for all the same."""
    return AuditReport(report.pending, report.summary)


@contextmanager
def _work_folder(place: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder that goes with the run, unless it is kept. What breaks off a run keeps it."""
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=place))
    # PostgreSQL refuses to be root, and its user has to reach its data.
    folder.chmod(0o711)
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    try:
        yield folder, keep
    except UserError as error:
        kept = True
        raise UserError(f"{error} The logs are in {folder}.") from error
    except Exception:
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
