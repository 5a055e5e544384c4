"""Charges at a gateway that nobody here asked for, and that a person has given back.

In the gateway's books they lie under whatever their caller wrote there. Each is judged with the
payment that was made for it, by the rules that every other payment has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from pipeline.audit.derivation import unasked_order_id
from pipeline.audit.evidence import PaymentEvidence, SettlementSeen
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


def found_charges(payments: Iterable[PaymentEvidence]) -> dict[str, list[PaymentEvidence]]:
    """By the gateway's id of a charge nobody asked for: its payment. Two gateways may have given
    two charges one id."""
    found: dict[str, list[PaymentEvidence]] = {}
    for payment in payments:
        if payment.key.startswith(f"{_MERCHANT}:"):
            for settlement in payment.settlements:
                if settlement.kind == CAPTURED:
                    found.setdefault(settlement.gateway_reference, []).append(payment)
    return found


def taken_by_others(
    payments: Iterable[PaymentEvidence], found: Mapping[str, list[PaymentEvidence]]
) -> Iterator[tuple[PaymentEvidence, SettlementSeen, str]]:
    """Sales by a charge that was found as nobody's, each with the key of that one's payment."""
    owners = {
        (s.gateway, s.gateway_reference): owner.key
        for those in found.values()
        for owner in those
        for s in owner.settlements
        if s.kind == CAPTURED
    }
    for payment in payments if owners else ():
        for settlement in payment.settlements:
            owner_key = owners.get((settlement.gateway, settlement.gateway_reference))
            if owner_key not in (None, payment.key) and settlement.movement == "capture":
                yield payment, settlement, owner_key


def under_their_payments(
    gateway: GatewayCopy,
    found: Mapping[str, list[PaymentEvidence]],
    payments: Mapping[bytes, PaymentEvidence],
) -> GatewayCopy:
    """The books with what was found, and what followed it, under the keys of its payments."""
    if not found:
        return gateway
    owners = _owners(gateway, found, payments)
    return replace(
        gateway,
        charges=_moved(gateway.charges, owners, "id"),
        movements=_moved(gateway.movements, owners, "charge_id"),
    )


def _owners(
    gateway: GatewayCopy,
    found: Mapping[str, list[PaymentEvidence]],
    payments: Mapping[bytes, PaymentEvidence],
) -> dict[tuple[int, str], str]:
    """Whose each found charge is, by the books it is in. Books do not say their gateway's name, so
    of several payments it is the one that had it refunded, else the one of its amount; and another
    gateway's charge of that id may be the sale of the payment that its books name."""
    refunded = {
        (m.books, m.charge_id, m.reference.partition(":")[0])
        for those in gateway.movements.values()
        for m in those
        if m.charge_id in found
    }
    charges = [c for those in gateway.charges.values() for c in those if c.id in found]
    sold = {
        (c.books, c.id)
        for key, those in gateway.charges.items()
        for c in those
        if c.id in found and _is_sale(payments.get(key.encode()), c)
    }
    owners: dict[tuple[int, str], str] = {}
    owned: set[str] = set()
    rules: tuple[Callable[[ChargeSeen, PaymentEvidence], bool], ...] = (
        lambda charge, p: (charge.books, charge.id, p.payment_id) in refunded,
        lambda charge, p: (charge.books, charge.id) not in sold and _is_of(charge, p),
        lambda charge, p: (charge.books, charge.id) not in sold,
        lambda charge, p: True,
    )
    for fits in rules:
        for charge in charges:
            at = charge.books, charge.id
            free = (p for p in found[charge.id] if p.key not in owned and fits(charge, p))
            owner = None if at in owners else next(free, None)
            if owner is not None:
                owners[at] = owner.key
                owned.add(owner.key)
    return owners


def _is_of(charge: ChargeSeen, payment: PaymentEvidence) -> bool:
    return any(
        s.kind == CAPTURED
        and (s.amount_minor, s.currency) == (charge.amount_minor, charge.currency)
        for s in payment.settlements
    )


def _is_sale(payment: PaymentEvidence | None, charge: ChargeSeen) -> bool:
    return payment is not None and any(
        s.kind == "capture" and s.gateway_reference == charge.id for s in payment.settlements
    )


def _moved(
    entries: Mapping[str, list[_Entry]], owners: Mapping[tuple[int, str], str], field: str
) -> dict[str, list[_Entry]]:
    moved: dict[str, list[_Entry]] = {}
    for key, those in entries.items():
        for entry in those:
            at = entry.books, getattr(entry, field)
            moved.setdefault(owners.get(at, key), []).append(entry)
    return moved
