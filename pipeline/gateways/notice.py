"""A gateway's notice, verified and read: evidence for the table, whatever the gateway calls it."""

from __future__ import annotations

from msgspec import Struct

OPERATION = "operation"
DISPUTE = "dispute"

DISPUTE_STATES = frozenset({"inquiry", "opened", "won", "lost", "pre_arbitration"})


class Notice(Struct, frozen=True, kw_only=True):
    """What a notice says, in the fields of a GatewayNotification.

    ``payment_id``, ``operation_id`` and ``attempt`` are read from our reference, where the notice
    carries it; ``merchant_id`` and ``order_id`` are what the gateway repeats of our request. A
    notice that carries only the gateway's own id gives ``gateway_reference`` and no more.
    ``outcome`` is succeeded, declined, pending, or failed: after it had succeeded.
    ``event_sequence`` rises with each event about one dispute: the gateway's own number of it, or
    its time in epoch milliseconds; None where the gateway tells neither.
    """

    notification_id: str
    gateway: str
    type: str
    amount_minor: int
    currency: str
    reference: str | None = None
    payment_id: str | None = None
    operation_id: str | None = None
    attempt: int | None = None
    merchant_id: str | None = None
    order_id: str | None = None
    kind: str | None = None
    outcome: str | None = None
    gateway_reference: str | None = None
    dispute_id: str | None = None
    dispute_state: str | None = None
    event_sequence: int | None = None
    fee_minor: int = 0
    code: str | None = None
    gateway_code: str | None = None


class NoticeRefused(Struct, frozen=True):
    """Why a notice is not taken, as one word. ``signature_...`` and ``timestamp_...`` mean that
    nobody knows who sent it: answer 401. The others are genuine and cannot be read: answer 400."""

    reason: str

    @property
    def genuine(self) -> bool:
        return not self.reason.startswith(("signature_", "timestamp_", "no_"))


class OurReference(Struct, frozen=True):
    """The parts of an idempotency key, which is our reference at the gateway."""

    payment_id: str
    operation_id: str
    gateway: str
    attempt: int


def our_reference(reference: str) -> OurReference | None:
    """The parts of ``payment_id:operation_id:gateway:attempt``; None for anything else.

    An operation id may hold colons itself (an order's id may), so it is what is left in the middle.
    """
    payment_id, _, rest = reference.partition(":")
    parts = rest.rsplit(":", 2)
    if len(parts) != 3 or not payment_id or not all(parts):
        return None
    operation_id, gateway, attempt = parts
    if not attempt.isascii() or not attempt.isdigit() or len(attempt) > 4:
        return None
    return OurReference(payment_id, operation_id, gateway, int(attempt))
