"""What is due when: T+2 in business days, weekends and holidays left out. What cannot be yet."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta, tzinfo

from pipeline.errors import UserError


def is_business_day(day: date, holidays: Collection[str] = ()) -> bool:
    """Monday to Friday, and no holiday (``YYYY-MM-DD``)."""
    return day.weekday() < 5 and day.isoformat() not in holidays


def business_days_after(day: date, count: int, holidays: Collection[str] = ()) -> date:
    """The so many-th business day after a day; 0: the day itself, or the next business day."""
    found = day
    while not is_business_day(found, holidays):
        found += timedelta(days=1)
    if found != day and count:
        # A weekend's sale is counted from the business day that follows.
        count -= 1
    for _ in range(count):
        found += timedelta(days=1)
        while not is_business_day(found, holidays):
            found += timedelta(days=1)
    return found


def last_day_due(today: date, count: int, holidays: Collection[str] = ()) -> date:
    """The latest day whose T+count is over: what happened up to it should have been told by now."""
    found = today - timedelta(days=1)
    while business_days_after(found, count, holidays) >= today:
        found -= timedelta(days=1)
    return found


def latest_day(now_ms: int, zone: tzinfo = UTC) -> str:
    """The latest day that anything of now may be of: tomorrow, where its days are counted."""
    today = datetime.fromtimestamp(now_ms / 1000, zone).date()
    return (today + timedelta(days=1)).isoformat()


def require_come(day: str, what: str, now_ms: int, zone: tzinfo = UTC) -> None:
    """UserError for a day that is yet to come.

    By a slip of the pen, or of whoever made a file, what is of it would be out of everybody's sight
    until then: no break is told of it, and no period before it holds it.
    """
    latest = latest_day(now_ms, zone)
    if day > latest:
        raise UserError(
            f"{what} is of {day}, which is yet to come: nothing is later than {latest} today."
        )
