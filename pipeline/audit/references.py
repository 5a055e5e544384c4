"""Settlements that rest on one and the same charge, capture or refund of a gateway.

A gateway moves money once under one id of its own. Whoever names an id a second time, for another
operation or another payment, has counted that money twice. So has a person who names it for two
operations of one payment at two gateways: people take an id, and not always whose it is. (Two
gateways that number alike are no finding.) Who has seen both movements under one id says so of the
operation that is resolved by it (``despite_id``), and answers for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pipeline.audit.derivation import reversal_operation_id
from pipeline.audit.evidence import CommandSeen, PaymentEvidence, SettlementSeen

# What a gateway has an id of its own for. A transfer outside it, a dispute and a refund's return
# are named by what they are about. A charge that nobody asked for and a sale by it: found_charges.
_KINDS: Final = frozenset({"capture", "refund", "unasked_capture", "unasked_refund"})

# Code of an attempt that is booked by a person's word.
_RESOLVED: Final = "resolved_charged"

# What a refund may be of.
_TAKING: Final = ("charge", "authorize", "capture")


def settled_twice(
    payments: Iterable[PaymentEvidence],
) -> Iterator[tuple[PaymentEvidence, SettlementSeen, str]]:
    """Settlements of a movement that an earlier one names as well, and whose that one is. The same
    settlement written again is none of them, nor is what a person has said to be another movement
    of the payment."""
    seen: set[int] = set()
    repeated: set[int] = set()
    for payment in payments:
        yield from _at_two_gateways(payment)
        for settlement in payment.settlements:
            if settlement.kind in _KINDS:
                # A number each for millions of settlements: two that share one are compared below.
                number = hash(_movement(settlement))
                (repeated if number in seen else seen).add(number)
    del seen
    first: dict[tuple[str, str, str], tuple[PaymentEvidence, SettlementSeen]] = {}
    for payment in payments if repeated else ():
        for settlement in payment.settlements:
            movement = _movement(settlement)
            if settlement.kind not in _KINDS or hash(movement) not in repeated:
                continue
            owner, earlier = first.setdefault(movement, (payment, settlement))
            if earlier.settlement_id == settlement.settlement_id:
                continue
            if owner is not payment:
                yield payment, settlement, owner.key
            elif not (
                _is_of_what_they_are_about(payment, earlier, settlement)
                or _by_a_person(payment, earlier, settlement, despite_id=True)
            ):
                yield payment, settlement, earlier.operation_id


def _at_two_gateways(
    payment: PaymentEvidence,
) -> Iterator[tuple[PaymentEvidence, SettlementSeen, str]]:
    named: dict[tuple[str, str], SettlementSeen] = {}
    for settlement in payment.settlements:
        if settlement.kind not in _KINDS:
            continue
        earlier = named.setdefault((settlement.kind, settlement.gateway_reference), settlement)
        if (
            earlier.gateway != settlement.gateway
            and _by_a_person(payment, earlier, settlement)
            and not _by_a_person(payment, earlier, settlement, despite_id=True)
        ):
            yield payment, settlement, earlier.operation_id


def _movement(settlement: SettlementSeen) -> tuple[str, str, str]:
    return settlement.kind, settlement.gateway, settlement.gateway_reference


def _by_a_person(
    payment: PaymentEvidence,
    earlier: SettlementSeen,
    settlement: SettlementSeen,
    *,
    despite_id: bool = False,
) -> bool:
    """Whether a person resolved one of the two by this id; with ``despite_id`` although it is
    another operation's too."""
    about = {earlier.operation_id, settlement.operation_id}
    return any(
        c.type == "resolve"
        and (c.despite_id or not despite_id)
        and (c.gateway_reference or "").strip() == settlement.gateway_reference
        and about & _resolved_by(payment, c, settlement)
        for c in payment.taken_commands
    )


def _resolved_by(
    payment: PaymentEvidence, command: CommandSeen, settlement: SettlementSeen
) -> set[str]:
    """The operations that a person's word may be about, of the kind that was settled; where it
    names none, those that are booked by such a word. What came too late is settled by the id of
    what gives it back."""
    if payment.snapshot is None:
        return {command.operation_id or settlement.operation_id}
    order_id = payment.key.partition(":")[2]
    attempts = [
        each
        for each in payment.snapshot.attempts
        if each.gateway_reference == settlement.gateway_reference
        and command.operation_id in (None, each.operation_id)
    ]
    if command.operation_id is None:
        # Snapshots of before did not keep whose word it was, nor do refunds that came back.
        attempts = [each for each in attempts if each.code == _RESOLVED] or attempts
    attempts = [
        each for each in attempts if (each.kind == "refund") == (settlement.movement == "refund")
    ]
    late = {reversal_operation_id(order_id, each.operation_id, each.attempt) for each in attempts}
    return late | {each.operation_id for each in attempts}


def _is_of_what_they_are_about(payment: PaymentEvidence, *settlements: SettlementSeen) -> bool:
    """Whether all are captures under the id of their authorization, or refunds under that of their
    charge or capture: some gateways know them so. What they come to is judged by the amounts."""
    captures = {r.operation_id for r in payment.requests if r.operation_kind == "capture"}
    ids = {(r.kind, r.gateway, r.gateway_reference) for r in payment.results}
    if payment.snapshot is not None:
        attempts = payment.snapshot.attempts
        captures |= {each.operation_id for each in attempts if each.kind == "capture"}
        ids |= {(each.kind, each.gateway, each.gateway_reference) for each in attempts}
    return all(
        any((kind, s.gateway, s.gateway_reference) in ids for kind in _TAKING)
        if s.movement == "refund"
        else s.operation_id in captures and ("authorize", s.gateway, s.gateway_reference) in ids
        for s in settlements
    )
