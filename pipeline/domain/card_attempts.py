"""Counting the declined attempts with one card across all payments: may it be tried once more?

An attempt asks for a permit before it is made and its outcome is told afterwards; both come to the
card's own row, one after the other, so a cap is exact however many workers there are. While an
attempt is in flight it may yet be declined: what is declined and in flight together never exceeds a
cap. Whoever asks for more waits in the row until it is known what became of those in flight, so
nobody is refused for a decline that did not come.

A success or a failure releases its permit and counts nothing. A decline counts from the time at
which it was told. One that says never again bars the card, until it turns out to have been none:
then what other declines bar is left. Attempts are known by 64 bits of a hash
of their idempotency key: asking twice while one is in flight, or telling twice, changes nothing.
Who asks again after the end may get a permit again, and the payment gives it back at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha1
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.ids import payment_id
from pipeline.domain.model import (
    AttemptCap,
    AttemptMark,
    AttemptWaiting,
    CardBar,
    RiskCheck,
    RiskResult,
    RiskVelocity,
)
from pipeline.domain.risk_velocity import WINDOW_MS_MAX

# Outcomes of attempts, as the payments table tells them.
DECLINED: Final = "declined"
NEVER_AGAIN: Final = "never_again"
RELEASED: Final = "released"

# Answers.
GIVEN: Final = "given"
REFUSED: Final = "refused"
BARRED: Final = "barred"
# The rule of a refusal when too many wait already.
TOO_MANY_WAIT: Final = "too_many_attempts_wait"

# More than any cap counts (``CAP_DECLINES_MAX``), few enough that a row stays small.
DECLINED_MAX: Final = 128
CAP_DECLINES_MAX: Final = 100
# One card is in hundreds of open attempts at one merchant only if somebody tests cards.
# A card that is barred is not tried: more bars than these come only of what was in flight by then.
BARS_MAX: Final = 32
IN_FLIGHT_MAX: Final = 256
WAITING_MAX: Final = 256
# Successes of what was declined, of which the decline is not counted yet: rare, and one at a time.
TAKEN_BACK_MAX: Final = 32

# Code of a release: the attempt had been declined and succeeded all the same. Its decline counts no
# more, whichever of the two words comes first.
TAKEN_BACK: Final = "taken_back"


class _Refusal(Struct, frozen=True):
    permit: str
    rule: str
    detail: str


def take_attempt(
    row: RiskVelocity | None, check: RiskCheck, now_ms: int
) -> tuple[RiskVelocity | None, tuple[RiskResult, ...]]:
    """The card's row after this check, or None where nothing changed; and the answers.

    ``now_ms``: the check's append time. An outcome may answer several that waited; an attempt that
    has to wait is answered later.
    """
    card = _Card(row, check, now_ms)
    if check.outcome:
        card.ended(check)
    else:
        card.asked(check)
    return card.changed(), tuple(card.answers)


def mark_of(attempt_key: str) -> int:
    digest = sha1(attempt_key.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class _Card:
    """A card's row while one check is taken."""

    def __init__(self, row: RiskVelocity | None, check: RiskCheck, now_ms: int) -> None:
        self._now_ms = now_ms
        self._row = row or RiskVelocity(
            merchant_id=check.merchant_id,
            by=check.by,
            identity=check.identity,
            updated_at_ms=now_ms,
        )
        # What no cap can count any more goes; so does what nobody told the end of.
        since_ms = now_ms - WINDOW_MS_MAX
        self.declined = [each for each in self._row.declined if each.at_ms > since_ms]
        self.in_flight = [each for each in self._row.in_flight if each.at_ms > since_ms]
        self.waiting = list(self._row.waiting)
        self.caps = self._row.caps
        self.taken_back = [each for each in self._row.taken_back if each.at_ms > since_ms]
        self.bars = [each for each in self._row.bars if each.until_ms > now_ms]
        until_ms = self._row.barred_until_ms
        if until_ms > max((each.until_ms for each in self.bars), default=now_ms):
            # Of before bars were kept one by one: whose decline it was is not known.
            self.bars.append(CardBar(mark=0, until_ms=until_ms, code=self._row.barred_by))
        self.answers: list[RiskResult] = []

    def changed(self) -> RiskVelocity | None:
        changed = replace(
            self._row,
            declined=tuple(self.declined[-DECLINED_MAX:]),
            in_flight=tuple(self.in_flight),
            waiting=tuple(self.waiting),
            caps=self.caps,
            barred_until_ms=0 if self.bar is None else self.bar.until_ms,
            barred_by="" if self.bar is None else self.bar.code,
            bars=tuple(self.bars),
            taken_back=tuple(self.taken_back[-TAKEN_BACK_MAX:]),
        )
        if changed == self._row:
            return None
        return replace(changed, updated_at_ms=max(self._now_ms, self._row.updated_at_ms))

    @property
    def bar(self) -> CardBar | None:
        """What bars the card longest."""
        return max(self.bars, key=lambda each: each.until_ms, default=None)

    def asked(self, check: RiskCheck) -> None:
        mark = mark_of(check.attempt_key)
        asking = AttemptWaiting(
            order_id=check.order_id, attempt_key=check.attempt_key, gateway=check.gateway
        )
        self.caps = check.caps
        if any(each.mark == mark for each in self.in_flight):
            self._answer(asking, None)
        elif asking not in self.waiting:
            # Behind those that wait: a decline may have left its window, and they asked before.
            self.waiting.append(asking)
            self._look_again()
            if len(self.waiting) > WAITING_MAX and self.waiting[-1] == asking:
                self.waiting.pop()
                detail = f"{len(self.waiting)} attempts with this card wait already"
                self._answer(asking, _Refusal(REFUSED, TOO_MANY_WAIT, detail))

    def ended(self, check: RiskCheck) -> None:
        mark = mark_of(check.attempt_key)
        self.in_flight = [each for each in self.in_flight if each.mark != mark]
        self.waiting = [each for each in self.waiting if each.attempt_key != check.attempt_key]
        if check.outcome == RELEASED:
            # It may have been told as a decline before it turned out to have succeeded, or may be
            # told so later, where that word had been dead-lettered.
            told = any(each.mark == mark for each in (*self.declined, *self.taken_back))
            if check.code == TAKEN_BACK and not told:
                self.taken_back.append(
                    AttemptMark(mark=mark, gateway=check.gateway, at_ms=self._now_ms)
                )
            self.declined = [each for each in self.declined if each.mark != mark]
            self.bars = [each for each in self.bars if each.mark != mark]
        elif all(each.mark != mark for each in (*self.declined, *self.taken_back)):
            declined = AttemptMark(mark=mark, gateway=check.gateway, at_ms=self._now_ms)
            self.declined.append(declined)
            if check.outcome == NEVER_AGAIN:
                bar = CardBar(mark=mark, until_ms=self._now_ms + check.bar_ms, code=check.code)
                self.bars = [*self.bars, bar][-BARS_MAX:]
        self._look_again()

    def _look_again(self) -> None:
        """Answer whoever waits and can be answered now, in the order in which they asked."""
        still: list[AttemptWaiting] = []
        full: set[str] = set()
        for each in self.waiting:
            if each.gateway in full or not self._judged(each):
                full.add(each.gateway)
                still.append(each)
        self.waiting = still

    def _judged(self, asking: AttemptWaiting) -> bool:
        """Whether it can be answered now; then it is."""
        caps = [cap for cap in self.caps if cap.gateway in ("", asking.gateway)]
        refusal = self._refusal(caps)
        if refusal is None:
            if len(self.in_flight) >= IN_FLIGHT_MAX or any(self._is_full(cap) for cap in caps):
                return False
            mark = mark_of(asking.attempt_key)
            given = AttemptMark(mark=mark, gateway=asking.gateway, at_ms=self._now_ms)
            self.in_flight.append(given)
        self._answer(asking, refusal)
        return True

    def _refusal(self, caps: Iterable[AttemptCap]) -> _Refusal | None:
        bar = self.bar
        if bar is not None:
            return _Refusal(BARRED, bar.code, f"{bar.code} bars this card")
        for cap in caps:
            count = self._declines(cap)
            if count >= cap.declines_max:
                at = f" at {cap.gateway}" if cap.gateway else ""
                within = f"within {_duration(cap.window_ms)}"
                said = f"{count} declines of this card{at} {within}, cap {cap.name}"
                return _Refusal(REFUSED, cap.name, said)
        return None

    def _is_full(self, cap: AttemptCap) -> bool:
        open_ = sum(cap.gateway in ("", each.gateway) for each in self.in_flight)
        return self._declines(cap) + open_ >= cap.declines_max

    def _declines(self, cap: AttemptCap) -> int:
        since_ms = self._now_ms - cap.window_ms
        return sum(
            each.at_ms > since_ms and cap.gateway in ("", each.gateway) for each in self.declined
        )

    def _answer(self, asking: AttemptWaiting, refusal: _Refusal | None) -> None:
        merchant_id = self._row.merchant_id
        self.answers.append(
            RiskResult(
                merchant_id=merchant_id,
                order_id=asking.order_id,
                payment_id=payment_id(merchant_id, asking.order_id),
                by=self._row.by,
                counted_at_ms=self._now_ms,
                attempt_key=asking.attempt_key,
                permit=GIVEN if refusal is None else refusal.permit,
                rule="" if refusal is None else refusal.rule,
                detail="" if refusal is None else refusal.detail,
            )
        )


def _duration(ms: int) -> str:
    for unit_ms, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if ms % unit_ms == 0:
            return f"{ms // unit_ms} {unit}"
    return f"{ms / 1000:g} s"
