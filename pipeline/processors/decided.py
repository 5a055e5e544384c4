"""What people decide about payments, as the audit topic keeps it: who, when, why and about what.

A resolution, a review and a dispute's resolution move money, or stop it, on a person's word alone,
and an acknowledgement lets the audit pass over it. Each is told there in the transaction of the
decision, whether it was carried out or refused, and under the same id if the same is ever decided
again.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from pipeline.domain import commands as rules
from pipeline.domain.card_numbers import mask_card_number_start
from pipeline.domain.decision import Decision
from pipeline.domain.disputes import named
from pipeline.domain.ids import audit_entry_id
from pipeline.domain.lifecycle import ATTEMPT_FAILED
from pipeline.domain.model import Attempt, AuditEntry, Payment, PaymentCommand
from pipeline.domain.payment import amount_of, find_attempt

DONE: Final = "done"
REFUSED: Final = "refused"


def action_of(command: PaymentCommand) -> str:
    """The name of the act, as it is looked for in the audit."""
    if command.type == rules.RESOLVE:
        return "payment_resolve"
    if command.type == rules.RESOLVE_DISPUTE:
        return "dispute_resolve"
    if command.type == rules.ACKNOWLEDGE:
        return "finding_acknowledge"
    if command.type == rules.RECORD_REFUND:
        return "refund_record"
    if command.type == rules.REFUND_UNASKED:
        return "unasked_charge_refund"
    if command.decision in (rules.APPROVE, rules.DENY):
        return f"review_{command.decision}"
    return "review"


def audited(
    made: Decision,
    payment: Payment,
    command: PaymentCommand,
    now_ms: int,
    *,
    attempt: Attempt | None = None,
    rule: str | None = None,
) -> Decision:
    """The decision with the audit's entry of it; other commands are no person's word and have none.

    ``attempt``: the operation that it is about. ``rule``: why it was refused.
    """
    if command.type not in rules.DECIDED_BY_A_PERSON:
        return made
    refused = rule or made.dead_letter
    unasked = command.type == rules.REFUND_UNASKED
    said: dict[str, Any] = {
        "outcome": DONE if refused is None else REFUSED,
        "rule": refused,
        "payment_id": payment.payment_id,
        "command_id": command.command_id,
        "decision": _kept(command.decision),
        "operation_id": _kept(command.operation_id),
        "attempt": command.attempt,
        "dispute_id": _kept(command.dispute_id),
        "gateway": _kept(command.gateway),
        "gateway_reference": _kept(command.gateway_reference),
        "finding": _kept(command.finding),
        "figures": _kept(command.figures),
        "amount_minor": command.amount_minor if unasked else None,
        "currency": command.currency if unasked else None,
        "evidence": _kept(command.evidence),
        "submitted_at_ms": command.submitted_at_ms,
    }
    if attempt is not None:
        said |= {
            "operation_id": attempt.operation_id,
            "kind": attempt.kind,
            "attempt": attempt.attempt,
            "gateway": attempt.gateway,
            "amount_minor": amount_of(payment, attempt),
            "currency": payment.currency,
        }
    disputes = named(payment, command.dispute_id, command.gateway)
    if len(disputes) == 1:
        (dispute,) = disputes
        said |= {
            "gateway": dispute.gateway,
            "was": dispute.state,
            "amount_minor": dispute.amount_minor,
            "currency": payment.currency,
        }
    actor, reason = _kept(command.actor) or "", _kept(command.reason)
    entry = _entry(payment, action_of(command), actor, reason, said, now_ms)
    return replace(made, sends=(entry, *made.sends))


def with_refused_approval(
    made: Decision, attempt: Attempt, now_ms: int, detail: str | None = None
) -> Decision:
    """The decision; where it ends an attempt that waited for its permit and that a person had
    approved, with the audit's entry that nothing came of the approval, and why.

    The approval itself was told as done when it was given: what counts the card answers later.
    """
    payment = made.payment
    if payment is None or attempt.approval is None:
        return made
    ended = find_attempt(payment, attempt.operation_id, attempt.attempt)
    if ended is None or ended.state != ATTEMPT_FAILED:
        return made
    said: dict[str, Any] = {
        "outcome": REFUSED,
        "rule": ended.code,
        "payment_id": payment.payment_id,
        "command_id": attempt.approval,
        "decision": rules.APPROVE,
        "operation_id": attempt.operation_id,
        "gateway": attempt.gateway,
        "detail": detail,
    }
    actor = _kept(attempt.approved_by) or ""
    entry = _entry(payment, f"review_{rules.APPROVE}", actor, None, said, now_ms)
    return replace(made, sends=(entry, *made.sends))


def _entry(
    payment: Payment,
    action: str,
    actor: str,
    reason: str | None,
    said: dict[str, Any],
    now_ms: int,
) -> AuditEntry:
    known = {name: value for name, value in said.items() if value is not None}
    detail = msgspec.json.encode(known).decode()
    return AuditEntry(
        entry_id=audit_entry_id(payment.payment_id, f"{actor}:{reason}:{detail}"),
        actor=actor,
        action=action,
        subject=f"{payment.merchant_id}:{payment.order_id}",
        occurred_at_ms=now_ms,
        reason=reason,
        detail=detail,
    )


def _kept(text: str | None) -> str | None:
    """The topic keeps it for ever: no card number in it, and not long."""
    return None if text is None else mask_card_number_start(text, rules.PROSE_LENGTH_MAX)
