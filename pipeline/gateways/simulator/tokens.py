"""Instrument tokens that force an outcome whatever the fault plan says, for tests and demos.

``tok_X`` is about what is asked with the token itself: a charge or an authorization.
``tok_capture_X``, ``tok_void_X`` and ``tok_refund_X`` let the charge or authorization succeed and
are about that later operation on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.gateways.simulator.faults import FaultKind

# No count of calls reaches it: the fault never ends.
EVERY_CALL = 1 << 62

LATER_OPERATIONS = ("capture", "void", "refund")


@dataclass(frozen=True, slots=True)
class Forced:
    """What happens to an operation made with a test token.

    ``fault`` meets the first ``faulted_calls`` calls of a key; the later ones are served.
    ``pending_then``: the operation is accepted, and becomes ``succeeded`` or ``failed`` after the
    plan's ``pending_ms``. ``asks_customer``: it waits for the customer, until an admin call.
    ``fails_later``: it succeeds and fails after ``pending_ms`` all the same.
    ``notice`` is what goes wrong with its notices.
    """

    decline_code: str | None = None
    fault: FaultKind | None = None
    faulted_calls: int = 1
    inquiry_always_fails: bool = False
    inquiry_grace: bool = False
    pending_then: str | None = None
    asks_customer: bool = False
    fails_later: bool = False
    notice: FaultKind | None = None

    def next_fault(self, faulted_calls: int) -> FaultKind | None:
        """The fault of a key's next call, after ``faulted_calls`` faulted ones."""
        return self.fault if faulted_calls < self.faulted_calls else None


FORCED: Mapping[str, Forced] = {
    "tok_ok": Forced(),
    "tok_decline_insufficient_funds": Forced(decline_code="insufficient_funds"),
    "tok_decline_expired": Forced(decline_code="expired_card"),
    "tok_decline_lost_card": Forced(decline_code="lost_card"),
    "tok_decline_do_not_honor": Forced(decline_code="do_not_honor"),
    "tok_slow": Forced(fault=FaultKind.SLOW),
    "tok_rate_limited_once": Forced(fault=FaultKind.RATE_LIMITED),
    "tok_500_before": Forced(fault=FaultKind.ERROR_BEFORE),
    "tok_500_after": Forced(fault=FaultKind.ERROR_AFTER),
    "tok_reset_before": Forced(fault=FaultKind.RESET_BEFORE),
    "tok_reset_after": Forced(fault=FaultKind.RESET_AFTER),
    "tok_hang_before": Forced(fault=FaultKind.HANG_BEFORE),
    "tok_hang_after": Forced(fault=FaultKind.HANG_AFTER),
    # The answer is lost, so that the caller has to inquire, and the inquiry misses at first.
    "tok_not_found_grace": Forced(fault=FaultKind.RESET_AFTER, inquiry_grace=True),
    "tok_always_500": Forced(fault=FaultKind.ERROR_BEFORE, faulted_calls=EVERY_CALL),
    "tok_always_unknown": Forced(
        fault=FaultKind.RESET_AFTER, faulted_calls=EVERY_CALL, inquiry_always_fails=True
    ),
    "tok_in_progress_once": Forced(fault=FaultKind.IN_PROGRESS),
    "tok_malformed": Forced(fault=FaultKind.MALFORMED),
    "tok_pending_success": Forced(pending_then="succeeded"),
    "tok_pending_failure": Forced(pending_then="failed"),
    "tok_action_required": Forced(asks_customer=True),
    "tok_fails_later": Forced(fails_later=True),
    "tok_notice_duplicate": Forced(notice=FaultKind.NOTICE_DUPLICATE),
    "tok_notice_before_answer": Forced(notice=FaultKind.NOTICE_BEFORE_ANSWER),
    "tok_notice_bad_signature": Forced(notice=FaultKind.NOTICE_BAD_SIGNATURE),
}

_UNTROUBLED = Forced()


def forced_by(token: str | None, kind: str = "charge") -> Forced | None:
    """What the token forces on an operation of the kind that is asked for with it, or None if it
    follows the fault plan."""
    if token is None or not token.startswith("tok_"):
        return None
    forced = FORCED.get(token)
    if forced is not None:
        return forced
    for later in LATER_OPERATIONS:
        rest = token.removeprefix(f"tok_{later}_")
        if rest != token and (forced := FORCED.get(f"tok_{rest}")) is not None:
            return forced if later == kind else _UNTROUBLED
    return None


def inherited(token: str | None, kind: str) -> Forced | None:
    """What the token of a charge or authorization forces on a later operation on it.

    A token that speaks of the charge alone forces nothing on what comes later.
    """
    if token is None or not token.startswith("tok_"):
        return None
    if token in FORCED:
        return _UNTROUBLED
    return forced_by(token, kind)
