"""Charges at a gateway that nobody here asked for, and that a person has given back.

In the gateway's books they lie under whatever their caller wrote there. Each is judged with the
payment that was made for it, by the rules that every other payment has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from pipeline.audit.derivation import unasked_order_id
from pipeline.audit.evidence import PaymentEvidence
from pipeline.audit.gateway_copy import ChargeSeen, GatewayCopy, MovementSeen

COMMAND: Final = "refund_unasked"
CAPTURED: Final = "unasked_capture"
_MERCHANT: Final = "unasked"

_Entry = TypeVar("_Entry", ChargeSeen, MovementSeen)


def is_unasked(payment: PaymentEvidence) -> bool:
    """Whether its key is the one of a charge that a person ordered to be given back."""
    merchant, _, order_id = payment.key.partition(":")
    return merchant == _MERCHANT and any(
        c.type == COMMAND
        and order_id == unasked_order_id(c.gateway or "", c.gateway_reference or "")
        for c in payment.commands
    )


def found_charges(payments: Iterable[PaymentEvidence]) -> dict[str, str]:
    """By the gateway's id of a charge nobody asked for: the key of its payment."""
    return {
        settlement.gateway_reference: payment.key
        for payment in payments
        if payment.key.startswith(f"{_MERCHANT}:")
        for settlement in payment.settlements
        if settlement.kind == CAPTURED
    }


def under_their_payments(gateway: GatewayCopy, found: Mapping[str, str]) -> GatewayCopy:
    """The books with what was found, and what followed it, under the keys of its payments."""
    if not found:
        return gateway
    return replace(
        gateway,
        charges=_moved(gateway.charges, found, "id"),
        movements=_moved(gateway.movements, found, "charge_id"),
    )


def _moved(
    entries: Mapping[str, list[_Entry]], found: Mapping[str, str], field: str
) -> dict[str, list[_Entry]]:
    moved: dict[str, list[_Entry]] = {}
    for key, those in entries.items():
        for entry in those:
            moved.setdefault(found.get(getattr(entry, field), key), []).append(entry)
    return moved
