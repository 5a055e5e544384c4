"""The nouns of a simulated gateway, whatever its wire format: what is asked and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from pipeline.gateways.simulator.faults import FaultKind
from pipeline.gateways.simulator.tokens import Forced

CHARGE = "charge"
AUTHORIZE = "authorize"
CAPTURE = "capture"
VOID = "void"
REFUND = "refund"
KINDS = (CHARGE, AUTHORIZE, CAPTURE, VOID, REFUND)
# What begins a payment at the gateway; the others name one of these as their parent.
FIRST = frozenset({CHARGE, AUTHORIZE})

SUCCEEDED = "succeeded"
PENDING = "pending"
ACTION_REQUIRED = "action_required"
FAILED = "failed"

# An authorization's end, beside its status, which stays ``succeeded``.
VOIDED = "voided"
EXPIRED = "expired"
# How an operation ended that had succeeded and failed all the same.
RETURNED = "returned"


class Asked(msgspec.Struct, frozen=True):
    """One request that may move money, read from the gateway's own wire format.

    ``amount_minor`` may be None for a void only. Charges and authorizations name currency,
    instrument, merchant and order; the others name their parent by the gateway's id or by the
    caller's reference.
    """

    kind: str
    reference: str
    amount_minor: int | None = None
    currency: str | None = None
    instrument_token: str | None = None
    merchant_id: str = ""
    order_id: str = ""
    parent_id: str | None = None
    parent_reference: str | None = None


def payload_hash(asked: Asked) -> bytes:
    """What two requests under one idempotency key are compared by: their meaning, not their bytes,
    so that white space and the order of fields do not count."""
    return hashlib.blake2b(msgspec.json.encode(asked), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as it stands. ``parent_id`` is the charge's or authorization's id.

    ``due_at_ms``: when it becomes ``due_status`` by itself. ``closed``: how an authorization
    ended, or ``returned`` for what failed after it had succeeded.
    """

    seq: int
    kind: str
    id: str
    reference: str
    parent_id: str | None
    amount_minor: int
    currency: str
    merchant_id: str
    order_id: str
    instrument_token: str | None
    idempotency_key: str
    created_at_ms: int
    changed_at_ms: int
    status: str
    code: str | None
    due_at_ms: int | None
    due_status: str | None
    closed: str | None
    expires_at_ms: int | None
    forced_token: str | None

    @property
    def subject_id(self) -> str:
        """The charge or authorization that it is, or is about."""
        return self.parent_id or self.id


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as it stands. ``withdrawn_minor`` is what the gateway holds back for it now."""

    id: str
    charge_id: str
    reference: str
    state: str
    amount_minor: int
    currency: str
    fee_minor: int
    withdrawn_minor: int
    rounds: int
    changed_at_ms: int
    changes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in the gateway's own format."""

    status: int
    body: bytes


class Wire(Protocol):
    """How a gateway says what happened; the books keep these bytes for a replay."""

    def answer(self, operation: Operation) -> Reply:
        """The answer to the call that made the operation."""
        ...

    def refusal(self, code: str, message: str, asked: Asked | None) -> Reply:
        """The answer to a call that is refused; ``code`` is one of the simulator's own words."""
        ...

    def operation_notice(self, operation: Operation, notice_id: str) -> bytes | None:
        """The body of the notice about an operation; None where the gateway sends none."""
        ...

    def dispute_notice(self, dispute: Dispute, charge: Operation, notice_id: str) -> bytes | None:
        """The body of the notice about a dispute; None where the gateway sends none."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What the gateway does with one operation: its own rules, the fault plan and test tokens.

    ``keeps_declines``: a declined operation is kept and found by inquiry.
    """

    decline_code: str | None = None
    pending_then: str | None = None
    pending_ms: int = 0
    asks_customer: bool = False
    fails_later: bool = False
    keeps_declines: bool = False
    authorization_ms: int = 7 * 24 * 60 * 60 * 1_000


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call that may move money. ``next_fault`` says, from the number of faulted calls the
    key has had, which fault this one meets. ``terms`` looks at what the operation is about."""

    key: str
    payload_hash: bytes
    now_ms: int
    next_fault: Callable[[Forced | None, int], FaultKind | None]
    terms: Callable[[Forced | None], Terms] = lambda _: Terms()


@dataclass(frozen=True, slots=True)
class Execution:
    """What a call came to: the answer (None if nothing was executed) and the fault it meets."""

    fault: FaultKind | None = None
    status: int | None = None
    body: bytes = b""
    replayed: bool = False
    operation: Operation | None = None


def shown(operation: Operation) -> dict[str, Any]:
    """An operation for the administration's answers."""
    return {
        "id": operation.id,
        "kind": operation.kind,
        "reference": operation.reference,
        "status": operation.status,
        "code": operation.code,
        "amount_minor": operation.amount_minor,
        "currency": operation.currency,
    }
