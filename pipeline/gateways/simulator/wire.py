"""The JSON bodies of the HTTP contract (docs/simulator.md), checked as they are read."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, TypeVar

import msgspec

# 2**53: beyond it JSON readers that use floats lose the last digit of an amount.
AMOUNT_MINOR_MAX = 1 << 53

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
AmountMinor = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MINOR_MAX)]
Token = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]

_Body = TypeVar("_Body", bound=msgspec.Struct)


class ChargeRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/charges. Fields that are not listed are ignored."""

    reference: Id
    amount_minor: AmountMinor
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")]
    instrument_token: Token
    merchant_id: Id
    order_id: Id
    capture: bool = True


class RefundRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/refunds: the charge by its id or by our reference."""

    amount_minor: AmountMinor
    refund_reference: Id
    charge_id: Id | None = None
    reference: Id | None = None
    # Only to force an outcome with a test token.
    instrument_token: Token | None = None


class OutageRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/admin/outage."""

    mode: str


def decode_charge(raw: bytes) -> ChargeRequest:
    """The request; raises ValueError with a sentence about the first thing wrong."""
    charge = _decode(raw, ChargeRequest)
    if charge.instrument_token.isdigit() and 12 <= len(charge.instrument_token) <= 19:
        raise ValueError("instrument_token looks like a card number; send a token, never a card")
    if not charge.capture:
        raise ValueError("capture must be true: this gateway charges at once")
    return charge


def decode_refund(raw: bytes) -> RefundRequest:
    """The request; raises ValueError with a sentence about the first thing wrong."""
    refund = _decode(raw, RefundRequest)
    if (refund.charge_id is None) == (refund.reference is None):
        raise ValueError("give either charge_id or reference")
    return refund


def payload_hash(request: msgspec.Struct) -> bytes:
    """What two requests under one idempotency key are compared by: their fields, not their bytes,
    so that white space and the order of fields do not count. Charge and refund never compare equal.
    """
    content = type(request).__name__.encode() + msgspec.json.encode(request)
    return hashlib.blake2b(content, digest_size=16).digest()


def error_body(code: str, message: str, **more: Any) -> bytes:
    """The body of every answer that is not a success."""
    content = {"code": code, "error": {"code": code, "message": message}, **more}
    return msgspec.json.encode(content)


def _decode(raw: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
