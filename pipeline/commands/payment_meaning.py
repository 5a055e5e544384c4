"""What a line that a person types means: which command it is, and what of the payment it is about.

The same line typed again must move no money twice, and decide about nothing that came meanwhile.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.domain.model import Payment, PaymentCommand, PaymentEvent

# What moves money by itself, so that the same line typed twice has to be one command.
DERIVED = frozenset({"capture", "refund", "retry", "record_refund"})
# The event of a refusal.
_COMMAND_REJECTED = "command_rejected"
# Begins the ids that resolutions get here.
_RESOLVE_ID = "resolve-"


def with_id(command: PaymentCommand) -> PaymentCommand:
    """The command with its id: the given one, else, where money is moved, derived from all that is
    asked (and numbered where that was refused before: ``asked_anew``), and anything else has a new
    one.

    Not from the time or the person: typing the same line again must not give money back twice. But
    a cancel, a resolution or a review typed again is about how the payment stands by now, and is
    judged by that, where under the id of before it would have no effect. That a resolution means
    what it meant the first time is seen to by ``check_single``.
    """
    from hashlib import sha256
    from secrets import token_hex

    from msgspec.structs import replace

    if command.command_id:
        return command
    if command.type not in DERIVED:
        return replace(command, command_id=f"{command.type}-{token_hex(8)}")
    named = (
        ("operation", command.operation_id),
        ("dispute", command.dispute_id),
        ("gateway", command.gateway),
        ("card_fingerprint", command.card_fingerprint),
        ("card_scheme", command.card_scheme),
        ("finding", command.finding),
        ("figures", command.figures),
    )
    asked = (
        command.merchant_id,
        command.order_id,
        command.type,
        command.amount_minor,
        command.currency,
        command.instrument_token,
        command.decision,
        command.gateway_reference,
        command.evidence,
        command.reason,
        command.override,
        command.business_date,
        # Only what is given: what an older version asked for keeps its id.
        *(each for each in named if each[1] is not None),
    )
    digest = sha256(json.dumps(asked).encode()).hexdigest()
    return replace(command, command_id=f"{command.type}-{digest[:16]}")


def asked_anew(
    command: PaymentCommand, payment: Payment, events: Iterable[PaymentEvent]
) -> PaymentCommand:
    """The command under an id of its own where the same line was asked for before and refused: it
    is judged by how the payment stands by now. What was carried out is not asked for again."""
    from msgspec.structs import replace

    from pipeline.domain.command_memory import is_another, is_remembered

    refused = _refused(events)
    first, number = command.command_id, 1
    while (
        is_remembered(payment, command)
        and not is_another(payment, command)
        and command.command_id in refused
    ):
        number += 1
        command = replace(command, command_id=f"{first}-{number}")
    return command


def _refused(events: Iterable[PaymentEvent]) -> set[str | None]:
    """The commands that were judged and refused, by their ids."""
    from pipeline.domain.commands import COMMAND_MUST_NOT_CHANGE

    return {
        each.operation_id
        for each in events
        if each.type == _COMMAND_REJECTED and each.reason != COMMAND_MUST_NOT_CHANGE
    }


def check_single(payment: Payment, events: Iterable[PaymentEvent]) -> None:
    """Refuse to choose for a person what it is that he resolves.

    Also where only one is unknown: the same line, typed again later, would decide about another.
    One that was refused has decided about nothing.
    """
    from pipeline.domain.commands import choices, unknown_attempts

    unknown = unknown_attempts(payment)
    if unknown and len({a.operation_id for a in payment.attempts}) > 1:
        raise UserError(
            "The payment has several operations; name the one that you resolve with --operation: "
            f"{choices(payment)}."
        )
    carried_out = set(payment.command_ids) - _refused(events)
    if unknown and any(each.startswith(_RESOLVE_ID) for each in carried_out):
        raise UserError(
            "Something was resolved in this payment before; name what is meant now with "
            f"--operation: {choices(payment)}."
        )


def check_nobodys(
    payment: Payment, reference: str, found: Callable[[str, str], Payment | None]
) -> None:
    """Refuse a charge that went back as nobody's: it would be this payment's sale beside that.
    ``found`` has the payment of a merchant and order."""
    from pipeline.domain.ids import unasked_order_id
    from pipeline.domain.unasked_charges import NO_MERCHANT, is_unasked

    for gateway in sorted({each.gateway for each in payment.attempts}):
        order_id = unasked_order_id(gateway, reference.strip())
        other = found(NO_MERCHANT, order_id)
        if other is None or not is_unasked(other) or other.payment_id == payment.payment_id:
            continue
        key = f"{NO_MERCHANT}:{order_id}"
        raise UserError(
            f"{reference.strip()} of {gateway} was given back as a charge that nobody asked for, "
            f"by {key}, so this payment has nothing of it: resolve it with --not-charged, or give "
            f"another reference (`paystream payment show {key}`)."
        )


def review_named(operation: str) -> tuple[str, int]:
    """An operation and its attempt, as `review list` names them: ID or ID:ATTEMPT."""
    operation_id, _, number = operation.partition(":")
    if not number:
        return operation_id, 1
    if not number.isascii() or not number.isdigit() or len(number) > 4:
        raise UserError(f"{operation!r} names no review; `paystream review list` names them.")
    return operation_id, int(number)


def review_now(payment: Payment | None, key: str) -> tuple[str, int]:
    """What is in review, where nobody can have decided about another one by the same line; what
    comes later has to be named."""
    from pipeline.domain.lifecycle import RISK_REVIEW
    from pipeline.domain.reviews import is_first_review, review_name, reviewed

    if payment is None or payment.status != RISK_REVIEW:
        state = "is not known" if payment is None else f"is {payment.status}"
        raise UserError(f"{key} is not in review: it {state}. See `paystream review list`.")
    if not is_first_review(payment):
        raise UserError(
            f"{key} is in review for {review_name(payment)}, not for its order alone: look at it, "
            f"and name it with --operation {review_name(payment)}."
        )
    return reviewed(payment)


def figures_now(payment: Payment | None, key: str) -> str:
    """What is found of the payment as the table has it."""
    from pipeline.domain.findings import amounts_out_of_order

    figures = None if payment is None else amounts_out_of_order(payment)
    if figures is None:
        raise UserError(
            f"No amounts of {key} are out of order, so there is nothing to acknowledge; "
            "check both ids, or look again with `paystream verify`."
        )
    return figures
