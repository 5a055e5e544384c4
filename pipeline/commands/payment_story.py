"""A payment's history for people, told from the trace of its topics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pipeline.audit.log_copy import partition_counts, read_partition
from pipeline.audit.render import printable, time_text
from pipeline.audit.trace import Trace
from pipeline.audit.verify import Sources
from pipeline.domain.commands import unknown_attempts
from pipeline.domain.lifecycle import MAIN_KINDS, REFUND
from pipeline.domain.model import Attempt, Dispute, Payment, PaymentCommand
from pipeline.domain.money import format_amount
from pipeline.domain.payment import parent_of
from pipeline.domain.recorded_refunds import RECORDED
from pipeline.domain.records import payment_from_record
from pipeline.domain.reversals import outstanding
from pipeline.domain.reviews import by_urgency
from pipeline.domain.shown import shown_statuses
from topics.catalogue import TopicSettings, build_catalogue

if TYPE_CHECKING:
    from schemas.codec import Codec


def payment_of(trace: Trace) -> Payment | None:
    """The payment as its latest snapshot in the trace has it."""
    for hop in reversed(trace.hops):
        if hop.role == "payments" and "status" in hop.fields:
            return payment_from_record(hop.fields)
    return None


def story_json(trace: Trace) -> dict[str, Any]:
    """The same for a program: the snapshot, the shown statuses, and every record in time order."""
    payment = payment_of(trace)
    snapshots = [hop for hop in trace.hops if hop.role == "payments"]
    return {
        "key": trace.key,
        "payment_id": trace.payment_id,
        "statuses": [] if payment is None else list(shown_statuses(payment)),
        "payment": snapshots[-1].fields if snapshots else None,
        "history": [
            {
                "topic": hop.topic,
                "partition": hop.partition,
                "offset": hop.offset,
                "at_ms": hop.at_ms,
                "what": hop.what,
                "fields": hop.fields,
            }
            for hop in trace.hops
            if hop.role != "payments"
        ],
        "charges": trace.charges,
        "journal_entries": trace.entries,
        "remarks": trace.remarks,
    }


def story_lines(trace: Trace) -> Iterator[str]:
    """Where the payment stands, what was tried at gateways, what waits, and how it came to it."""
    yield f"{trace.key}  payment {trace.payment_id}"
    payment = payment_of(trace)
    if payment is None:
        if trace.hops:
            yield _row("status", trace.state or "not processed yet")
    else:
        yield from _standing(payment)
        for number, attempt in enumerate(payment.attempts, 1):
            yield from _attempt(payment, number, attempt)
        for dispute in payment.disputes:
            yield _row("dispute", _dispute(payment, dispute))
        for dispute in payment.unfounded_disputes:
            said = _dispute(payment, replace(dispute, withdrawn_minor=0))
            yield _row("dispute", f"{said}; nothing is known to be taken")
        for command in payment.commands:
            yield _row("waits", _command(payment, command))
    for charge in trace.charges:
        amount = format_amount(charge["amount_minor"], charge["currency"])
        yield _row("at the gateway", f"{charge['kind']} {charge['id']} of {amount}")
    for entry in trace.entries:
        yield _row("journal entry", str(entry["entry_id"]))
    for remark in trace.remarks:
        yield _row("not seen", remark)
    if not trace.hops:
        return
    yield ""
    yield "history"
    for hop in trace.hops:
        # The snapshots say again what the events say.
        if hop.role != "payments":
            yield f"  {time_text(hop.at_ms)}  {printable(hop.what)}"


def _standing(payment: Payment) -> Iterator[str]:
    def money(amount_minor: int) -> str:
        return format_amount(amount_minor, payment.currency)

    why = f" ({payment.reason})" if payment.reason else ""
    yield _row("status", ", ".join(shown_statuses(payment)) + why)
    ordered = f"{money(payment.amount_minor)}, {payment.capture_method} capture"
    if payment.customer_id:
        ordered += f", customer {payment.customer_id}"
    yield _row("ordered", ordered)
    for label, amount_minor in (
        ("authorized", payment.authorized_minor),
        ("captured", payment.captured_minor),
        ("refunded", payment.refunded_minor),
        ("disputed", payment.disputed_minor),
        ("charged back", payment.charged_back_minor),
    ):
        if amount_minor:
            yield _row(label, money(amount_minor))
    if payment.next_action_url:
        yield _row("customer goes to", payment.next_action_url)
    if payment.expires_at_ms:
        yield _row("expires", f"{time_text(payment.expires_at_ms)} UTC")
    if payment.cancel_requested_by:
        yield _row("cancel asked by", payment.cancel_requested_by)
    if payment.conflicts or payment.dead_letters:
        yield _row(
            "dead letters", f"{payment.dead_letters}, of them conflicts: {payment.conflicts}"
        )
        for letter in payment.letters:
            yield _row("", f"by the stage {letter}")


def _attempt(payment: Payment, number: int, attempt: Attempt) -> Iterator[str]:
    amount = format_amount(attempt.amount_minor or payment.amount_minor, payment.currency)
    where = "outside" if attempt.code == RECORDED else "at"
    said = [f"{attempt.kind} of {amount} {where} {attempt.gateway}: {attempt.state}"]
    if attempt.code:
        said.append(attempt.code)
    if attempt.gateway_reference:
        said.append(attempt.gateway_reference)
    parent = None if attempt.kind in MAIN_KINDS else parent_of(payment, attempt)
    if parent is not None:
        said.append(f"of {parent.gateway_reference}")
    yield _row(f"attempt {number}", ", ".join(said))
    counted = [
        f"{count} {name}"
        for name, count in (
            ("requests", attempt.tries),
            ("retries", attempt.retries),
            ("inquiries", attempt.inquiries),
            ("resends", attempt.resends),
        )
        if count
    ]
    sent = ", ".join(counted) or "nothing was sent"
    yield _row("", f"operation {attempt.operation_id}, attempt {attempt.attempt}; {sent}")
    if attempt in unknown_attempts(payment):
        key = f"{payment.merchant_id}:{payment.order_id}"
        yield _row(
            "",
            f"outcome unknown: paystream payment resolve {key} --operation {attempt.operation_id}",
        )
    if attempt in outstanding(payment):
        key = f"{payment.merchant_id}:{payment.order_id}"
        yield _row("", f"still to be given back: paystream payment give-back {key}")
        if attempt.kind == REFUND:
            line = f"paystream payment record-refund {key} --operation {attempt.operation_id}"
            yield _row("", f"or given back otherwise: {line}")
    if attempt.routed_because:
        yield _row("", f"there because: {attempt.routed_because}")


def _dispute(payment: Payment, dispute: Dispute) -> str:
    fee = f", fee {format_amount(dispute.fee_minor, payment.currency)}" if dispute.fee_minor else ""
    said = ""
    if dispute.resolved_by is not None:
        said = f", by {dispute.resolved_by} (the gateway said {dispute.gateway_state})"
    return (
        f"{dispute.dispute_id} at {dispute.gateway}: {dispute.state}{said}, "
        f"{format_amount(dispute.amount_minor, payment.currency)}, of it withdrawn "
        f"{format_amount(dispute.withdrawn_minor, payment.currency)}{fee}"
    )


def _command(payment: Payment, command: PaymentCommand) -> str:
    amount = ""
    if command.amount_minor is not None:
        # A placeholder has no currency yet.
        currency = command.currency or payment.currency
        amount = f" of {format_amount(command.amount_minor, currency).strip()}"
    by = f", asked by {command.actor}" if command.actor else ""
    return f"{command.type}{amount}, command {command.command_id}{by}"


def _row(label: str, text: str) -> str:
    # A payment holds what merchants, gateways and people wrote.
    return f"{label:<18}{printable(text)}"


def in_review(sources: Sources, codec: Codec) -> list[Payment]:
    """The payments whose latest snapshot says ``risk_review``, the first to end first."""
    catalogue = build_catalogue(TopicSettings(prefix=sources.prefix))
    counts = partition_counts(sources.bootstrap_servers, catalogue)
    decode = codec.decoder("payment")
    waiting: dict[bytes, Payment] = {}

    def on_record(message: Any) -> None:
        waiting.pop(message.key(), None)
        if message.value() is not None:
            fields = decode(message.value())
            if fields["status"] == "risk_review":
                waiting[message.key()] = payment_from_record(fields)

    for partition in range(counts["payments"]):
        read_partition(
            sources.bootstrap_servers, [catalogue.name("payments")], partition, on_record
        )
    return by_urgency(waiting.values())
