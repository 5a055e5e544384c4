"""What is done after, or instead of, a charge: amounts, commands, what came too late, and refunds.

Part of the judgement of ``checks``, by the same rules of ``cut``: an effect without its cause is
broken whenever it is seen; what is missing is missed only of payments that are settled, and only
of operations that are not under way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pipeline.audit.derivation import idempotency_key, reversal_operation_id
from pipeline.audit.evidence import (
    FOR_A_PERSON,
    MAIN_KINDS,
    UNDER_WAY,
    AttemptSeen,
    CommandSeen,
    NotificationSeen,
    PaymentEvidence,
    ResultSeen,
    SettlementSeen,
    SnapshotSeen,
)
from pipeline.audit.found_charges import (
    CAPTURED,
    COMMAND,
    found_charges,
    taken_by_others,
    under_their_payments,
)
from pipeline.audit.gateway_copy import ChargeSeen, GatewayCopy, MovementSeen
from pipeline.audit.owed import REFUSED, given_up, withdrawn_of_minor
from pipeline.audit.report import Example

if TYPE_CHECKING:
    from pipeline.audit.checks import Judgement

# Begins the ids of operations that give back what came too late, and of what it settles.
_LATE: Final = "late-"
# Begin the ids of all operations that no command asked for.
_OWN: Final = (_LATE, "expiry-", "dispute-", "dispute.")
# Until the charge or authorization has its outcome.
WAITING_STATUSES: Final = frozenset({"processing", "outcome_unknown"})
UNDECIDED_STATUSES: Final = WAITING_STATUSES | {"requires_customer_action"}
# Payments that ended without money: what was taken all the same is given back.
ENDED_WITHOUT_MONEY: Final = frozenset(
    {"failed", "rejected", "cancelled", "expired", "no_payment_due"}
)
# Kinds of settlements that give back what was captured, or take that again.
REFUNDS: Final = ("refund", "refund_failed", "external_refund")
# Commands that become an operation of their own id.
_OPERATING: Final = frozenset({"capture", "refund", "retry"})
_OPEN: Final = UNDER_WAY | FOR_A_PERSON
# As many ids of commands a payment remembers; then it forgets the oldest.
_REMEMBERED_MAX: Final = 256


def is_late(payment: PaymentEvidence, settlement: SettlementSeen) -> bool:
    """Whether it books a charge that came when its payment had ended."""
    return _is_reversal(payment, settlement.operation_id)


def _is_reversal(payment: PaymentEvidence, operation_id: str) -> bool:
    """Whether the operation gives back what came too late. Commands may not be named so; an order
    may, and then its own charge is."""
    return operation_id.startswith(_LATE) and operation_id != payment.key.partition(":")[2]


def given_back(payment: PaymentEvidence, operation_id: str, attempt: int) -> bool:
    """Whether the payment has begun to give back what this attempt took too late."""
    # An id of before may be the order's as well, which then is a charge or authorization.
    ids = _reversal(payment, operation_id, attempt), f"{_LATE}{operation_id}-{attempt}"
    snapshot = payment.snapshot
    return snapshot is not None and any(
        a.operation_id in ids and a.kind not in MAIN_KINDS for a in snapshot.attempts
    )


def _reversal(payment: PaymentEvidence, operation_id: str, attempt: int) -> str:
    return reversal_operation_id(payment.key.partition(":")[2], operation_id, attempt)


def evidenced(payment: PaymentEvidence, settlement: SettlementSeen) -> bool:
    """Whether somebody who may said what the settlement says: a gateway, or a person."""
    gateway, reference = settlement.gateway, settlement.gateway_reference
    if settlement.kind == "credit":
        return any(
            c.type == "credit" and c.command_id == settlement.operation_id for c in payment.commands
        )
    if settlement.movement == "external_refund":
        return any(
            c.type == "record_refund" and (c.gateway_reference or "").strip() == reference
            for c in payment.commands
        )
    if settlement.kind == CAPTURED:
        return any(
            c.type == COMMAND and (c.gateway, c.gateway_reference) == (gateway, reference)
            for c in payment.commands
        )
    if settlement.movement in ("dispute", "reversal", "dispute_fee"):
        notices = payment.own_notifications
        return any(n.type == "dispute" and n.gateway == gateway for n in notices)
    said: list[ResultSeen | NotificationSeen] = [*payment.results, *payment.own_notifications]
    if settlement.movement == "refund_failed":
        # What says that nothing is known says nothing of what came back.
        return any(
            r.gateway == gateway
            and r.operation_id == settlement.operation_id
            and r.outcome in ("failed", "declined")
            for r in said
        ) or any(
            c.type == "resolve" and c.returned and c.operation_id == settlement.operation_id
            for c in payment.taken_commands
        )
    return any(
        r.outcome == "succeeded" and r.gateway == gateway and r.gateway_reference == reference
        for r in said
    ) or any(
        c.type == "resolve" and (c.gateway_reference or "").strip() == reference
        for c in payment.commands
    )


class OperationChecks:
    """The rules; ``judge`` has what was seen and takes the findings."""

    def __init__(self, judge: Judgement) -> None:
        self._judge = judge
        self._found = judge.found

    def amounts(self, payment: PaymentEvidence) -> None:
        """Refunded is at most captured, of each charge as well, and captured at most authorized.

        Somebody may have acknowledged it, with these figures; others are a finding anew.
        """
        snapshot = payment.snapshot
        if snapshot is None:
            return
        figures = _out_of_order(snapshot)
        if not figures:
            return
        word = next(
            (
                each
                for each in snapshot.acknowledged
                if (each.finding, each.figures) == ("amounts_out_of_order", "; ".join(figures))
            ),
            None,
        )
        for each in figures:
            if word is None:
                example = self._snapshot_example(payment, each)
                self._found.broken("amounts_out_of_order", example)
            else:
                told = f"{each}; acknowledged by {word.actor}: {word.reason}"
                example = self._snapshot_example(payment, told)
                self._found.acknowledged("amounts_out_of_order", example)

    def commands(self, payment: PaymentEvidence) -> None:
        """Each command was taken, was rejected, or waits: one of them, once."""
        judge, found, snapshot = self._judge, self._found, payment.snapshot
        if not payment.commands:
            return
        for command in payment.commands:
            if not judge.cut.processed(
                "payments", "payment-commands", command.partition, command.offset
            ):
                found.pending("command_without_outcome", self._command_example(payment, command))
        if not judge.settled(payment) or judge.gone(payment, "payment-events"):
            return
        rejections = Counter(payment.refused_commands)
        # Ids of before digests were kept are not compared, and a full memory has forgotten some.
        marked = set() if snapshot is None else set(snapshot.marked_ids)
        full = snapshot is not None and len(snapshot.command_ids) >= _REMEMBERED_MAX
        firsts: dict[str, CommandSeen] = {}
        for command in payment.commands:
            command_id = command.command_id
            place = "payment-commands", command.partition, command.offset
            if place in judge.dead:
                continue
            first = firsts.setdefault(command_id, command)
            if first is not command:
                if (
                    command_id in marked
                    and _asks(first) != _asks(command)
                    and not any(command_id == refused for refused, _ in payment.rejected_commands)
                ):
                    found.broken("conflict_not_named", self._command_example(payment, command))
                continue
            remembered = snapshot is not None and command_id in snapshot.command_ids
            waits = snapshot is not None and command_id in snapshot.waiting
            rejected = rejections[command_id]
            example = self._command_example(payment, command)
            began = _began(payment, command_id)
            if not remembered and not rejected:
                if not full:
                    found.broken("command_without_outcome", example)
            elif (remembered and rejected > 1) or (
                rejected and (waits or (began and not _names_another(payment, command_id)))
            ):
                found.broken("command_answered_twice", example)
            elif (
                not rejected
                and not waits
                and not began
                and (
                    command.type in _OPERATING
                    or command.type == "credit"
                    or (
                        command.type == COMMAND
                        and all(s.kind != CAPTURED for s in payment.settlements)
                        and not judge.gone(payment, "settlements")
                    )
                )
            ):
                found.broken("command_without_outcome", example)

    def given_back(self, payment: PaymentEvidence) -> None:
        """What came too late, or to a payment that ended without money, was given back; what was
        tried, and is tried no more, is named for as long as it is owed."""
        judge, found, snapshot = self._judge, self._found, payment.snapshot
        if snapshot is None or not judge.settled(payment):
            return
        waits = list(given_up(payment))
        for reversal, minor in waits:
            found.pending("waits_for_a_person", self._owed_example(payment, reversal, minor))
        named = {reversal.parent for reversal, _ in waits}
        charges = {
            _reversal(payment, a.operation_id, a.attempt): (a.operation_id, a.attempt)
            for a in snapshot.attempts
            if a.kind in MAIN_KINDS
        }
        refused = {a.operation_id for a in snapshot.attempts if a.state in REFUSED}
        refunded: Counter[str] = Counter()
        # What its gateway would not take back at first may be given back by a later operation of
        # the flow's own, or of a command.
        of_charge = {
            a.operation_id: _reversal(payment, *a.parent)
            for a in snapshot.attempts
            if a.kind in ("refund", "void") and a.parent is not None
        }
        busy = {
            of_charge.get(a.operation_id, a.operation_id)
            for a in snapshot.attempts
            if a.state in _OPEN
        }
        for settlement in payment.settlements:
            if settlement.movement in REFUNDS:
                operation_id = settlement.operation_id
                refunded[of_charge.get(operation_id, operation_id)] -= settlement.amount_minor
        whole = not judge.gone(payment, "settlements")
        for settlement in payment.settlements:
            operation_id = settlement.operation_id
            if (
                whole
                and settlement.movement == "capture"
                and is_late(payment, settlement)
                and operation_id not in busy
                and charges.get(operation_id) not in named
                and _is_kept(payment, settlement, settlement.amount_minor - refunded[operation_id])
            ):
                example = judge.settlement_example(
                    payment, settlement, "captured, and not refunded"
                )
                if operation_id in refused:
                    # It was tried, and the gateway would not: nothing more happens by itself.
                    found.pending("waits_for_a_person", example)
                else:
                    found.broken("late_success_not_reversed", example)
                return
        if snapshot.status not in ENDED_WITHOUT_MONEY or busy or named:
            return
        kept = snapshot.captured_minor - snapshot.refunded_minor
        held = snapshot.authorized_minor - snapshot.captured_minor
        # What banks have taken may be more by now than when the rest went back.
        if kept < 0 or kept > snapshot.withdrawn_minor or held:
            example = self._snapshot_example(
                payment,
                f"{snapshot.status}, and {kept} {snapshot.currency} are kept, {held} held",
            )
            if any(_is_reversal(payment, operation_id) for operation_id in refused):
                found.pending("waits_for_a_person", example)
            else:
                found.broken("late_success_not_reversed", example)

    def found_charges(self) -> None:
        """What was nobody's, and has a payment of its own, is no sale beside that."""
        payments = self._judge.payments.values()
        for payment, sale, owner in taken_by_others(payments, found_charges(payments)):
            self._found.broken(
                "charge_of_two_payments",
                self._judge.settlement_example(
                    payment, sale, f"{sale.gateway_reference} is the charge of {owner} as well"
                ),
            )

    # The gateways' books

    def gateway_books(self, gateway: GatewayCopy) -> None:
        """What gateways did was asked for, is what we say it is, and nothing else is missing."""
        payments = self._judge.payments
        found = found_charges(payments.values())
        gateway = under_their_payments(gateway, found, payments)
        for key in {*gateway.charges, *gateway.movements}:
            payment = payments.get(key.encode())
            charges = gateway.charges.get(key, [])
            movements = gateway.movements.get(key, [])
            self._charged_twice(key, payment, charges, movements)
            self._void_and_capture(key, movements, charges)
            self._of_another_charge(key, movements, charges)
            asked = _asked(payment)
            # Of two charges under one key, which has been named, one is what was asked for.
            settled = {
                c.reference
                for c in charges
                if payment is not None and _is_settled(payment, "capture", c.id)
            }
            attempts = _attempts_by_reference(payment)
            for charge in charges:
                if charge.reference not in asked and charge.id not in found:
                    self._judge.unasked(key, charge, payment)
                elif payment is not None:
                    self._charge(
                        payment, charge, attempts.get(charge.reference), movements, settled
                    )
            # A refund that had failed by the time we heard of it was never one for us.
            undone = {m.reference for m in movements if m.kind == "refund_failed"}
            for movement in movements:
                if movement.kind not in ("capture", "refund", "void"):
                    continue
                if movement.reference not in asked:
                    self._unasked(key, movement, payment)
                elif payment is not None and movement.reference not in undone:
                    self._movement(payment, movement, attempts.get(movement.reference))
            if payment is not None:
                self._told_by_notice(payment, movements)
        for payment in payments.values():
            if payment.settlements:
                self._settled_at_gateway(payment, gateway)

    def _charged_twice(
        self,
        key: str,
        payment: PaymentEvidence | None,
        charges: list[ChargeSeen],
        movements: list[MovementSeen],
    ) -> None:
        """One key is charged once; of several keys all but one are given back, or are with the
        customer by their bank."""
        references = Counter(charge.reference for charge in charges)
        twice = [charge for charge in charges if references[charge.reference] > 1]
        if not twice:
            if len(charges) < 2:
                return
            snapshot = None if payment is None else payment.snapshot
            if payment is not None and (
                not self._judge.settled(payment)
                or (
                    snapshot is not None and any(_gives_back(payment, a) for a in snapshot.attempts)
                )
            ):
                return
            twice = [
                charge
                for charge in charges
                if not _is_given_back(
                    charge,
                    movements,
                    _elsewhere_minor(payment, charge) + _withdrawn_minor(charge, movements),
                )
            ]
            if len(twice) < 2:
                return
        self._found.broken(
            "charged_twice", self._judge.charge_example(key, twice[1], f"also {twice[0].id}")
        )

    def _of_another_charge(
        self, key: str, movements: list[MovementSeen], charges: list[ChargeSeen]
    ) -> None:
        """Whose card a refund goes to is said by its charge and not by the order that it names."""
        own = {(charge.books, charge.id) for charge in charges}
        for movement in movements:
            if (movement.books, movement.charge_id) not in own:
                self._found.broken(
                    "movement_of_another_charge",
                    self._movement_example(
                        key, movement, f"{movement.charge_id} is no charge of this order"
                    ),
                )

    def _void_and_capture(
        self, key: str, movements: list[MovementSeen], charges: list[ChargeSeen]
    ) -> None:
        voided = {m.charge_id: m for m in movements if m.kind == "void"}
        if not voided:
            return
        held = {charge.id: charge.amount_minor for charge in charges}
        captured: Counter[str] = Counter()
        for movement in movements:
            if movement.kind == "capture":
                captured[movement.charge_id] += movement.amount_minor
        for charge_id, void in voided.items():
            if captured[charge_id] and captured[charge_id] + void.amount_minor > held.get(
                charge_id, 0
            ):
                self._found.broken(
                    "void_and_capture",
                    self._movement_example(key, void, f"{charge_id} was captured as well"),
                )

    def _charge(
        self,
        payment: PaymentEvidence,
        charge: ChargeSeen,
        attempt: AttemptSeen | None,
        movements: list[MovementSeen],
        settled: set[str],
    ) -> None:
        judge, found, snapshot = self._judge, self._found, payment.snapshot
        if snapshot is None or not judge.settled(payment):
            return
        said = f"{charge.amount_minor} {charge.currency}"
        # A person may have said what a gateway took that took another amount.
        told_minor = 0 if attempt is None else attempt.amount_minor
        wanted_minor = told_minor or snapshot.amount_minor
        if (charge.amount_minor, charge.currency) != (wanted_minor, snapshot.currency):
            found.broken(
                "charge_amount_wrong",
                judge.charge_example(
                    payment.key,
                    charge,
                    f"{said}, the payment is of {wanted_minor} {snapshot.currency}",
                ),
            )
        if snapshot.status in UNDECIDED_STATUSES or _is_open(attempt):
            return
        why = f" ({snapshot.reason})" if snapshot.reason else ""
        stands = f"for a payment that is {snapshot.status}{why}"
        if charge.kind == "authorization":
            if (
                snapshot.status in ENDED_WITHOUT_MONEY
                and not _is_given_back(charge, movements)
                # One that was asked for is under way, or refused: then the hold lapses by itself.
                and not any(a.kind == "void" and a.state != "voided" for a in snapshot.attempts)
            ):
                found.broken(
                    "late_success_not_reversed",
                    judge.charge_example(payment.key, charge, f"{said} are held {stands}"),
                )
        elif (
            not charge.recent
            and charge.reference not in settled
            and not judge.gone(payment, "settlements")
            # Settlements that are missing altogether have been named already.
            and not (snapshot.captured_minor and not payment.settlements)
        ):
            found.broken(
                "charged_but_not_captured",
                judge.charge_example(payment.key, charge, f"{said} {stands}"),
            )

    def _movement(
        self, payment: PaymentEvidence, movement: MovementSeen, attempt: AttemptSeen | None
    ) -> None:
        """A capture or refund of the books is settled, once the payment is done with it."""
        if movement.kind == "void" or movement.recent or _is_open(attempt):
            return
        judge = self._judge
        if payment.snapshot is None or not judge.settled(payment):
            return
        if judge.gone(payment, "settlements"):
            return
        if not _is_settled(payment, movement.kind, movement.id):
            name = "charged_but_not_captured"
            if movement.kind == "refund":
                name = "refund_without_settlement"
            self._found.broken(
                name,
                self._movement_example(
                    payment.key,
                    movement,
                    f"a {movement.kind} of {movement.amount_minor} {movement.currency} that no "
                    "settlement names",
                ),
            )

    def _told_by_notice(self, payment: PaymentEvidence, movements: list[MovementSeen]) -> None:
        """What a gateway did by itself comes by a notice, which may still be on its way."""
        # By our own keys: of a gateway that knows refunds by their charge's id, all have one.
        settled = {
            idempotency_key(payment.payment_id, s.operation_id, s.gateway, 1)
            for s in payment.settlements
            if s.movement == "refund"
        }
        by_itself = [
            m
            for m in movements
            if m.kind in _BY_ITSELF and (m.kind != "refund_failed" or m.reference in settled)
        ]
        if not by_itself:
            return
        theirs, ours = Counter[str](), Counter[str]()
        for movement in by_itself:
            kind, sign = _BY_ITSELF[movement.kind]
            theirs[kind] += sign * movement.amount_minor
        for settlement in payment.settlements:
            # A dispute that was told only once it was won moved nothing: its sum counts.
            kind = "dispute" if settlement.movement == "reversal" else settlement.movement
            ours[kind] += settlement.amount_minor
        for kind, amount_minor in theirs.items():
            if amount_minor != ours[kind]:
                last = [m for m in by_itself if _BY_ITSELF[m.kind][0] == kind][-1]
                self._found.pending(
                    "notice_outstanding",
                    self._movement_example(
                        payment.key,
                        last,
                        f"{kind}: {amount_minor} {last.currency} in the books, {ours[kind]} told",
                    ),
                )

    def _unasked(self, key: str, movement: MovementSeen, payment: PaymentEvidence | None) -> None:
        judge = self._judge
        if movement.recent:
            return
        home = payment.home if payment else None
        if home in judge.blind_lanes or (home is None and judge.blind_lanes):
            return
        if payment is None or judge.gone(payment, "payment-requests"):
            return
        self._found.broken(
            "operation_without_request",
            self._movement_example(
                key, movement, f"no request has the reference {movement.reference}"
            ),
        )

    def _settled_at_gateway(self, payment: PaymentEvidence, gateway: GatewayCopy) -> None:
        """Each settlement has its counterpart in the books, of the same amount."""
        judge, found = self._judge, self._found
        movements = gateway.movements.get(payment.key, [])
        # Several refunds of a charge may have one id, and several captures of a hold.
        known: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        for c in gateway.charges.get(payment.key, []):
            if c.kind == "charge":
                known["capture", c.id].append((c.amount_minor, c.currency))
        for m in movements:
            known[m.kind, m.id].append((m.amount_minor, m.currency))
        failed = {m.reference for m in movements if m.kind == "refund_failed"}
        for settlement in payment.settlements:
            kind, reference = settlement.movement, settlement.gateway_reference
            if kind == "refund_failed":
                key = idempotency_key(
                    payment.payment_id, settlement.operation_id, settlement.gateway, 1
                )
                if key not in failed:
                    found.broken(
                        "settlement_without_refund",
                        judge.settlement_example(
                            payment, settlement, f"the books have no failure of {reference}"
                        ),
                    )
            if kind not in ("capture", "refund"):
                continue
            theirs = known.get((kind, reference))
            if theirs is None:
                charge = kind == "capture"
                found.broken(
                    "captured_without_charge" if charge else "settlement_without_refund",
                    judge.settlement_example(
                        payment,
                        settlement,
                        f"the books have no {'charge' if charge else 'refund'} {reference}",
                    ),
                )
            elif (abs(settlement.amount_minor), settlement.currency) not in theirs and (
                # Where the settlements contradict the payment as well, that has been said.
                _agrees(payment, kind)
            ):
                found.broken(
                    "settlement_amount_wrong",
                    judge.settlement_example(
                        payment,
                        settlement,
                        f"{settlement.amount_minor} {settlement.currency}, the gateway moved "
                        f"{' or '.join(f'{minor} {currency}' for minor, currency in theirs)}",
                    ),
                )
        for books, kind in _DISPUTES.items():
            ours = sum(s.amount_minor for s in payment.settlements if s.kind == kind)
            theirs_minor = sum(m.amount_minor for m in movements if m.kind == books)
            if abs(ours) > theirs_minor:
                last = [s for s in payment.settlements if s.kind == kind][-1]
                found.broken(
                    "settlement_without_dispute",
                    judge.settlement_example(
                        payment,
                        last,
                        f"{abs(ours)} {last.currency} in all, the books have {theirs_minor}",
                    ),
                )

    # Examples

    def _snapshot_example(self, payment: PaymentEvidence, detail: str) -> Example:
        return self._judge.snapshot_example(payment, detail)

    def _owed_example(self, payment: PaymentEvidence, reversal: AttemptSeen, minor: int) -> Example:
        """What was captured too late, where that was settled under the reversal's id."""
        judge, snapshot = self._judge, payment.snapshot
        for settlement in payment.settlements:
            same = settlement.operation_id == reversal.operation_id
            if settlement.movement == "capture" and same:
                return judge.settlement_example(payment, settlement, "captured, and not refunded")
        currency = "" if snapshot is None else snapshot.currency
        said = f"the {reversal.kind} {reversal.operation_id} of {minor} {currency} was given up"
        return self._snapshot_example(payment, said)

    def _command_example(self, payment: PaymentEvidence, command: CommandSeen) -> Example:
        return Example(
            self._judge.topic["payment-commands"],
            command.partition,
            command.offset,
            payment.key,
            f"{command.type} {command.command_id}",
        )

    @staticmethod
    def _movement_example(key: str, movement: MovementSeen, detail: str) -> Example:
        return Example("gateway", None, None, key, f"{movement.id}: {detail}")


# Entries of the books that nobody asked for, by the kind of settlement they become.
_DISPUTES: Final = {
    "dispute": "dispute",
    "dispute_won": "reversal",
    "dispute_fee": "dispute_fee",
}
# The same by what they add to, and their sign there.
_BY_ITSELF: Final = {
    "dispute": ("dispute", -1),
    "dispute_won": ("dispute", 1),
    "dispute_fee": ("dispute_fee", -1),
    "refund_failed": ("refund_failed", 1),
}


def _is_kept(payment: PaymentEvidence, charge: SettlementSeen, left_minor: int) -> bool:
    """Whether what is left of a late charge is neither with a bank that may keep it, nor went with
    the payment's other money; more than all of it cannot have gone back."""
    snapshot = payment.snapshot
    if snapshot is None or left_minor <= 0:
        return left_minor < 0
    kinds = ("capture", *REFUNDS)
    room_minor = sum(s.amount_minor for s in payment.settlements if s.movement in kinds)
    # What still may go back of the payment's other charges is owed twice only once it has not. Of
    # what gives late charges back the withdrawn sums know.
    room_minor -= sum(
        a.amount_minor or snapshot.amount_minor
        for a in snapshot.attempts
        if a.kind == "refund" and a.state in _OPEN and not _is_reversal(payment, a.operation_id)
    )
    return (
        left_minor > withdrawn_of_minor(snapshot, charge.gateway, charge.gateway_reference)
        and room_minor > snapshot.withdrawn_minor
    )


def _asks(command: CommandSeen) -> tuple[object, ...]:
    return (
        command.type, command.amount_minor, command.gateway_reference, command.instrument_token,
    )  # fmt: skip


def _out_of_order(snapshot: SnapshotSeen) -> list[str]:
    """The figures that are not in order, in the words in which they are acknowledged."""
    refunded, captured = snapshot.refunded_minor, snapshot.captured_minor
    authorized = snapshot.authorized_minor
    if not 0 <= refunded <= captured <= authorized:
        return [f"refunded {refunded}, captured {captured}, authorized {authorized}"]
    taken, back = _by_charge(snapshot) if refunded else (Counter(), Counter())
    mains = [(a.operation_id, a.attempt) for a in snapshot.attempts if a.kind in MAIN_KINDS]
    return [
        f"refunded {back[charge]} of the {taken[charge]} captured by {charge[0]}, "
        f"attempt {charge[1]}"
        for charge in dict.fromkeys([*mains, *back])
        if back[charge] > taken[charge]
    ]


def _by_charge(
    snapshot: SnapshotSeen,
) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]]]:
    """What was captured and what was refunded of each charge, where the table says of which."""
    taken: Counter[tuple[str, int]] = Counter()
    back: Counter[tuple[str, int]] = Counter()
    if any(a.kind == "capture" and a.parent is None for a in snapshot.attempts):
        # Of before it was kept.
        return taken, back
    for attempt in snapshot.attempts:
        amount_minor = attempt.amount_minor or snapshot.amount_minor
        if attempt.state == "charged":
            taken[attempt.operation_id, attempt.attempt] += amount_minor
        elif attempt.parent is not None:
            if attempt.state == "captured":
                taken[attempt.parent] += amount_minor
            elif attempt.state == "refunded":
                back[attempt.parent] += amount_minor
    return taken, back


def _began(payment: PaymentEvidence, operation_id: str) -> bool:
    """Whether the command's own operation is there: an attempt, or the credit it books."""
    snapshot = payment.snapshot
    return (
        snapshot is not None and any(a.operation_id == operation_id for a in snapshot.attempts)
    ) or any(s.operation_id == operation_id for s in payment.settlements)


def _names_another(payment: PaymentEvidence, command_id: str) -> bool:
    """Whether the id is one that operations of the flow's own have; such a command is refused."""
    return command_id == payment.key.partition(":")[2] or command_id.startswith(_OWN)


def _asked(payment: PaymentEvidence | None) -> set[str]:
    if payment is None:
        return set()
    return {
        idempotency_key(payment.payment_id, r.operation_id, r.gateway, r.attempt)
        for r in payment.requests
    }


def _attempts_by_reference(payment: PaymentEvidence | None) -> dict[str, AttemptSeen]:
    if payment is None or payment.snapshot is None:
        return {}
    return {
        idempotency_key(payment.payment_id, a.operation_id, a.gateway, a.attempt): a
        for a in payment.snapshot.attempts
    }


def _is_open(attempt: AttemptSeen | None) -> bool:
    return attempt is not None and attempt.state in _OPEN


def _gives_back(payment: PaymentEvidence, attempt: AttemptSeen) -> bool:
    return _is_reversal(payment, attempt.operation_id) and attempt.state in _OPEN


def _elsewhere_minor(payment: PaymentEvidence | None, charge: ChargeSeen) -> int:
    """What people say was given back of a charge otherwise than by its gateway."""
    attempt = _attempts_by_reference(payment).get(charge.reference)
    if payment is None or payment.snapshot is None or attempt is None:
        return 0
    mine = {
        a.operation_id
        for a in payment.snapshot.attempts
        if a.parent == (attempt.operation_id, attempt.attempt)
    }
    return -sum(
        s.amount_minor
        for s in payment.settlements
        if s.movement == "external_refund" and s.operation_id in mine
    )


def _withdrawn_minor(charge: ChargeSeen, movements: Iterable[MovementSeen]) -> int:
    """What banks have of a charge by disputes."""
    signs = {"dispute": 1, "dispute_won": -1}
    return sum(
        each.amount_minor * signs.get(each.kind, 0)
        for each in movements
        if each.charge_id == charge.id
    )


def _is_given_back(
    charge: ChargeSeen, movements: Iterable[MovementSeen], elsewhere_minor: int = 0
) -> bool:
    back = elsewhere_minor
    for movement in movements:
        if movement.charge_id == charge.id:
            if movement.kind in ("void", "expiry"):
                return True
            if movement.kind in ("refund", "refund_failed"):
                back += movement.amount_minor * (1 if movement.kind == "refund" else -1)
    return back >= charge.amount_minor


def _is_settled(payment: PaymentEvidence, kind: str, reference: str) -> bool:
    return any(s.movement == kind and s.gateway_reference == reference for s in payment.settlements)


def _agrees(payment: PaymentEvidence, kind: str) -> bool:
    snapshot = payment.snapshot
    if snapshot is None:
        return True
    kinds = ("capture",) if kind == "capture" else REFUNDS
    total = sum(s.amount_minor for s in payment.settlements if s.movement in kinds)
    said = snapshot.captured_minor if kind == "capture" else -snapshot.refunded_minor
    return total == said and all(s.currency == snapshot.currency for s in payment.settlements)
