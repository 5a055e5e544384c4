"""The entry point of a worker process: ``python -m pipeline.worker NAME``.

The name is for whoever lists processes. It reads its WorkerSpec as JSON from standard input, drains
on SIGTERM, ignores SIGINT (a Ctrl-C reaches the supervisor, which asks its workers to drain), and
drains as well when its supervisor dies. Nobody is left then who would kill what does not end, so it
leaves by itself (exit code 1) where its client waits for a broker that died with the supervisor. On
SIGUSR1 it writes to standard error where each of its threads stands. Exit codes: 0 drained, 2
something outside is wrong (the sentence is in ``last-error.txt`` of the slot's directory), 3 the
transactional producer or the group's member is fenced or broken, 70 a broken invariant.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.domain.invariant import InvariantBroken
from pipeline.errors import UserError
from pipeline.kafka_access import use_access
from pipeline.runtime.worker_spec import (
    EXIT_BUG,
    EXIT_LANE_FATAL,
    EXIT_NO_MEMORY,
    EXIT_USER_ERROR,
    LAST_ERROR,
    SUPERVISOR_PID,
    WorkerSpec,
    configure_logging,
    decode_spec,
)
from pipeline.signal_event import SignalEvent

_log = logging.getLogger("paystream.worker")

_PR_SET_PDEATHSIG = 1
# A worker that was asked to drain leaves after this, wherever it is: later than its supervisor
# would kill it, for the case that there is none any more.
OVERDUE_S = 50.0
# Between two looks for a ledger's database that is away.
LEDGER_PAUSE_S_MIN, LEDGER_PAUSE_S_MAX = 0.2, 5.0


def main() -> int:
    spec = decode_spec(sys.stdin.buffer.read())
    stop = SignalEvent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _asked_to_drain(stop))
    # Where each thread stands, into its log: also of a worker that answers nothing any more.
    faulthandler.register(signal.SIGUSR1)
    _die_with_parent()
    use_access(spec.options.get("kafka") or {})
    spec.slot_dir.mkdir(parents=True, exist_ok=True)
    configure_logging(spec.options.get("log_level", "INFO"), spec.options.get("log_file"))
    from pipeline.runtime.cluster import AWAY_S, UnequalPartitions
    from pipeline.runtime.kafka_errors import (
        LaneFatal,
        LaneHung,
        ends_the_client,
        kafka_error,
        was_asked_in_vain,
    )
    from pipeline.runtime.lane import Undefended

    try:
        build_worker(spec, stop)()
    except (UserError, Undefended) as error:
        _log.error("%s: %s", spec.name, error)
        (spec.slot_dir / LAST_ERROR).write_text(str(error))
        if isinstance(error, UnequalPartitions):
            stop.wait(AWAY_S)
        return EXIT_USER_ERROR
    except LaneHung as error:
        # A client that does not come back need not let go of this process either: it leaves as if
        # killed, which costs nothing at any moment, after it has said where it hung.
        _log.error("%s leaves, its client does not come back: %s", spec.name, error)
        faulthandler.dump_traceback()
        logging.shutdown()
        os._exit(EXIT_LANE_FATAL)
    except LaneFatal as error:
        _log.error("%s leaves, its transactional producer cannot go on: %s", spec.name, error)
        return EXIT_LANE_FATAL
    except InvariantBroken:
        _log.exception("%s stops before it commits: a bug", spec.name)
        return EXIT_BUG
    except Exception as error:
        if _is_for_want_of_memory(error):
            _log.exception("%s leaves, it has not the memory for what it holds", spec.name)
            return EXIT_NO_MEMORY
        found = kafka_error(error)
        if found is not None and ends_the_client(found):
            # As when another worker of the same node id and slot has joined in its place.
            _log.error("%s leaves, its client cannot go on: %s", spec.name, found.str())
            return EXIT_LANE_FATAL
        if found is not None and was_asked_in_vain(found):
            # Asked in the middle of something, while leaders moved for longer than was waited.
            _log.error("%s leaves, the brokers do not answer it: %s", spec.name, found.str())
            return EXIT_LANE_FATAL
        raise
    return 0


def _asked_to_drain(stop: SignalEvent) -> None:
    if stop.is_set():
        return
    stop.set()
    # It needs no lock of Python's, and holds while the interpreter ends as well.
    faulthandler.dump_traceback_later(OVERDUE_S, exit=True)


def _is_for_want_of_memory(error: BaseException) -> bool:
    """Also where the client says that one of its calls has failed, and this is why."""
    return isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)


def build_worker(spec: WorkerSpec, stop: threading.Event) -> Callable[[], None]:
    """Everything a worker needs, made here and passed in; returns its ``run``."""
    from pipeline.observability.metrics import Metrics
    from pipeline.record_codec import record_codec
    from topics.catalogue import build_catalogue

    catalogue = build_catalogue(spec.topics)
    codec = record_codec(catalogue, spec.options.get("schema_registry_url") or "")
    metrics = Metrics()
    build = {
        "payments": _payments,
        "gateway": _gateway,
        "risk": _risk,
        "ledger": _ledger,
        "webhooks": _webhooks,
        "notifications": _notifications,
    }[spec.stage]
    return build(spec, catalogue, codec, metrics, stop)


def _payments(
    spec: WorkerSpec, catalogue: Any, codec: Any, metrics: Any, stop: threading.Event
) -> Callable[[], None]:
    from pipeline.runtime.control import ControlReader
    from pipeline.runtime.lag import GroupLag, LagGate
    from pipeline.runtime.live_policy import LivePolicy
    from pipeline.runtime.payments_stage import PaymentsStage
    from pipeline.runtime.policy_options import policy_of
    from pipeline.runtime.table_worker import TableWorker

    o = spec.options
    configured = policy_of(o)
    policy = LivePolicy(configured, routes=o.get("routes") or "", metrics=metrics)
    control = ControlReader(spec.bootstrap_servers, catalogue, codec, policy.take, policy.left_out)
    lag = GroupLag(
        spec.bootstrap_servers,
        catalogue.group("gateway"),
        {catalogue.name("payment-requests"): spec.topics.partitions},
    )
    gates = [LagGate(lag, records_max=o["open_requests_max"])]
    lags = [lag]
    if configured.count_cards or (configured.risk is not None and configured.risk.awaited):
        # Orders that wait for counts or permits wait better in their own topic.
        checks = GroupLag(
            spec.bootstrap_servers,
            catalogue.group("risk"),
            {catalogue.name("risk-checks"): spec.topics.partitions},
        )
        lags.append(checks)
        gates.append(
            LagGate(checks, records_max=o["open_requests_max"], stage="risk", what="checks")
        )

    held: bool | None = None

    def orders_allowed() -> bool:
        # Asked every turn of the loop; a gauge costs a write, so only a change sets it.
        nonlocal held
        allowed = all(gate() for gate in gates)
        if held is not (not allowed):
            held = not allowed
            metrics.orders_held.set(int(held))
        return allowed

    worker = TableWorker(
        spec,
        catalogue=catalogue,
        stage=PaymentsStage(catalogue, codec, policy),
        metrics=metrics,
        stop=stop,
        commit_policy=_commit_policy(spec),
        orders_allowed=orders_allowed,
        hot_max=o["hot_payments_max"],
        producer_overrides=o.get("producer_overrides"),
    )

    def run() -> None:
        control.start()
        for gate in gates:
            gate.start()
        try:
            worker.run()
        finally:
            for gate in gates:
                gate.stop()
            control.close()
            for each in lags:
                each.close()

    return run


def _risk(
    spec: WorkerSpec, catalogue: Any, codec: Any, metrics: Any, stop: threading.Event
) -> Callable[[], None]:
    from pipeline.runtime.risk_stage import RiskStage
    from pipeline.runtime.table_worker import TableWorker

    return TableWorker(
        spec,
        catalogue=catalogue,
        stage=RiskStage(catalogue, codec),
        metrics=metrics,
        stop=stop,
        commit_policy=_commit_policy(spec),
        hot_max=spec.options["hot_payments_max"],
        producer_overrides=spec.options.get("producer_overrides"),
    ).run


def _gateway(
    spec: WorkerSpec, catalogue: Any, codec: Any, metrics: Any, stop: threading.Event
) -> Callable[[], None]:
    from pipeline.gateways.configured import build_gateways, profiles_of
    from pipeline.runtime.calls import Calls
    from pipeline.runtime.control import ControlReader
    from pipeline.runtime.gateway_stage import GatewayStage, GatewayTerms
    from pipeline.runtime.gateway_worker import GatewayWorker
    from pipeline.runtime.live_policy import LivePolicy
    from pipeline.runtime.policy_options import policy_of
    from pipeline.runtime.protection import Protection

    o = spec.options
    terms = {
        profile.name: GatewayTerms(profile.key_retention_ms, profile.idempotent)
        for profile in profiles_of(o)
    }
    protection = Protection((), in_flight_max=o["in_flight_max"], metrics=metrics)
    policy = LivePolicy(
        policy_of(o),
        routes=o.get("routes") or "",
        metrics=metrics,
        on_change=lambda changed: protection.configure(changed.gateways),
    )
    protection.configure(policy.in_force.gateways)
    control = ControlReader(spec.bootstrap_servers, catalogue, codec, policy.take, policy.left_out)
    calls = Calls(
        build_gateways(o),
        gate=protection,
        # The adapter answers first; this one catches an adapter that does not.
        soft_deadline_s=o["call_timeout_ms"] / 1000 + 2.0,
    )
    worker = GatewayWorker(
        spec,
        catalogue=catalogue,
        stage=GatewayStage(
            catalogue,
            codec,
            key_retention_ms=o["gateway_key_retention_ms"],
            terms=terms,
            clock_skew_ms=o["clock_skew_ms"],
        ),
        calls=calls,
        metrics=metrics,
        stop=stop,
        commit_policy=_commit_policy(spec),
        producer_overrides=o.get("producer_overrides"),
    )

    def run() -> None:
        control.start()
        try:
            worker.run()
        finally:
            control.close()

    return run


def _commit_policy(spec: WorkerSpec) -> Any:
    from pipeline.runtime.commit_policy import CommitPolicy

    return CommitPolicy(
        records_max=spec.options["batch_records_max"],
        age_ms_max=spec.options["batch_age_ms_max"],
    )


def _ledger(
    spec: WorkerSpec, catalogue: Any, codec: Any, metrics: Any, stop: threading.Event
) -> Callable[[], None]:
    from consumers.break_watch import BreakWatch
    from consumers.ledger_sink import LedgerSink

    engine = ledger_when_there(spec.options["ledger_url"], stop, metrics)
    if engine is None:
        return lambda: None
    sink = LedgerSink(
        bootstrap_servers=spec.bootstrap_servers,
        engine=engine,
        catalogue=catalogue,
        codec=codec,
        instance_id=spec.instance_id,
        metrics=_LedgerCounts(metrics),
    )
    watch = BreakWatch(
        engine,
        lambda sums: metrics.broken(
            {(s.gateway, s.kind, s.currency): (s.count, s.at_risk_minor) for s in sums}
        ),
    )

    def run() -> None:
        watch.start()
        try:
            sink.run(stop)
        finally:
            watch.stop()
            engine.dispose()

    return run


def ledger_when_there(url: str, stop: threading.Event, metrics: Any) -> Any:
    """The ledger's engine, waited for while its server is away, as the sink waits later on; None
    when asked to stop meanwhile. Whoever starts the workers has opened it once, and would have been
    told of an address that is wrong."""
    from pipeline.ledger.database import LedgerAway, open_ledger

    pause_s = LEDGER_PAUSE_S_MIN
    while True:
        try:
            return open_ledger(url)
        except LedgerAway as away:
            metrics.ledger_unavailable.inc()
            _log.warning("%s Trying again in %.1f s.", away, pause_s)
        if stop.wait(pause_s):
            return None
        pause_s = min(LEDGER_PAUSE_S_MAX, 2 * pause_s)


def _webhooks(
    spec: WorkerSpec, catalogue: Any, codec: Any, metrics: Any, stop: threading.Event
) -> Callable[[], None]:
    from pipeline.gateways.configured import build_gateways
    from producers.webhook_desk import WebhookDesk
    from producers.webhook_endpoint import WebhookServer

    def parked(count: int, oldest_ms: int | None) -> None:
        metrics.parked_notices.set(count)

    desk = WebhookDesk(
        spec.bootstrap_servers,
        catalogue=catalogue,
        codec=codec,
        state_dir=spec.slot_dir,
        on_parked=parked,
        on_unreadable=lambda: metrics.dead_letters.labels("webhooks", "unreadable_batch").inc(),
    )
    server = WebhookServer(
        desk,
        build_gateways(spec.options),
        host=spec.options["webhook_host"],
        port=spec.options["webhook_port"],
        count=lambda gateway, result: metrics.notices.labels(gateway, result).inc(),
    )
    return lambda: server.run(stop)


def _notifications(
    spec: WorkerSpec, catalogue: Any, codec: Any, metrics: Any, stop: threading.Event
) -> Callable[[], None]:
    from consumers.notifier.database import open_callbacks
    from consumers.notifier.endpoints import EndpointFile
    from consumers.notifier.notifier import Notifier

    o = spec.options
    allowed = {
        "allow_http": o["callback_allow_http"],
        "allow_private": o["callback_allow_private"],
    }
    engine = open_callbacks(o["callbacks_url"])
    notifier = Notifier(
        bootstrap_servers=spec.bootstrap_servers,
        engine=engine,
        catalogue=catalogue,
        codec=codec,
        endpoints=EndpointFile(Path(o["merchant_endpoints"]).expanduser(), **allowed),
        instance_id=spec.instance_id,
        first_ms=o["callback_retry_ms"],
        tries_max=o["callback_tries_max"],
        start=o["callback_start"],
        metrics=_NotifierCounts(metrics),
        **allowed,
    )

    def run() -> None:
        try:
            notifier.run(stop)
        finally:
            engine.dispose()

    return run


class _NotifierCounts:
    """What the notifier tells, as the program's metrics."""

    def __init__(self, metrics: Any) -> None:
        self._metrics = metrics

    def delivery(self, endpoint: str, outcome: str, seconds: float) -> None:
        self._metrics.callback_deliveries.labels(endpoint, outcome).inc()
        self._metrics.callback_delivery_seconds.observe(seconds)

    def ended(self, state: str) -> None:
        self._metrics.callbacks.labels(state).inc()

    def waiting(self, count: int, oldest_ms: int | None) -> None:
        self._metrics.callbacks_waiting.set(count)
        age_s = 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)
        self._metrics.callback_oldest_seconds.set(age_s)

    def lost(self, events: int) -> None:
        self._metrics.callback_events_lost.inc(events)

    def dead_lettered(self, cause: str) -> None:
        self._metrics.dead_letters.labels("notifications", cause).inc()


class _LedgerCounts:
    """What the ledger sink tells, as the program's metrics."""

    def __init__(self, metrics: Any) -> None:
        self._metrics = metrics

    def posted(self, settlements: int) -> None:
        self._metrics.postings.labels("posted").inc(settlements)

    def duplicates(self, settlements: int) -> None:
        self._metrics.postings.labels("duplicate").inc(settlements)

    def dead_lettered(self, cause: str) -> None:
        self._metrics.dead_letters.labels("ledger", cause).inc()

    def batch_seconds(self, seconds: float) -> None:
        self._metrics.ledger_batch_seconds.observe(seconds)

    def booked_after(self, seconds: float) -> None:
        self._metrics.stage_seconds.labels("ledger").observe(seconds)

    def lag(self, partition: int, records: int) -> None:
        """Served by the supervisor for every stage alike."""

    def unavailable(self) -> None:
        self._metrics.ledger_unavailable.inc()


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the supervisor dies, so that no worker is left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have gone before the call. Not by `parent == 1`: in a container the supervisor
        # itself is process 1.
        if str(os.getppid()) != os.environ.get(SUPERVISOR_PID, str(os.getppid())):
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
