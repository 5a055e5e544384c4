"""How often one card may be tried: the card networks' caps on attempts in a window.

A pure rule over times. A payment knows its own attempts; attempts with the same card in other
payments come from whoever counts by card (``elsewhere_ms``), and until somebody does, each payment
is held to the caps by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pipeline.domain.model import Attempt

ATTEMPTS_MUST_NOT_EXCEED_CAP = "attempts_must_not_exceed_the_cap"

_TRIED = ("charge", "authorize")


class AttemptCap(Struct, frozen=True, kw_only=True):
    """At most ``attempts_max`` charges or authorizations of one card within ``window_ms``."""

    attempts_max: int
    window_ms: int


def cap_reached(
    caps: Iterable[AttemptCap],
    attempts: Iterable[Attempt],
    now_ms: int,
    elsewhere_ms: Iterable[int] = (),
) -> AttemptCap | None:
    """The first cap that one more attempt would exceed, or None when it may be made.

    ``attempts`` are the payment's own, of one card; ``elsewhere_ms`` are the times of attempts
    with the same card in other payments.
    """
    times = [each.started_at_ms for each in attempts if each.kind in _TRIED]
    times.extend(elsewhere_ms)
    for cap in caps:
        since_ms = now_ms - cap.window_ms
        if sum([at_ms > since_ms for at_ms in times]) >= cap.attempts_max:
            return cap
    return None
