"""Closed periods: which day an entry counts under, decided by the log alone.

Closing takes the ledger's next offset of every partition as its *cut*. A settlement before the cut
belongs to the period; one from the cut on came too late and counts under the first day after it.
So the same topics always give the same days, whoever reads them and when.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from msgspec import Struct

from pipeline.domain.validation import is_date
from pipeline.errors import UserError

_MONTH: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


class Closing(Struct, frozen=True):
    """Everything up to and with ``through`` is closed; ``cuts`` by partition, 0 where none is.
    ``tiers_over_versions``: a month's volume is one whatever versions of the fee schedule it
    spans; closes that were decided before that was so counted each version by itself."""

    sequence: int
    through: str
    cuts: Mapping[int, int]
    tiers_over_versions: bool = False


def booked_date(
    business_date: str, partition: int, offset: int, closings: Sequence[Closing]
) -> str:
    """The day a settlement counts under if its own was closed before it came; else ""."""
    closed = max((c.through for c in closings if offset >= c.cuts.get(partition, 0)), default="")
    return day_after(closed) if business_date <= closed else ""


def day_after(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def last_day(period: str) -> str:
    """The last day of ``YYYY-MM`` or ``YYYY-MM-DD``; UserError when it is neither."""
    if is_date(period):
        return period
    if _MONTH.fullmatch(period) is None:
        raise UserError(f"{period!r} is no period: write a month, YYYY-MM, or a day, YYYY-MM-DD.")
    year, month = int(period[:4]), int(period[5:])
    return f"{period}-{monthrange(year, month)[1]:02d}"


def require_ended(through: str, now_ms: int) -> None:
    """UserError while the period's last day is still running, by UTC, or is yet to come.

    Whatever comes after a close counts under a later day, so a period closed too early, by a slip
    of the pen for one, would take the days before it along for good.
    """
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
    if through >= today:
        raise UserError(
            f"the period through {through} has not ended: it is {today} (UTC). A period is closed "
            "when its last day is over."
        )


def months_ended(after: str, through: str, months: Sequence[str]) -> list[str]:
    """Of these months, those whose last day is closed now and was not before."""
    return sorted({m for m in months if after < last_day(m) <= through})
