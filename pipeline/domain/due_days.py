"""What is due when: T+2 in business days, weekends and holidays left out."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta


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
