"""Whether a call may begin: breaker, limits and Retry-After of each gateway, in one worker.

A gate that is asked before a call begins, and told how it ended. It answers at once: a permit, a
moment to ask again, or the answer the request gets instead of a call. So a gateway that is down,
slow or full costs its own payments a wait, and holds up nothing behind them in their partitions.

Limits are for all workers of the stage together; each takes the share that its partitions are of
all. All of it runs on the thread that makes the calls; ``take_share`` and ``configure`` may be
called from any.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from pipeline.domain.answer import NOT_SENT, UNKNOWN, GatewayAnswer
from pipeline.domain.breaker import CLOSED, OPEN, Breaker
from pipeline.domain.health import BREAKER_OPEN, RATE_LIMITED, THROTTLED, UNREACHABLE, verdict
from pipeline.domain.policy import GatewayProfile
from pipeline.domain.return_window import ReturnWindow
from pipeline.domain.token_bucket import TokenBucket
from pipeline.observability.metrics import Metrics

_log = logging.getLogger(__name__)

# Where several gateways share partitions: how long a request may wait for a token or for the end
# of a Retry-After. What is behind it waits as long, so it is a small part of a usual hop.
LIMIT_WAIT_MS_MAX = 250
# How long it may wait for one of its gateway's open calls to end, unless they hang. They do end,
# within slow_ms or the breaker opens; turning requests away sooner would make work out of an
# ordinary burst.
PLACE_WAIT_MS_MAX = 2_000
# With one gateway there is nobody to hold up: a request waits its turn as long as it may be sent.
_UNBOUNDED_MS = 3_600_000
# A call of a gateway in trouble, a probe above all, is not waited for any longer: its request is
# answered unknown and asked about later. The call goes on, since its end decides the breaker.
HOLD_MS = 250
# The same while it is only suspected: its calls hang, too few yet to open the breaker. Most
# gateways that work answer within this, so that a slow card does not cost others their answers.
SUSPECTED_HOLD_MS = 1_000

# A call that takes so many times as long as the longest of the latest answers is not waited for.
# One slow card among twenty is one of those. With fewer answers than ten to go by it is waited for
# longer, up to what is silence in a quick gateway: the only one may have been the quickest of all.
UNUSUAL_TIMES = 4
UNUSUAL_ANSWERS = 10
# So many of the latest answers are gone by, however many calls the breaker judges: one slow card of
# twenty makes its gateway slow for as long as it is among them, not longer.
LATEST_ANSWERS = 20
# Beside a call that is in trouble already: then calls do hang there, and need no such proof.
UNUSUAL_TIMES_BESIDE = 2

# Ends of calls that never came to be tried: the worker had no connection to spare, or stops.
_NOT_ASKED = frozenset({"pool_timeout", "shutting_down"})
_STATE_NUMBERS: Final = {CLOSED: 0, "half_open": 1, OPEN: 2}


class Permit(Struct, eq=False):
    """For one call. ``probe``: it decides whether an open breaker closes. ``told``: the breaker
    knows of it already, ``hangs``: as of one that nobody answers. ``parked``: its request is not
    kept waiting for it, but it is open and keeps its place."""

    gateway: str
    turn: int
    began_ms: float
    probe: bool = False
    inquiry: bool = False
    told: bool = False
    hangs: bool = False
    parked: bool = False


class Hold(Struct, frozen=True):
    """Not now. Ask again after ``seconds``, or when a call of the gateway has ended."""

    seconds: float | None = None


class Protection:
    """The gate of one worker over all its gateways.

    ``in_flight_max``: open calls of this worker at one gateway, whatever the others do.
    """

    def __init__(
        self,
        profiles: Iterable[GatewayProfile],
        *,
        in_flight_max: int = 256,
        metrics: Metrics | None = None,
        now_ms: Callable[[], float] = lambda: time.monotonic() * 1000,
    ) -> None:
        self._in_flight_max = in_flight_max
        self._metrics = metrics
        self._now_ms = now_ms
        self._share = 1.0
        self._gateways: dict[str, _Gateway] = {}
        self._wanted: tuple[GatewayProfile, ...] | None = tuple(profiles)
        self._several = False
        self._limit_wait_ms_max = self._place_wait_ms_max = _UNBOUNDED_MS

    def take_share(self, share: float) -> None:
        """This worker's part of what all workers may do together, 0 to 1."""
        self._share = share

    def configure(self, profiles: Iterable[GatewayProfile]) -> None:
        """Other limits from the next call on; a breaker whose rule stays keeps its state."""
        self._wanted = tuple(profiles)

    # On the thread that makes the calls ---------------------------------------------------------

    def ask(self, gateway: str, kind: str, waited_ms: float) -> Permit | Hold | GatewayAnswer:
        """Whether a call may begin that has waited so long; a permit is given back by ``ended``."""
        now_ms = self._now_ms()
        g = self._of(gateway, now_ms)
        g.share(self._share, now_ms)
        if g.breaker.state(now_ms) == OPEN:
            return self._refused(g, kind, BREAKER_OPEN, g.breaker.retry_in_ms(now_ms))
        closed_ms = g.closed_until_ms - now_ms
        if closed_ms > 0:
            if waited_ms + closed_ms > self._limit_wait_ms_max:
                return self._refused(g, kind, RATE_LIMITED, int(closed_ms) + 1)
            return Hold(closed_ms / 1000)
        places = min(self._in_flight_max, g.places)
        if g.in_flight >= places:
            if g.breaker.state(now_ms) != CLOSED:
                # Taken by calls that hang: none of them will end soon, and who waits for it holds
                # up what stands behind it in its partition.
                return self._refused(g, kind, BREAKER_OPEN, None)
            if self._several and g.hanging and g.breaker.suspects:
                # The same, before enough calls hang to open it: where there are few places there
                # never are. That it finds none is one more sign of what takes them.
                g.breaker.saw(False, now_ms, hangs=True)
                self._show(gateway, g, g.breaker.state(now_ms))
                return self._refused(g, kind, THROTTLED, None)
            if waited_ms > self._place_wait_ms(g, places):
                return self._refused(g, kind, THROTTLED, None)
            return Hold()
        if not g.window.has_room(g.in_flight):
            # It is just back, or slow: all who waited for it would send it away again.
            taken = self._several and not g.window.has_room(g.parked)
            if taken or waited_ms > self._limit_wait_ms_max:
                return self._refused(g, kind, THROTTLED, None)
            return Hold()
        if g.bucket is not None:
            token_ms = g.bucket.next_in_ms(now_ms)
            if token_ms > 0:
                if waited_ms + token_ms > self._limit_wait_ms_max:
                    return self._refused(g, kind, THROTTLED, int(token_ms) + 1)
                return Hold(token_ms / 1000)
        probe = g.breaker.state(now_ms) != CLOSED
        turn = g.breaker.begin(now_ms)
        if turn is None:
            # Probes are on their way; whoever comes meanwhile is not needed to find out.
            return self._refused(g, kind, BREAKER_OPEN, None)
        if g.bucket is not None:
            g.bucket.take(now_ms)
        g.in_flight += 1
        return Permit(gateway, turn, now_ms, probe, kind == "inquire")

    def is_slow(self, permit: Permit, open_ms: float) -> bool:
        """Whether a call that is still open need not be waited for: its gateway is in trouble. From
        then on it is parked.

        The first time it is found open for longer than its gateway should take, that is trouble;
        sooner, if a gateway that is usually quick has answered nobody meanwhile. Where others would
        wait for it they do no longer, and for no other call of a gateway that answers nobody; nor
        for one that takes several times as long as any of the latest answers, though others may
        come: where each tenth call hangs there is always one of them in the way.
        """
        now_ms = self._now_ms()
        g = self._of(permit.gateway, now_ms)
        if open_ms >= g.patience_ms(permit, now_ms) and not permit.told:
            permit.hangs = g.is_silent_since(permit)
            g.hanging += permit.hangs
            g.late += not permit.inquiry
            self._tell(g, permit, False, now_ms, hangs=permit.hangs)
        if permit.probe or g.breaker.state(now_ms) != CLOSED:
            slow = open_ms >= HOLD_MS
        elif not self._several:
            slow = False
        else:
            slow = (
                permit.told
                or open_ms >= g.unusual_ms(permit)
                or (g.is_suspected(permit) and open_ms >= SUSPECTED_HOLD_MS)
            )
        if slow and not permit.parked:
            permit.parked = True
            g.parked += 1
        return slow

    def ended(self, permit: Permit, answer: GatewayAnswer) -> None:
        """The call has really ended, parked or not."""
        now_ms = self._now_ms()
        g = self._of(permit.gateway, now_ms)
        g.in_flight -= 1
        g.hanging -= permit.hangs
        g.parked -= permit.parked
        g.late -= permit.told and not permit.inquiry
        if answer.code == RATE_LIMITED and answer.retry_after_ms:
            g.closed_until_ms = max(g.closed_until_ms, now_ms + answer.retry_after_ms)
        if answer.code not in UNREACHABLE and answer.code not in _NOT_ASKED:
            g.breaker.reached()
        well = verdict(answer.outcome, answer.code)
        if well:
            g.answered(permit, now_ms)
            g.window.answered(now_ms - permit.began_ms, now_ms)
        if not permit.told:
            # Whoever waits behind it has waited as long, whatever has ended it.
            long = now_ms - permit.began_ms >= SUSPECTED_HOLD_MS
            hangs = well is False and long and g.is_silent_since(permit)
            unreached = answer.code in UNREACHABLE
            self._tell(g, permit, well, now_ms, hangs=hangs, unreached=unreached)

    def report(self) -> None:
        """Show each breaker's state."""
        now_ms = self._now_ms()
        if self._wanted is not None:
            self._configured(now_ms)
        for name, g in self._gateways.items():
            self._show(name, g, g.breaker.state(now_ms))

    def _place_wait_ms(self, g: _Gateway, places: float) -> float:
        """How long a request may wait for one of so many places, all of them taken. Where calls
        that nobody waits for keep half of them, no longer than for a token; where they keep all,
        not at all (below zero). They end when they are given up, and others stand behind it."""
        if not self._several or 2 * g.parked < places:
            return self._place_wait_ms_max
        return self._limit_wait_ms_max if g.parked < places else -1

    def _tell(
        self,
        g: _Gateway,
        permit: Permit,
        well: bool | None,
        now_ms: float,
        *,
        hangs: bool,
        unreached: bool = False,
    ) -> None:
        permit.told = True
        g.moves_hang |= hangs and not permit.inquiry
        was_open = g.breaker.state(now_ms) != CLOSED
        g.breaker.end(permit.turn, well, now_ms, hangs=hangs, unreached=unreached)
        state = g.breaker.state(now_ms)
        if was_open and state == CLOSED:
            rule = g.profile.breaker
            g.window = ReturnWindow(2 * rule.probes, self._in_flight_max, rule.slow_ms)
        elif well is False:
            g.window.troubled(permit.began_ms, now_ms)
        self._show(permit.gateway, g, state)

    def _show(self, name: str, g: _Gateway, state: str) -> None:
        if state == g.shown:
            return
        if g.shown:
            level = logging.WARNING if state == OPEN else logging.INFO
            _log.log(level, "the breaker of %s is %s", name, state)
        g.shown = state
        if self._metrics is not None:
            self._metrics.breaker_state.labels(name).set(_STATE_NUMBERS[state])
            if state == OPEN:
                self._metrics.breaker_openings.labels(name).inc()

    def _refused(
        self, g: _Gateway, kind: str, code: str, retry_after_ms: int | None
    ) -> GatewayAnswer:
        if self._metrics is not None:
            self._metrics.calls_refused.labels(g.profile.name, code).inc()
        # An inquiry that was not asked proves nothing either way.
        outcome = UNKNOWN if kind == "inquire" else NOT_SENT
        return GatewayAnswer(outcome=outcome, code=code, retry_after_ms=retry_after_ms)

    def _of(self, gateway: str, now_ms: float) -> _Gateway:
        if self._wanted is not None:
            self._configured(now_ms)
        found = self._gateways.get(gateway)
        if found is None:
            found = self._gateways[gateway] = _Gateway(GatewayProfile(name=gateway), now_ms)
        return found

    def _configured(self, now_ms: float) -> None:
        wanted, self._wanted = self._wanted or (), None
        for profile in wanted:
            known = self._gateways.get(profile.name)
            if known is None:
                self._gateways[profile.name] = _Gateway(profile, now_ms)
            else:
                known.configure(profile, now_ms)
        self._several = several = len(self._gateways) > 1
        self._limit_wait_ms_max = LIMIT_WAIT_MS_MAX if several else _UNBOUNDED_MS
        self._place_wait_ms_max = PLACE_WAIT_MS_MAX if several else _UNBOUNDED_MS


class _Gateway:
    """What is known of one gateway here."""

    def __init__(self, profile: GatewayProfile, now_ms: float) -> None:
        self.profile = profile
        self.breaker = Breaker(profile.breaker)
        self.window = ReturnWindow.wide_open()
        self.bucket: TokenBucket | None = None
        self.in_flight = 0
        # Of those the ones that hang.
        self.hanging = 0
        # Those that nobody waits for any more.
        self.parked = 0
        # Those that move money and were found in trouble before they ended.
        self.late = 0
        self.closed_until_ms = 0.0
        # When the last good answers came, to what moves money and to inquiries. A gateway may still
        # answer these, and quickly, while everything else hangs.
        self.answered_ms = {False: now_ms, True: now_ms}
        # How long the latest of either kind took: it may look up slowly what it does quickly.
        self.took_ms: dict[bool, deque[float]] = {
            inquiry: deque(maxlen=LATEST_ANSWERS) for inquiry in (False, True)
        }
        # Whether such a one was found hanging, and none answered since.
        self.moves_hang = False
        self.places: float = float("inf")
        self.shown = ""
        self._shared = -1.0

    def configure(self, profile: GatewayProfile, now_ms: float) -> None:
        if profile.breaker != self.profile.breaker:
            self.breaker = Breaker(profile.breaker)
            self.window = ReturnWindow.wide_open()
        self.profile = profile
        self._shared = -1.0

    def patience_ms(self, permit: Permit, now_ms: float) -> int:
        """For how long a call may be open before it counts as trouble.

        Silence says nothing of a gateway that is never quick, nor of one that has answered nobody
        yet; nor beside a probe, when there is nobody else whom it could answer.
        """
        rule = self.profile.breaker
        took_ms = self.latest_ms(permit)
        quick = took_ms and 2 * max(took_ms) <= rule.silent_ms
        silent_ms = now_ms - self.answered_ms[permit.inquiry]
        if permit.probe or not quick or silent_ms < rule.silent_ms:
            return rule.slow_ms
        return min(rule.slow_ms, rule.silent_ms)

    def latest_ms(self, permit: Permit) -> list[float]:
        """How long the latest answers to calls of its kind took. Where there are few yet, what is
        said of calls that move money stands for the others."""
        took_ms = list(self.took_ms[permit.inquiry])
        usual_ms = self.profile.breaker.usual_ms
        if usual_ms is not None and not permit.inquiry:
            took_ms += [usual_ms] * (UNUSUAL_ANSWERS - len(took_ms))
        return took_ms

    def unusual_ms(self, permit: Permit) -> float:
        """From when on a call is none of the usual ones of its kind: later with few answers to go
        by, never with none. An inquiry's answer may be the proof that ends a payment: it is given
        up only by many answers, and whatever hangs beside it."""
        took_ms = self.latest_ms(permit)
        if len(took_ms) < (UNUSUAL_ANSWERS if permit.inquiry else 1):
            return float("inf")
        few_ms = min(
            SUSPECTED_HOLD_MS * UNUSUAL_ANSWERS / len(took_ms), self.profile.breaker.silent_ms
        )
        times = UNUSUAL_TIMES_BESIDE if self.late and not permit.inquiry else UNUSUAL_TIMES
        return max(SUSPECTED_HOLD_MS, few_ms, times * max(took_ms))

    def is_silent_since(self, permit: Permit) -> bool:
        """Whether no call of its kind has been answered since it began."""
        return self.answered_ms[permit.inquiry] <= permit.began_ms

    def is_suspected(self, permit: Permit) -> bool:
        """Whether calls of its kind hang, whatever the breaker says of all of them."""
        return self.breaker.suspects or (self.moves_hang and not permit.inquiry)

    def answered(self, permit: Permit, now_ms: float) -> None:
        """A call has ended well, however late."""
        self.answered_ms[permit.inquiry] = now_ms
        self.took_ms[permit.inquiry].append(now_ms - permit.began_ms)
        if not permit.inquiry:
            self.moves_hang = False
        if not self.moves_hang:
            self.breaker.answered()

    def share(self, share: float, now_ms: float) -> None:
        """Take a part of the limits. The parts of all workers come to the whole, except that
        each has at least one place, so that none of them stands still."""
        if share == self._shared:
            return
        self._shared = share
        most = self.profile.concurrency_max
        self.places = float("inf") if most is None else max(1, int(most * share))
        rate_per_s = self.profile.rate_per_s
        if rate_per_s is None or share <= 0:
            self.bucket = None
            return
        burst = self.profile.burst if self.profile.burst is not None else rate_per_s
        if self.bucket is None:
            self.bucket = TokenBucket(rate_per_s * share, burst * share, now_ms)
        else:
            self.bucket.change(rate_per_s * share, burst * share, now_ms)
