"""The catalogue of topics as data: the one place from which all else about topics is made.

Provisioning, the generated documentation, the workers' wiring and the tests read it. Every topic
of the flow has the same number of partitions and the same key (``merchant:order``), so that all
records of one order meet in one lane; risk checks and their table are keyed by what is counted, so
that all checks of one card meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# Stages that read by a consumer group. Ledger and notifications keep offsets in their databases.
GROUP_STAGES: Final = ("payments", "gateway", "risk")

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MIB = 1024 * 1024

# The largest compressed batch an ordinary topic takes (Kafka's own default).
MAX_MESSAGE_BYTES = 1 * MIB
# A record of 1 MiB on the wire may be many times that once decompressed; the dead-letter topic
# takes whole pieces of up to 8 MiB plus headers, larger inputs are split (see dead letters).
DEAD_LETTER_MAX_MESSAGE_BYTES = 16 * MIB

# Counts are worth keeping for the longest window of a risk rule (31 days) and a day of grace.
RISK_VELOCITY_RETENTION_MS = 32 * DAY_MS


@dataclass(frozen=True)
class TopicSpec:
    """One topic. ``role`` names it in code, ``name`` on the cluster, prefix included."""

    role: str
    name: str
    schema: str | None
    meaning: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    delay_ms: int | None = None


# Each further tier of a purpose waits this many times as long as its first one. Retries double, so
# that a gateway that is away is asked ever less; inquiries stay dense for a minute and then wait
# for as much; timers are a minute, an hour and a day.
RETRY_MULTIPLES: tuple[int, ...] = (1, 2, 4, 8, 16)
INQUIRY_MULTIPLES: tuple[int, ...] = (1, 3, 12)
TIMER_MULTIPLES = (1, 60, 1440)


@dataclass(frozen=True)
class TopicSettings:
    """What may differ between installations. The delays are those of each purpose's first tier."""

    prefix: str = ""
    partitions: int = 12
    replication_factor: int = 1
    min_insync_replicas: int = 1
    retention_ms: int = 7 * DAY_MS
    delete_retention_ms: int = DAY_MS
    retry_delay_ms: int = 5_000
    inquiry_delay_ms: int = 5_000
    timer_delay_ms: int = 60_000

    @property
    def retry_delays_ms(self) -> tuple[int, ...]:
        return tuple(self.retry_delay_ms * times for times in RETRY_MULTIPLES)

    @property
    def inquiry_delays_ms(self) -> tuple[int, ...]:
        return tuple(self.inquiry_delay_ms * times for times in INQUIRY_MULTIPLES)

    @property
    def timer_delays_ms(self) -> tuple[int, ...]:
        return tuple(self.timer_delay_ms * times for times in TIMER_MULTIPLES)


@dataclass(frozen=True)
class Catalogue:
    """Every topic and every consumer group of one installation."""

    settings: TopicSettings
    topics: Mapping[str, TopicSpec]

    def __getitem__(self, role: str) -> TopicSpec:
        return self.topics[role]

    def name(self, role: str) -> str:
        return self.topics[role].name

    def group(self, stage: str) -> str:
        """The consumer group id of a stage: payments, gateway, risk, ledger or notifications."""
        return f"{self.settings.prefix}{stage}"

    def inputs(self, stage: str) -> tuple[TopicSpec, ...]:
        """The topics a stage reads by its consumer group, in admission order."""
        return tuple(spec for spec in self.topics.values() if stage in spec.read_by)


def build_catalogue(settings: TopicSettings | None = None) -> Catalogue:
    """The topics of one installation. Order matters: inputs are admitted in this order."""
    s = settings or TopicSettings()
    base = {
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": str(s.min_insync_replicas),
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
    }
    stream = {**base, "cleanup.policy": "delete", "retention.ms": str(s.retention_ms)}
    table = {
        **base,
        "cleanup.policy": "compact",
        "delete.retention.ms": str(s.delete_retention_ms),
        # Segments roll daily so that compaction reaches all but the newest day.
        "segment.ms": str(DAY_MS),
    }
    expiring_table = {
        **table,
        "cleanup.policy": "compact,delete",
        "retention.ms": str(RISK_VELOCITY_RETENTION_MS),
    }
    dead = {
        **stream,
        "retention.ms": "-1",
        "max.message.bytes": str(DEAD_LETTER_MAX_MESSAGE_BYTES),
    }

    specs: dict[str, TopicSpec] = {}

    def add(
        role: str,
        schema: str | None,
        config: Mapping[str, str],
        written_by: tuple[str, ...],
        read_by: tuple[str, ...],
        meaning: str,
        delay_ms: int | None = None,
    ) -> None:
        specs[role] = TopicSpec(
            role=role,
            name=f"{s.prefix}{role}",
            schema=schema,
            meaning=meaning,
            written_by=written_by,
            read_by=read_by,
            partitions=s.partitions,
            replication_factor=s.replication_factor,
            config=config,
            delay_ms=delay_ms,
        )

    add(
        "gateway-results",
        "gateway-result",
        stream,
        ("gateway",),
        ("payments",),
        "Evidence about one payment request: what a gateway answered, or that it did not.",
    )
    add(
        "gateway-notifications",
        "gateway-notification",
        stream,
        ("webhooks", "ledger"),
        ("payments",),
        "Verified notices of gateways about operations and disputes, and the ledger's of what it "
        "refused: unordered, maybe repeated.",
    )
    for role, delays_ms, meaning in (
        (
            "payment-inquiry",
            s.inquiry_delays_ms,
            "Payments with an unknown or pending outcome, waiting to ask the gateway",
        ),
        (
            "payment-retry",
            s.retry_delays_ms,
            "Payments whose request was certainly not sent, waiting to be sent again",
        ),
        (
            "payment-timer",
            s.timer_delays_ms,
            "Payments whose authorization, customer's action or deadline ends by itself",
        ),
    ):
        for number, delay_ms in enumerate(delays_ms, 1):
            add(
                f"{role}-{number}",
                "payment-due",
                stream,
                ("payments",),
                ("payments",),
                f"{meaning} (tier {number}).",
                delay_ms,
            )
    add(
        "payment-commands",
        "payment-command",
        stream,
        ("upstream",),
        ("payments",),
        "Requests to change a payment: capture, cancel, refund, credit, retry, give_back, "
        "record_refund, refund_unasked, resolve, resolve_dispute, review, acknowledge.",
    )
    add(
        "risk-results",
        "risk-result",
        stream,
        ("risk",),
        ("payments",),
        "How many orders an identity has in each window, or whether a card may be tried once more, "
        "for the order that asked.",
    )
    add(
        "orders",
        "order",
        stream,
        ("upstream",),
        ("payments",),
        "Payable intents from upstream systems.",
    )
    add(
        "risk-checks",
        "risk-check",
        stream,
        ("payments",),
        ("risk",),
        "Orders to be counted by card, customer or merchant; attempts with a card that ask for a "
        "permit, and their outcomes; key `kind:merchant:identity`.",
    )
    add(
        "risk-velocity",
        "risk-velocity",
        expiring_table,
        ("risk",),
        (),
        "What was counted of each identity: the table of the risk stage; key as risk-checks.",
    )
    add(
        "payment-requests",
        "payment-request",
        stream,
        ("payments",),
        ("gateway",),
        "Authorised instructions to one gateway.",
    )
    add(
        "settlements",
        "settlement",
        stream,
        ("payments",),
        ("ledger",),
        "Gateway-confirmed money movements: good for fulfilment, not funds received.",
    )
    add(
        "payment-events",
        "payment-event",
        stream,
        ("payments",),
        ("notifications",),
        "Every transition of every payment, for notifiers and views.",
    )
    add(
        "payments",
        "payment",
        table,
        ("payments",),
        (),
        "The latest snapshot of every payment: the table that workers restore from.",
    )
    add(
        "control",
        "control-entry",
        table,
        ("operators",),
        (),
        "What workers follow while they run, by key: every worker reads all of it by itself.",
    )
    add(
        "gateway-references",
        "gateway-reference",
        table,
        ("payments",),
        (),
        "To which operation a gateway's own id belongs, keyed gateway:id; for notices that carry "
        "only that, and those about charges nobody asked for.",
    )
    add(
        "parked-notices",
        "gateway-notification",
        table,
        ("webhooks",),
        (),
        "Notices whose operation is not known yet, keyed gateway:id and notice; gone when known.",
    )
    add(
        "ledger-events",
        "ledger-event",
        {**stream, "retention.ms": "-1"},
        ("operators",),
        (),
        "Decisions that the books follow: fee schedules, closed periods, entries by hand, payouts. "
        "All of one ledger have one key, so they lie in one partition, in order.",
    )
    add(
        "payouts",
        "payout",
        {**stream, "retention.ms": "-1"},
        ("operators",),
        (),
        "Every payout as it stands after each of its decisions; key `merchant:currency`.",
    )
    add(
        "clearings",
        "clearing",
        {**stream, "retention.ms": "-1"},
        ("operators",),
        (),
        "Rows of the gateways' settlement reports: what they owe us. Key `gateway:report:row`.",
    )
    add(
        "reconciliation-breaks",
        "reconciliation-break",
        table,
        ("operators",),
        (),
        "Differences between the books and the gateways' reports or the bank, as they stand; keyed "
        "by the break's id.",
    )
    add(
        "dead-letters",
        None,
        dead,
        ("payments", "gateway", "risk", "ledger", "notifications"),
        (),
        "Inputs that could not be handled, whole, with their cause in the headers.",
    )
    add(
        "dead-letter-markers",
        "dead-letter-marker",
        table,
        ("operators",),
        (),
        "What was done about each dead letter: keyed by its partition:offset, in its partition.",
    )
    add(
        "audit",
        "audit-entry",
        {**stream, "retention.ms": "-1"},
        ("operators", "payments"),
        (),
        "Who did what by hand, when and why, in the transaction of the act; keyed by its subject.",
    )
    return Catalogue(settings=s, topics=specs)
