"""Instrument tokens that force an outcome whatever the fault plan says, for tests and demos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.gateways.simulator.faults import FaultKind

# No count of calls reaches it: the fault never ends.
EVERY_CALL = 1 << 62


@dataclass(frozen=True, slots=True)
class Forced:
    """What happens to a charge (or refund) made with a test token.

    ``fault`` meets the first ``faulted_calls`` calls of a key; the later ones are served.
    """

    decline_code: str | None = None
    fault: FaultKind | None = None
    faulted_calls: int = 1
    inquiry_always_fails: bool = False
    inquiry_grace: bool = False

    def next_fault(self, faulted_calls: int) -> FaultKind | None:
        """The fault of a key's next call, after ``faulted_calls`` faulted ones."""
        return self.fault if faulted_calls < self.faulted_calls else None


FORCED: Mapping[str, Forced] = {
    "tok_ok": Forced(),
    "tok_decline_insufficient_funds": Forced(decline_code="insufficient_funds"),
    "tok_decline_expired": Forced(decline_code="expired_card"),
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
}


def forced_by(instrument_token: str | None) -> Forced | None:
    """What the token forces, or None if it follows the fault plan."""
    return None if instrument_token is None else FORCED.get(instrument_token)
