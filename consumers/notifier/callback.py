"""What a merchant is told of one event: the message's id and its body, the same every time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.model import PaymentEvent

# The columns of the callbacks' table.
KEPT_LENGTH_MAX: Final = 64
TEST_TYPE: Final = "paystream.test"

# What the merchant sees of an event. Left out on purpose: ``detail`` and ``actor``, written for our
# own people, and ``gateway`` and ``attempt``, which are how we do it.
_TOLD: Final = (
    "event_id",
    "merchant_id",
    "order_id",
    "payment_id",
    "sequence",
    "status",
    "reason",
    "amount_minor",
    "currency",
    "operation_id",
    "kind",
    "operation_minor",
)
# What is kept beside the body, to be looked up.
_KEPT: Final = ("event_id", "merchant_id", "order_id", "payment_id", "type")


class CannotBeTold(Exception):
    """The event can be read, and there is no callback that says it."""


class Callback(Struct, frozen=True, kw_only=True, gc=False):
    """One event for one endpoint. ``event_id`` is the message's id, in every repetition."""

    endpoint: str
    event_id: str
    merchant_id: str
    order_id: str
    payment_id: str
    sequence: int
    type: str
    lane: int
    occurred_at_ms: int
    body: bytes


def callback_of(event: PaymentEvent, endpoint: str, lane: int) -> Callback:
    """The callback of an event; the same event gives the same bytes. CannotBeTold when its time is
    none that can be written, or a text in it is none that every database keeps."""
    for name in _KEPT:
        text = getattr(event, name)
        if "\0" in text or len(text) > KEPT_LENGTH_MAX:
            raise CannotBeTold(
                f"{name} has a NUL or more than {KEPT_LENGTH_MAX} characters: {text[:80]!r}"
            )
    told = {name: getattr(event, name) for name in _TOLD}
    try:
        body = body_of(f"payment.{event.type}", event.occurred_at_ms, told)
    except (ValueError, OverflowError, OSError) as error:
        raise CannotBeTold(f"no time is {event.occurred_at_ms} ms after 1970") from error
    return Callback(
        endpoint=endpoint,
        event_id=event.event_id,
        merchant_id=event.merchant_id,
        order_id=event.order_id,
        payment_id=event.payment_id,
        sequence=event.sequence,
        type=event.type,
        lane=lane,
        occurred_at_ms=event.occurred_at_ms,
        body=body,
    )


def body_of(kind: str, at_ms: int, data: dict[str, Any]) -> bytes:
    """The JSON of a message as Standard Webhooks has it: type, timestamp, data."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return json.dumps(
        {
            "type": kind,
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": data,
        },
        separators=(",", ":"),
        sort_keys=True,
    ).encode()
