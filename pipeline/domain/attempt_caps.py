"""How often a card that is declined may be tried: the card networks' caps, as data.

A cap counts *declined* attempts with one card at one merchant; what succeeded never counts. They
are counted across payments by the card's fingerprint where the risk stage does that
(``card_attempts``). Without a fingerprint a payment knows its own attempts only, and is held to the
caps by those (``cap_reached``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pipeline.domain.lifecycle import DECLINED, MAIN_KINDS, OPEN_STATES
from pipeline.domain.model import Attempt, AttemptCap

# Reasons: too many declines; a decline after which nobody may try the card again.
ATTEMPTS_MUST_NOT_EXCEED_CAP: Final = "attempts_must_not_exceed_the_cap"
CARD_MUST_NOT_BE_TRIED_AGAIN: Final = "card_must_not_be_tried_again"

_DAY_MS: Final = 86_400_000

# What holds unless an installation says otherwise, as the networks' rules stood in 2026.
NETWORK_CAPS: Final = (
    # Visa's rule on excessive reattempts: what was declined may be tried 15 times more in 30 days;
    # each further try costs a fee. (20 times since May 2025; an acquirer may still say 15.) The
    # first decline counts here as well, so this stays below both.
    AttemptCap(name="visa", scheme="visa", declines_max=15, window_ms=30 * _DAY_MS),
    # Mastercard's Transaction Processing Excellence, excessive attempts: a fee after 10 declines of
    # a card at a merchant within 24 hours, and after 35 within 30 days.
    AttemptCap(name="mastercard_day", scheme="mastercard", declines_max=10, window_ms=_DAY_MS),
    AttemptCap(
        name="mastercard_month", scheme="mastercard", declines_max=35, window_ms=30 * _DAY_MS
    ),
)
# How long a card is left alone after a decline that says never again: Mastercard's advice codes 03
# and 21 cost a fee for a try within 30 days; Visa's decline category 1 has no end.
BAR_MS: Final = 30 * _DAY_MS


def caps_for(caps: Iterable[AttemptCap], scheme: str | None) -> tuple[AttemptCap, ...]:
    """The caps that a card of a network is held to, those of single gateways among them.

    A card whose network is not told, or that no cap names, is held to the caps of all networks.
    """
    caps = tuple(caps)
    named = "" if scheme is None else scheme.strip().lower()
    if not any(cap.scheme == named for cap in caps if cap.scheme):
        named = ""
    return tuple(cap for cap in caps if not named or cap.scheme in ("", named))


def cap_reached(
    caps: Iterable[AttemptCap], attempts: Iterable[Attempt], gateway: str, now_ms: int
) -> AttemptCap | None:
    """The first cap that one more attempt at a gateway would exceed, or None when it may be made.

    ``attempts`` are a payment's own with one card; those that may still be declined count as well.
    """
    tried = [
        each
        for each in attempts
        if each.kind in MAIN_KINDS and (each.state == DECLINED or each.state in OPEN_STATES)
    ]
    for cap in caps:
        since_ms = now_ms - cap.window_ms
        counted = sum(
            each.started_at_ms > since_ms and cap.gateway in ("", each.gateway) for each in tried
        )
        if counted >= cap.declines_max and cap.gateway in ("", gateway):
            return cap
    return None
