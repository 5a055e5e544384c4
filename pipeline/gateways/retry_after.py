"""How long an answer asks to be left alone: Retry-After, in seconds or as a date (RFC 9110)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# A gateway that asks for more than an hour is not busy but broken; the retry policy decides.
RETRY_AFTER_S_MAX: Final = 3_600
# The longest of the three forms of an HTTP date has 33 characters.
_TEXT_LENGTH_MAX: Final = 40


def retry_after_ms(text: str | None, date: str | None, now_ms: int) -> int | None:
    """The wait in milliseconds; nonsense counts as not given, a time that has passed as no wait.

    ``date`` is the answer's own: a time is counted from it, since both are of the gateway's clock,
    and only without it from ``now_ms``.
    """
    if text is None or not text.isascii() or len(text) > _TEXT_LENGTH_MAX:
        return None
    if text.isdigit():
        return min(int(text), RETRY_AFTER_S_MAX) * 1_000
    until_ms = _date_ms(text)
    if until_ms is None:
        return None
    told_ms = _date_ms(date)
    wait_ms = until_ms - (now_ms if told_ms is None else told_ms)
    return min(max(wait_ms, 0), RETRY_AFTER_S_MAX * 1_000)


def _date_ms(text: str | None) -> int | None:
    if text is None or len(text) > _TEXT_LENGTH_MAX:
        return None
    try:
        told = parsedate_to_datetime(text)
        # The old form without a zone is in GMT as well.
        told = told.replace(tzinfo=UTC) if told.tzinfo is None else told
        return int((told - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 1_000
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
