"""Counting orders of one identity in windows, in a record of bounded size.

A window is cut into sixty buckets; an order counts in the bucket of its check's append time. A
window holds every bucket that reaches into it: it is never shorter than it says and at most a
sixtieth longer. Counts add up, so the order in which checks come does not matter for them.

The same order is counted once: the payments table asks once for each order, and once for each retry
of it with another instrument, which counts as one order more. The newest 256 are remembered here as
a second defence (eight bytes of what names them).
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from pipeline.domain.model import (
    RiskCheck,
    RiskCounted,
    RiskCounter,
    RiskVelocity,
    VelocityBucket,
    VelocitySeries,
)

# A window is at most a sixtieth longer than it says: a minute in an hour, 24 in a day.
BUCKETS: Final = 60
# 256 orders of eight to ten bytes are 2.5 KB; an order comes twice only by somebody's hand.
RECENT_MAX: Final = 256
# 31 days: the longest window that is asked for in practice is a month.
WINDOW_MS_MAX: Final = 31 * 86_400_000
# Series of one identity: as many counting rules as there may be, those of earlier rules included.
SERIES_MAX: Final = 64


def velocity_key(merchant_id: str, by: str, identity: str) -> bytes:
    """The key of an identity's checks and of its row. Two merchants' customers are two."""
    return f"{by}:{merchant_id}:{identity}".encode("utf-8", "surrogatepass")


def bucket_ms(window_ms: int) -> int:
    """The length of a window's buckets: its precision."""
    return -(-window_ms // BUCKETS)


def count_check(
    velocity: RiskVelocity | None, check: RiskCheck, now_ms: int
) -> tuple[RiskVelocity | None, tuple[RiskCounted, ...]]:
    """The identity's row after this order, or None where it was counted before; and the answer.

    ``now_ms``: the check's append time. The answer holds one entry for each counter of the check,
    the order itself included.
    """
    name = f"{check.payment_id}:{check.operation_id}" if check.operation_id else check.payment_id
    digest = sha1(name.encode(), usedforsecurity=False).digest()
    mark = int.from_bytes(digest[:8], "big", signed=True)
    recent = () if velocity is None else velocity.recent
    rows = {} if velocity is None else {_counter(each): each for each in velocity.series}
    if mark in recent:
        return None, tuple(_counted(check.by, c, rows.get(c), now_ms) for c in check.counters)
    for counter in check.counters:
        before = rows.get(counter)
        buckets = _added(() if before is None else before.buckets, counter, check, now_ms)
        rows[counter] = VelocitySeries(
            window_ms=counter.window_ms,
            currency=counter.currency,
            amount_minor_max=counter.amount_minor_max,
            buckets=buckets,
        )
    asked = set(check.counters)
    series = []
    for counter, each in sorted(rows.items()):
        kept = each if counter in asked else _without_expired(each, now_ms)
        if kept.buckets:
            series.append(kept)
    # More than there may be rules: those of rules that are gone give way, never one asked for.
    while len(series) > SERIES_MAX:
        series.remove(next(each for each in series if _counter(each) not in asked))
    counted = RiskVelocity(
        merchant_id=check.merchant_id,
        by=check.by,
        identity=check.identity,
        updated_at_ms=now_ms if velocity is None else max(now_ms, velocity.updated_at_ms),
        series=tuple(series),
        recent=(*recent, mark)[-RECENT_MAX:],
    )
    return counted, tuple(_counted(check.by, c, rows[c], now_ms) for c in check.counters)


def counted_at(velocity: RiskVelocity, counter: RiskCounter, now_ms: int) -> RiskCounted:
    """What a counter holds at a time, nothing added."""
    rows = {_counter(each): each for each in velocity.series}
    return _counted(velocity.by, counter, rows.get(counter), now_ms)


def _added(
    buckets: tuple[VelocityBucket, ...], counter: RiskCounter, check: RiskCheck, now_ms: int
) -> tuple[VelocityBucket, ...]:
    length = bucket_ms(counter.window_ms)
    start = now_ms - now_ms % length
    by_start = {b.start_ms: b for b in buckets if b.start_ms + length > now_ms - counter.window_ms}
    there = by_start.get(start)
    by_start[start] = VelocityBucket(
        start_ms=start,
        count=1 if there is None else there.count + 1,
        sum_minor=check.amount_minor + (0 if there is None else there.sum_minor),
    )
    return tuple(by_start[at] for at in sorted(by_start))


def _without_expired(series: VelocitySeries, now_ms: int) -> VelocitySeries:
    length = bucket_ms(series.window_ms)
    kept = tuple(b for b in series.buckets if b.start_ms + length > now_ms - series.window_ms)
    if len(kept) == len(series.buckets):
        return series
    return VelocitySeries(
        window_ms=series.window_ms,
        currency=series.currency,
        amount_minor_max=series.amount_minor_max,
        buckets=kept,
    )


def _counted(
    by: str, counter: RiskCounter, series: VelocitySeries | None, now_ms: int
) -> RiskCounted:
    buckets = () if series is None else _without_expired(series, now_ms).buckets
    return RiskCounted(
        by=by,
        window_ms=counter.window_ms,
        currency=counter.currency,
        amount_minor_max=counter.amount_minor_max,
        count=sum([b.count for b in buckets]),
        sum_minor=sum([b.sum_minor for b in buckets]),
    )


def _counter(series: VelocitySeries) -> RiskCounter:
    return RiskCounter(
        window_ms=series.window_ms,
        currency=series.currency,
        amount_minor_max=series.amount_minor_max,
    )
