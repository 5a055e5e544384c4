"""The way of one order through the topics, hop by hop.

Only the order's own partition of each topic is read; keys are compared as bytes, and nothing but
the order's own records is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.audit.amounts import amount_text
from pipeline.audit.derivation import home_partition, idempotency_key, payment_id
from pipeline.audit.gateway_copy import charges_of_reference
from pipeline.audit.ledger_copy import LedgerReader
from pipeline.audit.log_copy import partition_counts, read_partition
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.audit.verify import Sources
from schemas.codec import Codec, default_codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue, TopicSettings, build_catalogue

PROGRESS_AFTER_S = 2.0
# Records between two looks at the clock.
PROGRESS_STEP = 20_000

# What a hop does within one millisecond: causes before effects.
_WITHIN_A_TRANSACTION = (
    "orders",
    "gateway-results",
    "payment-retry-1",
    "payment-inquiry-1",
    "payment-events",
    "payments",
    "payment-requests",
    "settlements",
    "dead-letters",
)


@dataclass(frozen=True)
class Hop:
    """One record of the order. ``since_order_ms`` counts from the first order record."""

    role: str
    topic: str
    partition: int
    offset: int
    at_ms: int
    since_order_ms: int | None
    what: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """Hops in time order, and what the books say. Empty hops: nobody knows this order."""

    key: str
    partition: int
    payment_id: str
    hops: list[Hop]
    state: str | None = None
    charges: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def trace(
    sources: Sources,
    key: str,
    *,
    codec: Codec | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Trace:
    """Follow ``merchant:order``. Calls ``on_progress`` with the records read, every two seconds.

    A compacted topic shows what is left of the payment's snapshots; records that retention has
    deleted do not appear. Raises AuditUnavailable when the broker is away.
    """
    catalogue = build_catalogue(TopicSettings(prefix=sources.prefix))
    counts = partition_counts(sources.bootstrap_servers, catalogue)
    raw_key = key.encode()
    partition = home_partition(raw_key, counts["orders"])
    found: list[tuple[str, Any]] = []
    progress = _Progress(on_progress)

    def on_record(message: Any) -> None:
        progress.count()
        if message.key() == raw_key:
            found.append((message.topic(), message))

    topics = [s.name for r, s in catalogue.topics.items() if partition < counts[r]]
    read_partition(sources.bootstrap_servers, topics, partition, on_record)
    hops = _hops(catalogue, codec or default_codec(), found)
    result = Trace(key, partition, payment_id(key), hops, state=_state(hops))
    if sources.gateway_urls:
        _add_charges(result, sources.gateway_urls)
    if sources.ledger_url:
        _add_entries(result, sources.ledger_url)
    return result


def _hops(catalogue: Catalogue, codec: Codec, found: Sequence[tuple[str, Any]]) -> list[Hop]:
    roles = {spec.name: role for role, spec in catalogue.topics.items()}
    order_times = [m.timestamp()[1] for topic, m in found if roles[topic] == "orders"]
    started_ms = min(order_times, default=None)
    hops = []
    for topic, message in found:
        role, at_ms = roles[topic], message.timestamp()[1]
        fields = _fields(catalogue, codec, role, message)
        hops.append(
            Hop(
                role,
                topic,
                message.partition(),
                message.offset(),
                at_ms,
                None if started_ms is None else at_ms - started_ms,
                describe(role, fields),
                fields,
            )
        )
    return sorted(hops, key=lambda h: (h.at_ms, _WITHIN_A_TRANSACTION.index(h.role), h.offset))


def _fields(catalogue: Catalogue, codec: Codec, role: str, message: Any) -> dict[str, Any]:
    if role == "dead-letters":
        return {
            name: (value or b"").decode("utf-8", "backslashreplace")
            for name, value in message.headers() or ()
        }
    schema, value = catalogue[role].schema, message.value()
    if schema is None or value is None:
        return {"problem": "a record without a value"}
    try:
        fields: dict[str, Any] = codec.decoder(schema)(value)
        return fields
    except DecodeError as error:
        return {"problem": f"cannot be decoded: {error}"}


def describe(role: str, fields: dict[str, Any]) -> str:
    """One record in a few words."""
    if "problem" in fields:
        return str(fields["problem"])
    if role == "dead-letters":
        source = "{dlq.topic}[{dlq.partition}]@{dlq.offset}"
        for name in ("dlq.topic", "dlq.partition", "dlq.offset"):
            source = source.replace("{" + name + "}", fields.get(name, "?"))
        detail = fields.get("dlq.detail", "")
        return f"dead letter of {source}: {fields.get('dlq.cause', '?')}" + (
            f" ({detail})" if detail else ""
        )
    parts = {
        "orders": ("ordered", "{money}"),
        "payment-requests": (
            "{kind} requested at {gateway}",
            "attempt {attempt}, try {try_number}",
            "{money}",
        ),
        "gateway-results": (
            "{kind} at {gateway}: {outcome}",
            "{code}",
            "{gateway_reference}",
            "attempt {attempt}, try {try_number}",
        ),
        "settlements": ("settled: {kind}", "{money}", "{gateway} {gateway_reference}"),
        "payment-events": ("event {sequence}: {type}", "{status}", "{reason}"),
        "payments": ("payment at {sequence}: {status}", "{reason}", "{money}"),
        "payment-retry-1": ("waits to be sent again", "{reason}"),
        "payment-inquiry-1": ("waits to inquire", "{reason}"),
    }[role]
    values = {**fields, "money": money(fields)}
    texts = []
    for part in parts:
        if part.startswith("{") and part.endswith("}") and part.count("{") == 1:
            value = values.get(part[1:-1])
            if value not in (None, ""):
                texts.append(str(value))
        else:
            texts.append(part.format_map(values))
    return ", ".join(texts)


def money(fields: dict[str, Any]) -> str:
    """The record's amount for people; empty when it has none."""
    if "amount_minor" not in fields:
        return ""
    return amount_text(fields["amount_minor"], fields["currency"])


def _state(hops: Sequence[Hop]) -> str | None:
    for hop in reversed(hops):
        if hop.role == "payments" and "status" in hop.fields:
            fields = hop.fields
            reason = f" ({fields['reason']})" if fields["reason"] else ""
            captured = (
                f", captured {amount_text(fields['captured_minor'], fields['currency'])}"
                if fields["captured_minor"]
                else ""
            )
            return f"{fields['status']}{reason}{captured}"
    if any(hop.role == "orders" for hop in hops):
        dead = any(hop.role == "dead-letters" for hop in hops)
        return "dead-lettered" if dead else "ordered, not processed yet"
    return None


def _add_charges(result: Trace, urls: Sequence[str]) -> None:
    references = {
        idempotency_key(result.payment_id, f["operation_id"], f["gateway"], f["attempt"])
        for f in (hop.fields for hop in result.hops if hop.role == "payment-requests")
        if "operation_id" in f
    }
    for url in urls:
        for reference in sorted(references):
            try:
                answer = charges_of_reference(url, reference)
            except AuditUnavailable as error:
                # The hops are worth showing without it.
                result.remarks.append(str(error))
                return
            if answer is not None and answer.get("charge"):
                result.charges.append(answer["charge"])


def _add_entries(result: Trace, ledger_url: str) -> None:
    settlement_ids = {
        hop.fields["settlement_id"]
        for hop in result.hops
        if hop.role == "settlements" and "settlement_id" in hop.fields
    }
    if not settlement_ids:
        return
    try:
        ledger = LedgerReader(ledger_url)
        try:
            result.entries.extend(ledger.entries_of(sorted(settlement_ids)))
        finally:
            ledger.close()
    except AuditUnavailable as error:
        result.remarks.append(str(error))


class _Progress:
    """Tells how many records were read, every two seconds."""

    def __init__(self, tell: Callable[[int], None] | None) -> None:
        self._tell = tell
        self._records = 0
        self._next_s = time.monotonic() + PROGRESS_AFTER_S

    def count(self) -> None:
        self._records += 1
        if self._tell is not None and self._records % PROGRESS_STEP == 0:
            now = time.monotonic()
            if now >= self._next_s:
                self._next_s = now + PROGRESS_AFTER_S
                self._tell(self._records)
