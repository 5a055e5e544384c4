"""What gateways say, in one vocabulary, and what each word asks for.

Three tables, from which docs/gateways.md is rendered (``python -m pipeline.gateways.document``):

- ``STANDARD``: every standard code, what it means, and the one action it asks for;
- ``GATEWAY_CODES``: for each kind of adapter, the gateway's own code and the standard code;
- ``RETRY_SAFETY``: how far a call came and what it was for, and whether it may be sent again. It is
  what the processors do, cell by cell (``tests/unit/test_retry_safety.py``); they do not read it.

Merchants and notifiers see the standard code; the gateway's own word stays beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct


class Action(StrEnum):
    """What follows from a code."""

    RETRY_HERE = "retry_here"
    OTHER_GATEWAY = "other_gateway"
    ASK_CUSTOMER = "ask_customer"
    NEVER_AGAIN = "never_again"
    FAIL = "fail"
    INQUIRE = "inquire"


class Standard(Struct, frozen=True):
    """One standard code."""

    action: Action
    meaning: str


_RETRY, _OTHER, _ASK, _NEVER, _FAIL, _INQUIRE = (
    Action.RETRY_HERE,
    Action.OTHER_GATEWAY,
    Action.ASK_CUSTOMER,
    Action.NEVER_AGAIN,
    Action.FAIL,
    Action.INQUIRE,
)

STANDARD: Final[Mapping[str, Standard]] = {
    # Declines: what the cardholder can do about it is what tells them apart.
    "insufficient_funds": Standard(_ASK, "the account does not hold the amount"),
    "card_declined": Standard(_ASK, "the issuer says no and not why"),
    "do_not_honor": Standard(_ASK, "the issuer says no and will not say why"),
    "expired_card": Standard(_ASK, "the card is past its date"),
    "authentication_required": Standard(_ASK, "the issuer wants the customer to identify himself"),
    "customer_action_required": Standard(_ASK, "waits for the customer at next_action_url"),
    "lost_card": Standard(_NEVER, "the card is reported lost or stolen"),
    "processing_error": Standard(_OTHER, "the issuer or network failed; nothing was charged"),
    "currency_not_supported": Standard(_OTHER, "the gateway does not take the currency"),
    "invalid_request": Standard(_FAIL, "the gateway will never take this request"),
    # Operations on a payment that its state forbids.
    "parent_not_found": Standard(_FAIL, "the gateway knows no such charge or authorization"),
    "refund_exceeds_captured": Standard(_FAIL, "less than that is left to refund"),
    "capture_exceeds_authorized": Standard(_FAIL, "less than that is left to capture"),
    "already_captured": Standard(_FAIL, "captured, so it can only be refunded"),
    "authorization_voided": Standard(_FAIL, "the authorization was voided"),
    "authorization_expired": Standard(_FAIL, "the authorization has expired"),
    "authorization_not_open": Standard(_FAIL, "the authorization is not (yet) granted"),
    "returned": Standard(_FAIL, "had succeeded, and the money came back all the same"),
    # Certainly not handled.
    "rate_limited": Standard(_RETRY, "turned away unhandled; see retry_after_ms"),
    "throttled": Standard(_RETRY, "one of our own limits for this gateway is used up"),
    "breaker_open": Standard(_RETRY, "the gateway is in trouble and left alone"),
    "send_before_passed": Standard(_RETRY, "too old when it could have been written"),
    "connection_refused": Standard(_RETRY, "nobody listens there, or the name does not resolve"),
    "connect_timeout": Standard(_RETRY, "no connection in time"),
    "pool_timeout": Standard(_RETRY, "no free connection in time"),
    "broken_connection": Standard(_RETRY, "the connection broke before the first byte"),
    "shutting_down": Standard(_RETRY, "not called: the worker stops"),
    "kind_not_supported": Standard(_FAIL, "no adapter knows this kind of request"),
    "parent_missing": Standard(_FAIL, "a capture, void or refund of nothing"),
    # Nothing is certain.
    "timeout": Standard(_INQUIRE, "no answer within the deadline"),
    "soft_deadline": Standard(_INQUIRE, "the call outlived its deadline and was parked"),
    "heard_pending": Standard(
        _INQUIRE, "no answer in time, but an earlier question heard too late that it is pending"
    ),
    "connection_lost": Standard(_INQUIRE, "the connection broke after the first byte"),
    "gateway_error": Standard(_INQUIRE, "a 5xx, or something not in the gateway's contract"),
    "in_progress": Standard(_INQUIRE, "the gateway is busy with the same key"),
    "undecodable_answer": Standard(_INQUIRE, "the answer could not be read"),
    "mismatched_answer": Standard(_INQUIRE, "the answer is about another key, amount or currency"),
    "idempotency_key_reused": Standard(_INQUIRE, "the gateway has the key with another content"),
    "key_retention_passed": Standard(_INQUIRE, "the gateway may have forgotten the key"),
    "possibly_sent": Standard(
        _INQUIRE, "another worker may have sent it, to a gateway that takes a repetition twice"
    ),
    "gateway_not_configured": Standard(
        _INQUIRE, "this worker has no such gateway, and one that had it may have sent it"
    ),
    "redriven": Standard(_INQUIRE, "came out of the dead letters, and may have been sent before"),
    "adapter_error": Standard(_INQUIRE, "the adapter broke its contract"),
    "killed_the_process": Standard(_INQUIRE, "the worker died three times over it"),
    "effect_too_large": Standard(_INQUIRE, "what it led to is larger than its topic takes"),
    "reference_too_long": Standard(
        _INQUIRE, "a success under an id of the gateway's of more than 255 characters"
    ),
    "reference_not_printable": Standard(
        _INQUIRE, "a success under an id of the gateway's that no book takes, as one with a NUL"
    ),
    "reference_missing": Standard(_INQUIRE, "a success without the gateway's reference"),
    "outcome_not_in_contract": Standard(_INQUIRE, "the adapter broke its contract"),
}

# A decline whose code nobody told us is a decline all the same.
UNKNOWN_DECLINE: Final = "card_declined"
# Any other word that is not in the table: nothing is certain.
UNKNOWN_ERROR: Final = "gateway_error"

GATEWAY_CODES: Final[Mapping[str, Mapping[str, str]]] = {
    "simulator": {
        "insufficient_funds": "insufficient_funds",
        "card_declined": "card_declined",
        "generic_decline": "card_declined",
        "do_not_honor": "do_not_honor",
        "expired_card": "expired_card",
        "authentication_required": "authentication_required",
        "lost_card": "lost_card",
        "stolen_card": "lost_card",
        "processing_error": "processing_error",
        "currency_not_supported": "currency_not_supported",
        "invalid_request": "invalid_request",
        "charge_not_found": "parent_not_found",
        "authorization_not_found": "parent_not_found",
        "refund_exceeds_charge": "refund_exceeds_captured",
        "capture_exceeds_authorization": "capture_exceeds_authorized",
        "already_captured": "already_captured",
        "authorization_voided": "authorization_voided",
        "authorization_expired": "authorization_expired",
        "authorization_not_open": "authorization_not_open",
        "returned": "returned",
        "rate_limited": "rate_limited",
        "request_in_progress": "in_progress",
        "idempotency_key_reused": "idempotency_key_reused",
        "internal_error": "gateway_error",
    },
    "northbank": {
        "NSF": "insufficient_funds",
        "REFER": "card_declined",
        "DNH": "do_not_honor",
        "CARD_EXPIRED": "expired_card",
        "SCA_NEEDED": "authentication_required",
        "PICKUP_LOST": "lost_card",
        "PICKUP_STOLEN": "lost_card",
        "ISSUER_FAULT": "processing_error",
        "CURRENCY_NOT_ENABLED": "currency_not_supported",
        "MALFORMED": "invalid_request",
        "NO_SUCH_PAYMENT": "parent_not_found",
        "OVER_REFUND": "refund_exceeds_captured",
        "OVER_CAPTURE": "capture_exceeds_authorized",
        "ALREADY_CAPTURED": "already_captured",
        "AUTHORISATION_CANCELLED": "authorization_voided",
        "AUTHORISATION_EXPIRED": "authorization_expired",
        "AUTHORISATION_NOT_OPEN": "authorization_not_open",
        "RETURNED": "returned",
        "TOO_MANY": "rate_limited",
        "KEY_IN_USE": "in_progress",
        "KEY_REUSED": "idempotency_key_reused",
        "INTERNAL": "gateway_error",
    },
    "pacific": {
        "5": "do_not_honor",
        "12": "invalid_request",
        "15": "card_declined",
        "41": "lost_card",
        "43": "lost_card",
        "51": "insufficient_funds",
        "54": "expired_card",
        "57": "currency_not_supported",
        "65": "authentication_required",
        "76": "parent_not_found",
        "77": "refund_exceeds_captured",
        "78": "capture_exceeds_authorized",
        "79": "already_captured",
        "80": "authorization_voided",
        "81": "authorization_expired",
        "82": "authorization_not_open",
        "90": "returned",
        "94": "idempotency_key_reused",
        "95": "in_progress",
        "96": "processing_error",
        "97": "gateway_error",
        "98": "rate_limited",
    },
    "legacy": {
        "D01": "card_declined",
        "D05": "do_not_honor",
        "D41": "lost_card",
        "D43": "lost_card",
        "D51": "insufficient_funds",
        "D54": "expired_card",
        "D65": "authentication_required",
        "D90": "returned",
        "D96": "processing_error",
        "E12": "invalid_request",
        "E57": "currency_not_supported",
        "E76": "parent_not_found",
        "E77": "refund_exceeds_captured",
        "E78": "capture_exceeds_authorized",
        "E79": "already_captured",
        "E80": "authorization_voided",
        "E81": "authorization_expired",
        "E82": "authorization_not_open",
        "E95": "in_progress",
        "E97": "gateway_error",
        "E98": "rate_limited",
    },
}


def standard_code(adapter: str, gateway_code: str, otherwise: str) -> str:
    """The standard code of a gateway's own one; ``otherwise`` for one that nobody told us."""
    return GATEWAY_CODES[adapter].get(gateway_code, otherwise)


def action_of(code: str | None) -> Action:
    """What a standard code asks for; of a word that is not in the table nothing is certain."""
    known = STANDARD.get(code or "")
    return Action.INQUIRE if known is None else known.action


class Phase(StrEnum):
    """How far a call has come, or what has been found out about it."""

    NOT_WRITTEN = "not_written"
    TURNED_AWAY = "turned_away"
    DECLINED = "declined"
    WRITTEN = "written"
    NOT_FOUND_EARLY = "not_found_early"
    NOT_FOUND_IN_WINDOW = "not_found_in_window"
    NOT_FOUND_PROVEN = "not_found_proven"
    NOT_FOUND_FORGOTTEN = "not_found_forgotten"
    PENDING = "pending"
    SUCCEEDED = "succeeded"


PHASE_MEANINGS: Final[Mapping[Phase, str]] = {
    Phase.NOT_WRITTEN: "this worker wrote not one byte",
    Phase.TURNED_AWAY: "the gateway says that it did not handle it (throttled)",
    Phase.DECLINED: "the gateway's final no",
    Phase.WRITTEN: "at least one byte was written, and no answer that can be believed was read",
    Phase.NOT_FOUND_EARLY: "not found, asked within the gateway's grace time",
    Phase.NOT_FOUND_IN_WINDOW: "not found after the grace time, while send_before has not passed",
    Phase.NOT_FOUND_PROVEN: "not found, asked after send_before and the grace time had passed",
    Phase.NOT_FOUND_FORGOTTEN: "not found, when the gateway may have forgotten the key",
    Phase.PENDING: "the gateway has it and is not done",
    Phase.SUCCEEDED: "the gateway did it",
}


class Again(StrEnum):
    """Whether, and how, something may be sent once more."""

    YES = "yes"
    SAME_ATTEMPT = "same attempt"
    NEW_OPERATION = "new operation"
    NO = "no"


class Safety(Struct, frozen=True):
    """``here``: the same attempt at the same gateway. ``elsewhere``: a new attempt at another."""

    here: Again
    elsewhere: Again


OPERATIONS: Final = ("charge", "authorize", "capture", "void", "refund")
# What no other gateway can do: it is about a charge that this one has.
BOUND: Final = frozenset({"capture", "void", "refund"})

_YES, _SAME, _NEW, _NO = Again.YES, Again.SAME_ATTEMPT, Again.NEW_OPERATION, Again.NO

# (here, elsewhere) of a gateway with keys, and of one without. "Elsewhere" before proof is always
# no: the window in which a frozen worker may still send must have closed first.
_BY_PHASE: Final[Mapping[Phase, tuple[tuple[Again, Again], tuple[Again, Again]]]] = {
    # Another worker may hold the same request: with keys that is harmless. Without, this worker's
    # word suffices only because a request that another one may have held is never sent at all.
    Phase.NOT_WRITTEN: ((_SAME, _NO), (_SAME, _NO)),
    Phase.TURNED_AWAY: ((_SAME, _NO), (_SAME, _NO)),
    # A declined attempt is over: another instrument or gateway is another attempt. Without keys a
    # copy that another worker holds may still be taken, so no other gateway is asked.
    Phase.DECLINED: ((_NO, _YES), (_NO, _NO)),
    Phase.WRITTEN: ((_NO, _NO), (_NO, _NO)),
    Phase.NOT_FOUND_EARLY: ((_NO, _NO), (_NO, _NO)),
    Phase.NOT_FOUND_IN_WINDOW: ((_SAME, _NO), (_NO, _NO)),
    Phase.NOT_FOUND_PROVEN: ((_SAME, _YES), (_NO, _YES)),
    Phase.NOT_FOUND_FORGOTTEN: ((_NO, _NO), (_NO, _NO)),
    Phase.PENDING: ((_NO, _NO), (_NO, _NO)),
    Phase.SUCCEEDED: ((_NO, _NO), (_NO, _NO)),
}


def _safety(phase: Phase, operation: str, idempotent: bool) -> Safety:
    with_keys, without = _BY_PHASE[phase]
    here, elsewhere = with_keys if idempotent else without
    if operation in BOUND:
        if phase is Phase.DECLINED or (phase is Phase.NOT_FOUND_PROVEN and not idempotent):
            # A person or a command may ask again, under a key of its own.
            here = _NEW
        return Safety(here, _NO)
    return Safety(here, elsewhere)


RETRY_SAFETY: Final[Mapping[tuple[Phase, str, bool], Safety]] = {
    (phase, operation, idempotent): _safety(phase, operation, idempotent)
    for phase in Phase
    for operation in OPERATIONS
    for idempotent in (True, False)
}


def retry_safety(phase: Phase, operation: str, *, idempotent: bool = True) -> Safety:
    """What the matrix says about a call."""
    return RETRY_SAFETY[phase, operation, idempotent]
