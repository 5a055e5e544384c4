"""The metrics of every process, by prometheus-client.

Made once in each process by ``Metrics()``; nothing is registered at import. In a supervised worker
prometheus-client runs in its multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``), and the supervisor
serves the sum of all workers on one port. A counter costs 1.7 microseconds and a histogram twice
that, so the hot path counts once a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a quick commit on one broker to the time-out of a transaction.
_TRANSACTION_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
# From a lone order (three hops) to a payment that waited in several tiers.
_END_TO_END_BUCKETS = (
    0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_CALL_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Label sets that are known before anything is counted, see Metrics: the stages with a transactional
# producer, the tiers, and by stage the reasons for which an input changes nothing.
_TRANSACTIONAL_STAGES = ("payments", "gateway")
_TIERS = ("retry", "inquiry", "timer")
_REASONS = {
    "payments": (
        "counted_in_shadow",
        "duplicate_command",
        "duplicate_order",
        "disputed",
        "not_yet_due",
        "send_window_open",
        "stale_due",
        "stale_result",
        "stale_risk_result",
        "stale_letter",
        "letter_of_no_payment",
    )
}
_BATCH_BUCKETS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class Metrics:
    """Every metric of the program, named and labelled in one place.

    A series is born with its first count, which rate() and increase() do not see. So what is rare
    and looked at by its rate stands at 0 from the start, as far as its labels are known.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        r = self.registry
        self.records = Counter(
            "paystream_records",
            "Input records whose effect is committed.",
            ["stage", "topic"],
            registry=r,
        )
        self.transactions = Counter(
            "paystream_transactions",
            "Transactions by result: committed, aborted.",
            ["stage", "result"],
            registry=r,
        )
        self.transaction_seconds = Histogram(
            "paystream_transaction_seconds",
            "From handing a batch to the lane until its end is known.",
            ["stage"],
            buckets=_TRANSACTION_BUCKETS,
            registry=r,
        )
        self.stage_seconds = Histogram(
            "paystream_stage_seconds",
            "From the append of a batch's oldest input (for a tier: its due time) until its effect "
            "is committed.",
            ["stage"],
            buckets=_END_TO_END_BUCKETS,
            registry=r,
        )
        self.batch_records = Histogram(
            "paystream_batch_records",
            "Input records in a transaction.",
            ["stage"],
            buckets=_BATCH_BUCKETS,
            registry=r,
        )
        self.rebuilds = Counter(
            "paystream_producer_rebuilds",
            "Producers thrown away after an ambiguous end of a transaction.",
            ["stage"],
            registry=r,
        )
        self.events = Counter(
            "paystream_payment_events",
            "Transitions of payments by type.",
            ["type"],
            registry=r,
        )
        self.risk = Counter(
            "paystream_risk_decisions",
            "Payments that risk rules held for review or rejected, by event and reason.",
            ["event", "reason"],
            registry=r,
        )
        self.permits = Counter(
            "paystream_attempt_permits",
            "Answers about one more attempt with a card (given, refused, barred), by cap or code.",
            ["permit", "rule"],
            registry=r,
        )
        self.notes = Counter(
            "paystream_inputs_without_effect",
            "Inputs that changed nothing, by reason: duplicates, stale timers.",
            ["stage", "reason"],
            registry=r,
        )
        self.dead_letters = Counter(
            "paystream_dead_letters",
            "Inputs sent to the dead letters, by cause.",
            ["stage", "cause"],
            registry=r,
        )
        self.tiers = Counter(
            "paystream_tier_records",
            "Payments sent to wait: retry, inquiry or timer.",
            ["tier"],
            registry=r,
        )
        self.order_to_settlement = Histogram(
            "paystream_order_to_settlement_seconds",
            "From the append of an order to the append of the evidence that settled it.",
            buckets=_END_TO_END_BUCKETS,
            registry=r,
        )
        self.gateway_calls = Counter(
            "paystream_gateway_calls",
            "Calls to gateways by outcome.",
            ["gateway", "kind", "outcome"],
            registry=r,
        )
        self.gateway_call_seconds = Histogram(
            "paystream_gateway_call_seconds",
            "Duration of one call to a gateway.",
            ["gateway", "kind"],
            buckets=_CALL_BUCKETS,
            registry=r,
        )
        self.notices = Counter(
            "paystream_notices",
            "Webhooks of gateways by result: published, parked, or the rule that refused them.",
            ["gateway", "result"],
            registry=r,
        )
        self.parked_notices = Gauge(
            "paystream_parked_notices",
            "Notices of operations that nobody knows yet.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.calls_in_flight = Gauge(
            "paystream_gateway_calls_in_flight",
            "Calls to gateways that are open now.",
            registry=r,
            multiprocess_mode="livesum",
        )
        self.breaker_state = Gauge(
            "paystream_gateway_breaker_state",
            "The worst of the workers' breakers of a gateway: 0 closed, 1 half-open, 2 open.",
            ["gateway"],
            registry=r,
            multiprocess_mode="livemax",
        )
        self.breaker_openings = Counter(
            "paystream_gateway_breaker_openings",
            "Times that a worker's circuit breaker of a gateway opened.",
            ["gateway"],
            registry=r,
        )
        self.calls_refused = Counter(
            "paystream_gateway_calls_refused",
            "Calls not made, by what forbade them: breaker_open, throttled, rate_limited.",
            ["gateway", "code"],
            registry=r,
        )
        self.gateway_missing = Counter(
            "paystream_gateway_missing",
            "Inputs about operations that are open at a gateway which a worker does not have.",
            ["gateway"],
            registry=r,
        )
        self.control_entries = Counter(
            "paystream_control_entries",
            "Entries of the control topic by what a worker did: applied, refused.",
            ["key", "result"],
            registry=r,
        )
        self.control_version = Gauge(
            "paystream_control_version",
            "Version of the control entry in force; the least of all workers.",
            ["key"],
            registry=r,
            multiprocess_mode="livemin",
        )
        self.orders_held = Gauge(
            "paystream_orders_held",
            "1 while a payments worker holds new orders back because the gateway stage is behind.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.restored_records = Counter(
            "paystream_restored_records",
            "Records of the payments table read back to restore a cache.",
            registry=r,
        )
        self.restore_seconds = Histogram(
            "paystream_restore_seconds",
            "Time to restore the table of one assignment.",
            buckets=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
            registry=r,
        )
        self.hot_payments = Gauge(
            "paystream_table_hot_payments",
            "Payments held in memory by the table's cache.",
            registry=r,
            multiprocess_mode="livesum",
        )
        self.postings = Counter(
            "paystream_ledger_entries",
            "Settlements by what the ledger did: posted, duplicate.",
            ["result"],
            registry=r,
        )
        self.ledger_unavailable = Counter(
            "paystream_ledger_unavailable",
            "Tries of the ledger that failed because a database or broker was away; it waits.",
            registry=r,
        )
        self.ledger_batch_seconds = Histogram(
            "paystream_ledger_batch_seconds",
            "Duration of one database transaction of the ledger.",
            buckets=_TRANSACTION_BUCKETS,
            registry=r,
        )
        self.breaks = Gauge(
            "paystream_reconciliation_breaks",
            "Open breaks between the books and the gateways' reports or the bank.",
            ["gateway", "kind", "currency"],
            registry=r,
            multiprocess_mode="livemax",
        )
        self.breaks_at_risk = Gauge(
            "paystream_reconciliation_at_risk_minor",
            "What may be lost by open breaks, in minor units of the currency.",
            ["gateway", "kind", "currency"],
            registry=r,
            multiprocess_mode="livemax",
        )
        self.callbacks = Counter(
            "paystream_callbacks",
            "Callbacks to merchants that have ended: delivered, given_up.",
            ["state"],
            registry=r,
        )
        self.callback_deliveries = Counter(
            "paystream_callback_deliveries",
            "Deliveries to merchants' endpoints by outcome.",
            ["endpoint", "outcome"],
            registry=r,
        )
        self.callback_delivery_seconds = Histogram(
            "paystream_callback_delivery_seconds",
            "Duration of one delivery to a merchant's endpoint.",
            buckets=_CALL_BUCKETS,
            registry=r,
        )
        self.callbacks_waiting = Gauge(
            "paystream_callbacks_waiting",
            "Callbacks that wait for their delivery.",
            registry=r,
            multiprocess_mode="livesum",
        )
        self.callback_oldest_seconds = Gauge(
            "paystream_callback_oldest_seconds",
            "Age of the oldest event that a merchant is still to be told of.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.callback_events_lost = Counter(
            "paystream_callback_events_lost",
            "Events that retention deleted before the notifications read them.",
            registry=r,
        )

        # Labels that were ever set: a break that has ended is shown as none.
        self._broken: set[tuple[str, str, str]] = set()
        for state in ("delivered", "given_up"):
            self.callbacks.labels(state)
        for result in ("applied", "refused"):
            self.control_entries.labels("routing", result)
        for stage in _TRANSACTIONAL_STAGES:
            self.rebuilds.labels(stage)
        for tier in _TIERS:
            self.tiers.labels(tier)
        for stage, reasons in _REASONS.items():
            for reason in reasons:
                self.notes.labels(stage, reason)

    def ended(self, stage: str, result: str, seconds: float, rebuilds: int) -> None:
        """A transaction has a known end; ``rebuilds`` are the producers thrown away for it."""
        self.transactions.labels(stage, result).inc()
        self.transaction_seconds.labels(stage).observe(seconds)
        if rebuilds:
            self.rebuilds.labels(stage).inc(rebuilds)

    def committed(self, stage: str, records: int, oldest_ms: int | None, now_s: float) -> None:
        """A batch is committed; ``oldest_ms`` is the append time of its oldest input, if known."""
        self.batch_records.labels(stage).observe(records)
        if oldest_ms is not None:
            self.stage_seconds.labels(stage).observe(max(0.0, now_s - oldest_ms / 1000))

    def counted(self, stage: str, notes: Mapping[tuple[str, str], int]) -> None:
        """Add what a committed batch has counted by (group, name)."""
        for (group, name), count in notes.items():
            if group == "events":
                self.events.labels(name).inc(count)
            elif group == "dead_letters":
                self.dead_letters.labels(stage, name).inc(count)
            elif group == "risk":
                event, _, reason = name.partition(" ")
                self.risk.labels(event, reason).inc(count)
            elif group == "permits":
                permit, _, rule = name.partition(" ")
                self.permits.labels(permit, rule).inc(count)
            elif group == "missing_gateways":
                self.gateway_missing.labels(name).inc(count)
            elif group == "tiers":
                self.tiers.labels(name).inc(count)
            else:
                self.notes.labels(stage, name).inc(count)

    def broken(self, sums: Mapping[tuple[str, str, str], tuple[int, int]]) -> None:
        """Open breaks and what is at risk, by gateway, kind and currency; no others are open."""
        for labels in self._broken - sums.keys():
            self.breaks.labels(*labels).set(0)
            self.breaks_at_risk.labels(*labels).set(0)
        for labels, (count, at_risk_minor) in sums.items():
            self.breaks.labels(*labels).set(count)
            self.breaks_at_risk.labels(*labels).set(at_risk_minor)
        self._broken |= sums.keys()

    def settled(self, latencies_ms: Iterable[int]) -> None:
        """Observe the order-to-settlement times of one committed batch."""
        for latency_ms in latencies_ms:
            self.order_to_settlement.observe(latency_ms / 1000)
