"""Time zones by their names of IANA, as documents of people name them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.errors import UserError

# Files beside the zones that hold whichever one the machine is set to.
_OF_THE_MACHINE: Final = frozenset({"localtime", "posixrules"})


@lru_cache(maxsize=256)
def time_zone(name: str) -> ZoneInfo:
    """UserError for what is none, or means another one on each machine."""
    try:
        if name not in _OF_THE_MACHINE:
            return ZoneInfo(name)
        why = None
    # A folder of zones, a name that no file can have.
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        why = error
    raise UserError(
        f"{name[:100]!r} is no time zone of IANA; write Europe/London, Asia/Tokyo, ..."
    ) from why
