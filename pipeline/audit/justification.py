"""Whether a refusal is justified, and whether a success had its consequence.

Part of the judgement of ``checks``. A dead letter excuses its input from having an effect, so it
has to be right itself; a gateway's word that money moved has to be found in what we say has moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.audit.evidence import (
    MAIN_KINDS,
    NOTICES,
    DeadLetter,
    NotificationSeen,
    OrderSeen,
    PaymentEvidence,
    ResultSeen,
    SnapshotSeen,
)
from pipeline.audit.report import Example

if TYPE_CHECKING:
    from pipeline.audit.checks import Judgement

# What only a record can be refused for that cannot be read, or lies where it does not belong.
# An id that was unknown then may be known by now, so it is not among them.
_BAD_RECORD: Final = frozenset(
    {
        "not_wire_format",
        "wrong_schema",
        "truncated",
        "malformed",
        "trailing_bytes",
        "record_too_large",
        "empty_value",
        "key_mismatch",
        "misrouted",
    }
)
_CONFLICT: Final = "order_conflict"
# Operations whose success moves money, and the settlements that say so.
_SETTLED_BY: Final = {
    "charge": frozenset({"capture"}),
    "capture": frozenset({"capture"}),
    "refund": frozenset({"refund"}),
}


class JustificationChecks:
    """The rules; ``judge`` has what was seen and takes the findings."""

    def __init__(self, judge: Judgement) -> None:
        self._judge = judge

    def letter(self, letter: DeadLetter, example: Example) -> None:
        """An order that can be read and lies where it belongs is not refused for the opposite, and
        none contradicts a payment that it began."""
        if letter.source is None or letter.source[0] != "orders" or letter.key is None:
            return
        payment = self._judge.evidence.payments.get(letter.key)
        order = None if payment is None else _order_at(payment, letter.source)
        if payment is None or order is None:
            return
        if letter.cause in _BAD_RECORD or (
            letter.cause == _CONFLICT
            and order is payment.orders[0]
            and payment.snapshot is None
            and not self._judge.gone(payment, "orders")
        ):
            self._judge.found.broken("dead_letter_unjustified", example)

    def foreign_notices(self, payment: PaymentEvidence) -> None:
        """A notice that names another payment than its order's has no effect on either."""
        judge = self._judge
        for notice in payment.notifications:
            if notice.names is None:
                continue
            place = NOTICES, notice.partition, notice.offset
            example = Example(
                judge.topic[NOTICES], notice.partition, notice.offset, payment.key,
                f"of {notice.gateway}, names payment {notice.names}",
            )  # fmt: skip
            if place in judge.dead:
                judge.found.note("notice_of_another_payment", example)
            elif not judge.cut.processed("payments", *place):
                judge.found.pending("notice_of_another_payment", example)
            elif payment.home not in judge.blind_lanes:
                judge.found.broken("notice_not_dead_lettered", example)

    def instruments(self, payment: PaymentEvidence) -> None:
        """The instrument that is charged is the order's, or one that a command named."""
        orders = self._judge.accepted_orders(payment)
        if not orders or self._judge.gone(payment, "orders"):
            return
        named = {orders[0].instrument_token}
        named |= {c.instrument_token for c in payment.commands if c.instrument_token is not None}
        for request in payment.requests:
            if request.kind in MAIN_KINDS and request.instrument_token not in named:
                self._judge.found.broken(
                    "request_instrument_wrong",
                    self._judge.request_example(
                        payment, request, f"another instrument for {request.operation_id}"
                    ),
                )
                return

    def successes(self, payment: PaymentEvidence) -> None:
        """What a gateway said has moved is settled, or was named as a contradiction."""
        judge, snapshot = self._judge, payment.snapshot
        if (
            snapshot is None
            or not judge.settled(payment)
            or judge.gone(payment, "settlements")
            or judge.gone(payment, "payment-requests")
        ):
            return
        kinds = {request.identity: request.operation_kind for request in payment.requests}
        stopped = {
            (a.operation_id, a.attempt) for a in snapshot.attempts if a.state == "contradicted"
        }
        settled = {(s.movement, s.gateway, s.gateway_reference) for s in payment.settlements}
        returned = _returned(payment, snapshot)
        refused = self._refused(payment)
        for result in payment.results:
            if (
                result.outcome != "succeeded"
                or (result.gateway, result.operation_id, result.gateway_reference) in refused
                or (result.operation_id, result.attempt) in stopped
                or (result.operation_id, result.attempt) in returned
            ):
                continue
            kind = kinds.get(result.identity, "")
            wanted = _SETTLED_BY.get(kind, frozenset())
            if wanted and not any(
                (settlement, result.gateway, result.gateway_reference) in settled
                for settlement in wanted
            ):
                judge.found.broken(
                    "success_without_settlement", judge.result_example(payment, result, kind)
                )

    def _refused(self, payment: PaymentEvidence) -> set[tuple[str, str | None, str | None]]:
        """The successes that were named as a contradiction, by whichever evidence came first: one
        that says the same again has no letter of its own."""
        roles: tuple[tuple[str, tuple[ResultSeen | NotificationSeen, ...]], ...] = (
            ("gateway-results", payment.results),
            ("gateway-notifications", payment.notifications),
        )
        return {
            (each.gateway, each.operation_id, each.gateway_reference)
            for role, said in roles
            for each in said
            if each.outcome == "succeeded"
            and (role, each.partition, each.offset) in self._judge.dead
        }

    def dates(self, payment: PaymentEvidence) -> None:
        """A capture is booked under its order's business date."""
        orders = self._judge.accepted_orders(payment)
        if not orders or self._judge.gone(payment, "orders"):
            return
        for settlement in payment.settlements:
            if settlement.kind == "capture" and settlement.business_date != orders[0].business_date:
                self._judge.found.broken(
                    "settlement_date_wrong",
                    self._judge.settlement_example(
                        payment,
                        settlement,
                        f"booked under {settlement.business_date}, ordered for "
                        f"{orders[0].business_date}",
                    ),
                )
                return


def _returned(payment: PaymentEvidence, snapshot: SnapshotSeen) -> set[tuple[str, int]]:
    """The refunds that are known to have come back before their success was heard: it is older, and
    nothing was booked of either. After a success that was, the return is settled as well."""
    said: set[str | None] = {r.operation_id for r in payment.results if r.code == "returned"}
    said |= {
        n.operation_id for n in payment.own_notifications if n.outcome in ("failed", "declined")
    }
    booked = {s.operation_id for s in payment.settlements if s.movement == "refund_failed"}
    return {
        (a.operation_id, a.attempt)
        for a in snapshot.attempts
        if a.kind == "refund" and a.state == "failed" and a.operation_id in said - booked
    }


def _order_at(payment: PaymentEvidence, source: tuple[str, int, int]) -> OrderSeen | None:
    for order in payment.orders:
        if (order.partition, order.offset) == source[1:]:
            return order
    return None
