"""Which tier a wait takes. A tier's delay is fixed; what differs is the tier that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

# Inquiries that wait in the first and in the second tier; the rest wait in the last one.
INQUIRIES_OF_TIERS: Final = (12, 16)
# One retry in so many waits in the next longer tier: what failed together does not come back
# together. After three sends four payments of seven have left the crowd, and as each tier is twice
# the one before it, the mean wait grows by a quarter.
JITTER_ONE_OF: Final = 4


def retry_tier(delays_ms: Sequence[int], sends: int, retry_after_ms: int | None = None) -> int:
    """The tier of a request that was not sent, from 1: the next longer one after each send.

    A ``retry_after_ms`` asks for the first tier that is not shorter.
    """
    tier = min(max(sends, 1), len(delays_ms))
    if retry_after_ms is None:
        return tier
    return tier_not_shorter(delays_ms, retry_after_ms)


def jittered(delays_ms: Sequence[int], tier: int, mark: str, room_ms: int) -> int:
    """The tier, or for one mark in ``JITTER_ONE_OF`` the next longer one: never a shorter one.

    ``mark`` names the wait, so the same wait draws the same tier whenever it is decided. There is
    no jitter where the longer tier would end after ``room_ms``.
    """
    longer = tier < len(delays_ms) and delays_ms[tier] < room_ms
    return tier + 1 if longer and crc32(mark.encode()) % JITTER_ONE_OF == 0 else tier


def inquiry_tier(delays_ms: Sequence[int], inquiries: int) -> int:
    """The tier of the wait before the next inquiry, from 1."""
    tier = 1
    for held in INQUIRIES_OF_TIERS:
        if inquiries < held:
            break
        inquiries -= held
        tier += 1
    return min(tier, len(delays_ms))


def tier_not_shorter(delays_ms: Sequence[int], duration_ms: int) -> int:
    """The shortest tier that waits at least so long; the longest where none does."""
    for tier, delay_ms in enumerate(delays_ms, 1):
        if delay_ms >= duration_ms:
            return tier
    return len(delays_ms)


def tier_not_longer(delays_ms: Sequence[int], duration_ms: int) -> int:
    """The longest tier that ends in time; the shortest where none does."""
    for tier in range(len(delays_ms), 0, -1):
        if delays_ms[tier - 1] <= duration_ms:
            return tier
    return 1
