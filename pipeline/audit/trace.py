"""The way of one order through the topics, hop by hop.

Only the order's own partition of each topic is read; keys are compared as bytes, and nothing but
the order's own records is decoded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.audit.amounts import amount_text
from pipeline.audit.cut import KEYED_OTHERWISE, judged_roles
from pipeline.audit.derivation import home_partition, idempotency_key, payment_id
from pipeline.audit.gateway_copy import operation_of_reference
from pipeline.audit.ledger_copy import LedgerReader
from pipeline.audit.log_copy import partition_counts, read_partition
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.audit.verify import Sources
from pipeline.batches.record_batch import RecordBatch
from schemas.codec import Codec, default_codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue, TopicSettings, build_catalogue
from topics.record_headers import UNREADABLE, record_headers

PROGRESS_AFTER_S = 2.0
# Records between two looks at the clock.
PROGRESS_STEP = 20_000

# What a hop does within one millisecond, by the schema of its record: causes before effects.
_WITHIN_A_TRANSACTION = (
    "order",
    "payment-command",
    "gateway-notification",
    "gateway-result",
    "risk-result",
    "payment-due",
    "payment-event",
    "payment",
    "payment-request",
    "settlement",
    None,
    "audit-entry",
)

# What the same order has in common with the one before; anything else it says is not looked at.
_TERMS = ("amount_minor", "currency", "instrument_token")

# Of a result, whose answer it is, where that came when nobody waited for it any more.
_HEARD = {
    "earlier_question": "an earlier question heard it",
    "late_answer": "heard too late",
    "contradicts": "against what was told before",
}


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
    """Hops in time order, and what the books say: ``charges`` are the gateways' answers about each
    operation, with its ``kind``. Empty hops: nobody knows this order."""

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

    judged = judged_roles(catalogue)
    # Markers of dead letters and risk checks have keys of another kind, which may look like an
    # order's.
    topics = [
        spec.name
        for role, spec in catalogue.topics.items()
        if role in judged and role not in KEYED_OTHERWISE and partition < counts[role]
    ]
    unreadable: list[str] = []

    def on_unreadable(place: tuple[str, int], batch: RecordBatch) -> None:
        unreadable.append(
            f"{batch.records} records at {place[0]}[{place[1]}]@{batch.first_offset} to "
            f"{batch.last_offset} cannot be decompressed, so nobody knows whether one of them is "
            "this order's; they are one dead letter, once their stage has come to them."
        )

    read_partition(
        sources.bootstrap_servers, topics, partition, on_record, on_unreadable=on_unreadable
    )
    hops = _hops(catalogue, codec or default_codec(), found)
    result = Trace(key, partition, payment_id(key), hops, state=_state(hops), remarks=unreadable)
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
                describe(role, fields) + _redriven(message),
                fields,
            )
        )

    def place(hop: Hop) -> tuple[int, int, int]:
        schema = catalogue[hop.role].schema
        return hop.at_ms, _WITHIN_A_TRANSACTION.index(schema), hop.offset

    return repetitions_told(sorted(hops, key=place))


def repetitions_told(hops: Sequence[Hop]) -> list[Hop]:
    """The hops in their order; an order that the payment has already says that it did nothing.

    Which one it has is the first that the payments stage made no dead letter of. One on other terms
    is a dead letter, which tells so.
    """
    refused = {
        tuple(hop.fields.get(f"dlq.{name}") for name in ("topic", "partition", "offset"))
        for hop in hops
        if hop.role == "dead-letters" and hop.fields.get("dlq.stage") == "payments"
    }
    taken: dict[str, Any] | None = None
    told = []
    for hop in hops:
        place = hop.topic, str(hop.partition), str(hop.offset)
        if hop.role == "orders" and "problem" not in hop.fields and place not in refused:
            if taken is None:
                taken = hop.fields
            elif all(hop.fields[name] == taken[name] for name in _TERMS):
                hop = replace(hop, what=f"{hop.what}, repeated, no effect")
        told.append(hop)
    return told


def _redriven(message: Any) -> str:
    headers = record_headers(message)
    if headers is UNREADABLE:
        return ", its headers cannot be read"
    letter = dict(headers).get("redrive.letter")
    return f", redriven from the dead letter {letter.decode('utf-8', 'replace')}" if letter else ""


def _fields(catalogue: Catalogue, codec: Codec, role: str, message: Any) -> dict[str, Any]:
    if role == "dead-letters":
        return {
            name: (value or b"").decode("utf-8", "backslashreplace")
            for name, value in record_headers(message)
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
    if role.startswith("payment-timer-"):
        return f"timer: {fields['reason']}" + _until(fields)
    if role.startswith(("payment-retry-", "payment-inquiry-")):
        why = f", {fields['reason']}" if fields["reason"] else ""
        what = "sent again" if fields["purpose"] == "retry" else "inquire"
        return f"waits to {'be ' if fields['purpose'] == 'retry' else ''}{what}{why}"
    letter = _letter_of_another_stage(role, fields)
    if letter is not None:
        return letter
    parts = {
        "orders": ("ordered", "{money}"),
        "payment-commands": (
            "command {command_id}: {type}",
            "{decision}",
            "{which}",
            "{money}",
            "{gateway_reference}",
            "{evidence}",
            "{reason}",
            "{by}",
        ),
        "gateway-notifications": (
            "notice of {gateway}: {about}",
            "{outcome}",
            "{code}",
            "{money}",
            "{gateway_reference}",
        ),
        "payment-requests": (
            "{asked} requested at {gateway}",
            "{operation}attempt {attempt}, try {try_number}",
            "{money}",
        ),
        "gateway-results": (
            "{kind} at {gateway}: {outcome}",
            "{code}",
            "{heard}",
            "{gateway_reference}",
            "{operation}attempt {attempt}, try {try_number}",
        ),
        "risk-results": ("{counted_by}", "{detail}"),
        "settlements": ("settled: {kind}", "{money}", "{gateway} {gateway_reference}"),
        "payment-events": (
            "event {sequence}: {type}",
            "{status}",
            "{did}",
            "{reason}",
            "{detail}",
            "{by}",
        ),
        "payments": ("payment at {sequence}: {status}", "{reason}", "{money}"),
        "audit": ("by hand: {action}", "{decided}", "{actor}", "{reason}"),
    }[role]
    values = {**fields, "money": money(fields), **_in_words(fields)}
    if role == "audit":
        values["decided"] = _decided(fields)
    texts = []
    for part in parts:
        if part.startswith("{") and part.endswith("}") and part.count("{") == 1:
            value = values.get(part[1:-1])
            if value not in (None, ""):
                texts.append(str(value))
        else:
            texts.append(part.format_map(values))
    return ", ".join(texts)


def _counted(fields: dict[str, Any]) -> str:
    if fields["attempt_key"]:
        return f"permit for an attempt with its {fields['by']}: {fields['permit']}"
    return f"orders of its {fields['by']} counted"


def _letter_of_another_stage(role: str, fields: dict[str, Any]) -> str | None:
    """A stage's word of a dead letter that it made of a record of this payment."""
    if role == "gateway-results" and fields["outcome"] == "dead_lettered":
        return f"dead letter of the gateway stage: {fields['letter']}, {fields['code']}"
    if role == "risk-results" and fields["cause"] is not None:
        return f"dead letter of the risk stage: {fields['letter']}, {fields['cause']}"
    if role == "gateway-notifications" and fields["type"] == "dead_letter":
        return f"dead letter of the ledger: {fields['notification_id']}, {fields['code']}"
    return None


def _in_words(fields: dict[str, Any]) -> dict[str, str | None]:
    """What a record's optional fields say together."""
    kind, operation_id = fields.get("kind"), fields.get("operation_id")
    asked = kind
    if kind == "inquire" and fields.get("operation_kind") not in (None, "charge"):
        asked = f"inquiry about the {fields['operation_kind']}"
    did = None
    if kind and "operation_minor" in fields:
        amount = fields["operation_minor"]
        of = "" if amount is None else f" of {amount_text(amount, fields['currency'])}"
        did = f"{kind} {operation_id}{of}"
    about = f"{kind} {operation_id}" if kind else fields.get("type")
    if fields.get("dispute_id"):
        about = f"dispute {fields['dispute_id']} {fields.get('dispute_state')}"
    which = None
    if "command_id" in fields:
        dispute_id = fields.get("dispute_id")
        which = f"dispute {dispute_id}" if dispute_id else operation_id
        if fields.get("finding"):
            which = f"{fields['finding']} {fields.get('figures')}"
    heard = _HEARD.get(fields.get("heard") or "")
    if fields.get("not_found_asked_at_ms"):
        heard = "an earlier question: not found"
    own = operation_id is not None and operation_id != fields.get("order_id")
    return {
        "asked": asked,
        "did": did,
        "about": about,
        "heard": heard,
        "which": which,
        # The first charge's operation is the order itself and needs no word.
        "operation": f"{operation_id}, " if own else "",
        "counted_by": _counted(fields) if "by" in fields else None,
        "by": f"by {fields['actor']}" if fields.get("actor") else None,
    }


def _decided(fields: dict[str, Any]) -> str:
    """What the audit's entry says of a decision about a payment; other acts say other things."""
    try:
        detail = json.loads(fields["detail"] or "{}")
    except ValueError:
        return ""
    if not isinstance(detail, dict) or "command_id" not in detail:
        return ""
    rule = f" by {detail['rule']}" if detail.get("rule") else ""
    about = [detail.get("kind"), detail.get("operation_id")]
    if detail.get("dispute_id"):
        about = ["dispute", detail["dispute_id"]]
    if detail.get("finding"):
        about = [detail["finding"], detail.get("figures")]
    texts = [
        f"{detail.get('outcome')}{rule}",
        detail.get("decision"),
        " ".join(str(each) for each in about if each),
        detail.get("gateway_reference"),
        detail.get("evidence"),
        detail.get("detail"),
    ]
    return ", ".join(str(text) for text in texts if text)


def _until(fields: dict[str, Any]) -> str:
    due_at_ms = fields.get("due_at_ms")
    if due_at_ms is None:
        return ""
    return f", until {datetime.fromtimestamp(due_at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def money(fields: dict[str, Any]) -> str:
    """The record's amount for people; empty when it has none."""
    if fields.get("amount_minor") is None:
        return ""
    if not fields["currency"]:
        # A command that leaves the currency to its payment.
        return f"{fields['amount_minor']} minor units"
    return amount_text(fields["amount_minor"], fields["currency"])


_AMOUNTS = ("captured_minor", "refunded_minor", "disputed_minor", "charged_back_minor")


def _state(hops: Sequence[Hop]) -> str | None:
    for hop in reversed(hops):
        if hop.role == "payments" and "status" in hop.fields:
            fields = hop.fields
            reason = f" ({fields['reason']})" if fields["reason"] else ""
            amounts = [
                f", {name.removesuffix('_minor').replace('_', ' ')} "
                f"{amount_text(fields[name], fields['currency'])}"
                for name in _AMOUNTS
                if fields[name]
            ]
            return f"{fields['status']}{reason}{''.join(amounts)}"
    if any(hop.role in ("orders", "payment-commands") for hop in hops):
        dead = any(hop.role == "dead-letters" for hop in hops)
        return "dead-lettered" if dead else "not processed yet"
    return None


def _add_charges(result: Trace, urls: Sequence[str]) -> None:
    asked: dict[str, str] = {}
    for fields in (hop.fields for hop in result.hops if hop.role == "payment-requests"):
        if "operation_id" in fields:
            reference = idempotency_key(
                result.payment_id, fields["operation_id"], fields["gateway"], fields["attempt"]
            )
            asked[reference] = fields["operation_kind"]
    for url in urls:
        for reference, kind in asked.items():
            try:
                found = operation_of_reference(url, kind, reference)
            except AuditUnavailable as error:
                # The hops are worth showing without it.
                result.remarks.append(str(error))
                return
            if found is not None:
                result.charges.append(found)


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
