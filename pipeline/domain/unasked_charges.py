"""A charge at a gateway that no operation of ours asked for, and that a person gives back.

It has a payment of its own, whose key is derived from the gateway's own id of the charge: however
often it is ordered, by whichever row of a report it was found, it is found and given back once. It
belongs to no merchant: its settlements have kinds of their own, which no merchant is paid for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.domain.ids import unasked_order_id
from pipeline.domain.keys import valid_id
from pipeline.domain.lifecycle import CHARGE
from pipeline.domain.model import Payment, PaymentCommand
from pipeline.domain.posting import (
    DISPUTE,
    DISPUTE_FEE,
    EXTERNAL_REFUND,
    NO_GATEWAY,
    REFERENCE_LENGTH_MAX,
    REFUND,
    REFUND_FAILED,
    REVERSAL,
    UNASKED_DISPUTE,
    UNASKED_DISPUTE_FEE,
    UNASKED_EXTERNAL_REFUND,
    UNASKED_REFUND,
    UNASKED_REFUND_FAILED,
    UNASKED_REVERSAL,
)

# Stands where a merchant's id would, in the key of such a payment.
NO_MERCHANT: Final = "unasked"
# Code of the charge, which was never sent by us.
UNASKED: Final = "unasked"

MERCHANT_MUST_NOT_BE_RESERVED: Final = "merchant_must_not_be_reserved"
UNASKED_MUST_HAVE_ITS_OWN_KEY: Final = "unasked_charge_must_have_its_own_key"
UNASKED_MUST_BE_NAMED: Final = "gateway_and_its_reference_must_be_given"

# The kinds of settlements of such a payment, by those that its operations have elsewhere.
_KIND_OF: Final[Mapping[str, str]] = {
    REFUND: UNASKED_REFUND,
    REFUND_FAILED: UNASKED_REFUND_FAILED,
    EXTERNAL_REFUND: UNASKED_EXTERNAL_REFUND,
    DISPUTE: UNASKED_DISPUTE,
    REVERSAL: UNASKED_REVERSAL,
    DISPUTE_FEE: UNASKED_DISPUTE_FEE,
}


def unasked_command_id(order_id: str) -> str:
    """One for each charge: the same order again, from wherever, has no effect."""
    return f"unasked-{order_id}"


def broken_naming(command: PaymentCommand) -> str | None:
    """The rule by which a command does not name a charge nobody asked for, or None."""
    gateway, reference = command.gateway or "", command.gateway_reference or ""
    if (
        not valid_id(gateway)
        or gateway == NO_GATEWAY
        or not 0 < len(reference) <= REFERENCE_LENGTH_MAX
        or not reference.isprintable()
    ):
        return UNASKED_MUST_BE_NAMED
    derived = NO_MERCHANT, unasked_order_id(gateway, reference)
    if (command.merchant_id, command.order_id) != derived:
        return UNASKED_MUST_HAVE_ITS_OWN_KEY
    return None


def is_unasked(payment: Payment) -> bool:
    """Whether the payment is that of a charge nobody asked for."""
    if payment.merchant_id != NO_MERCHANT or not payment.attempts:
        return False
    charge = payment.attempts[0]
    return charge.kind == CHARGE and charge.code == UNASKED and not charge.tries


def settled_kind(payment: Payment, kind: str) -> str:
    """The kind of a settlement of this payment."""
    return _KIND_OF.get(kind, kind) if is_unasked(payment) else kind
