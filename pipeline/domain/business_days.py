"""Business days and their cut-off, in the place where a merchant is.

A day is a day of the merchant's own time zone. Holidays and the weekend are those of a country, a
part of it or a payment system, as the library ``holidays`` keeps them, and further days by name.
What was decided keeps its day, so a calendar that is corrected later changes nothing that stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.time_zones import time_zone as zone_of
from pipeline.domain.validation import is_date
from pipeline.errors import UserError

_CUT_OFF: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_CALENDAR: Final = re.compile(r"([A-Z]{2,4})(?:-([A-Z0-9]{1,4}))?")
_SATURDAY: Final = 5


class BusinessDays(Struct, frozen=True, kw_only=True):
    """``cut_off`` is HH:MM, or 24:00 for the day's end. ``calendar``: GB, GB-ENG, ECB (TARGET), or
    empty: then only Saturdays and Sundays are free. ``closed``: further days, as ISO dates.

    What was decided long ago may name a zone or a calendar that is not known any more: UserError
    when it is asked of a day, and not before.
    """

    time_zone: str
    cut_off: str
    calendar: str = ""
    closed: tuple[str, ...] = ()

    def is_one(self, day: date) -> bool:
        if day.isoformat() in self.closed:
            return False
        if not self.calendar:
            return day.weekday() < _SATURDAY
        calendar = _calendar(self.calendar)
        return not calendar.is_weekend(day) and day not in calendar

    def cut_off_ms(self, day: date) -> int:
        """The moment from which on funds belong to a later day, in epoch ms.

        A time that the day has twice (the clock is put back) means the first; one that it has not
        (put forward) means as long after the clock was changed.
        """
        if self.cut_off == "24:00":
            local = datetime.combine(day + timedelta(days=1), time())
        else:
            local = datetime.combine(day, time.fromisoformat(self.cut_off))
        return int(local.replace(tzinfo=zone_of(self.time_zone)).timestamp()) * 1000

    def require_known(self, at: str) -> None:
        """UserError, with the place ``at``, when zone or calendar are not known."""
        try:
            zone_of(self.time_zone)
            if self.calendar:
                _calendar(self.calendar)
        except UserError as error:
            raise UserError(f"{at}: {error}") from error

    def within(self, first: date, last: date) -> Iterator[date]:
        """The business days of a span, both ends included."""
        day = first
        while day <= last:
            if self.is_one(day):
                yield day
            day += timedelta(days=1)


def business_days(
    *, time_zone: str, cut_off: str, calendar: str, closed: tuple[str, ...], at: str
) -> BusinessDays:
    """Checked by their form: whether zone and calendar are known is for ``require_known``.
    UserError with the place of what is wrong."""
    if _CUT_OFF.fullmatch(cut_off) is None:
        raise UserError(
            f"{at}: {cut_off!r} is no cut-off: write HH:MM, or 24:00 for the day's end."
        )
    for day in closed:
        if not is_date(day):
            raise UserError(f"{at}: {day!r} in closed is no date: write YYYY-MM-DD.")
    return BusinessDays(time_zone=time_zone, cut_off=cut_off, calendar=calendar, closed=closed)


def _calendar(name: str) -> Any:
    """UserError for one that the library does not know."""
    try:
        return _holidays(name)
    # What the library raises for a country, or a part of one, that it does not know.
    except (NotImplementedError, LookupError, ValueError) as error:
        raise UserError(
            f"there is no calendar {name[:100]!r}; write a country (GB), a part of one (GB-ENG) or "
            "ECB for TARGET."
        ) from error


@lru_cache(maxsize=256)
def _holidays(name: str) -> Any:
    """The library's calendar: it holds dates, and works a year out when it is first asked of it."""
    import holidays

    match = _CALENDAR.fullmatch(name)
    if match is None:
        raise ValueError(name)
    if name in holidays.list_supported_financial(include_aliases=True):
        return holidays.financial_holidays(name)
    return holidays.country_holidays(match[1], subdiv=match[2])
