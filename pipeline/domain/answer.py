"""What a gateway adapter answers about one call, before it becomes a record."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

SUCCEEDED: Final = "succeeded"
DECLINED: Final = "declined"
PENDING: Final = "pending"
UNKNOWN: Final = "unknown"
NOT_SENT: Final = "not_sent"
NOT_FOUND: Final = "not_found"
# No answer: the request was refused whole and lies in the dead letters.
DEAD_LETTERED: Final = "dead_lettered"

OUTCOMES: Final = frozenset({SUCCEEDED, DECLINED, PENDING, UNKNOWN, NOT_SENT, NOT_FOUND})


# Of an answer that came when nobody waited for it any more: an earlier question's about the same
# attempt; this call's own, whose result was told before; or one that cannot be true together with
# the one that is told.
EARLIER_QUESTION: Final = "earlier_question"
LATE_ANSWER: Final = "late_answer"
CONTRADICTS: Final = "contradicts"


class GatewayAnswer(Struct, frozen=True, kw_only=True, gc=False):
    """The outcome of one call.

    ``outcome``: succeeded and declined are final; pending means that the gateway knows the charge
    and is not done; unknown means that it may or may not have happened; not_sent means that not
    one byte of the request was written; not_found answers an inquiry only.
    ``code`` is normalised (``insufficient_funds``), ``gateway_code`` is the gateway's own text.
    ``amount_minor`` and ``currency`` are what the gateway says was moved, 0 when nothing was;
    a currency of None means the one that was asked for. ``next_action_url``: where the customer has
    to go, with the outcome pending and the code ``customer_action_required``.
    ``not_found_asked_at_ms``: of a question without an answer, when an earlier one was asked that
    was given up and then answered "not found"; 0 where there is none.
    ``heard``: whose answer this is, where it came when nobody waited for it any more
    (``EARLIER_QUESTION``, ``LATE_ANSWER``, ``CONTRADICTS``).
    """

    outcome: str
    gateway_reference: str | None = None
    code: str | None = None
    gateway_code: str | None = None
    retry_after_ms: int | None = None
    amount_minor: int = 0
    currency: str | None = None
    next_action_url: str | None = None
    not_found_asked_at_ms: int = 0
    heard: str | None = None
