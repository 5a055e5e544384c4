"""Whether a gateway is called at all: a circuit breaker as pure decisions.

Closed: calls go through, and the latest ends are counted. Open: nobody calls, for a
while. Half-open: a few calls are let through as probes; all of them well closes it, one in trouble
opens it again, for twice as long. Times come with every call, so the same ends in the same order
give the same states.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

CLOSED: Final = "closed"
HALF_OPEN: Final = "half_open"
OPEN: Final = "open"


class BreakerRule(Struct, frozen=True, kw_only=True):
    """When a breaker opens and how it comes back. All times in milliseconds."""

    # The latest calls_min calls are judged, if they ended within window_ms. Under twenty a share
    # says little: three unlucky ones of five would be an outage. More would be slow to see one:
    # of a hundred calls a second, ten seconds' worth of good ones would hide five of bad.
    calls_min: int = 20
    # Two calls a second are enough to be judged; trouble that is older says nothing of now.
    window_ms: int = 10_000
    # Half of the calls in trouble is no gateway that is merely having a bad minute.
    trouble_percent: int = 50
    # The first wait is about a restart's; each failed round of probes doubles it.
    wait_ms: int = 2_000
    # A gateway that is back after hours is noticed within this.
    wait_ms_max: int = 15_000
    # That many calls, all well, close it again.
    probes: int = 3
    # A call that has been open for longer counts as trouble before it ends: a gateway that hangs
    # is noticed after this, and not after the call's own deadline. Cards are authorized within one
    # or two seconds; twice that is no gateway that merely has much to do.
    slow_ms: int = 5_000
    # The same for a gateway that answers nobody meanwhile, although its latest answers took half of
    # this at most: then it is not one slow card.
    silent_ms: int = 2_500
    # So many calls that hang, none of their kind answered meanwhile, open it by themselves: where
    # there are few calls, or few places, calls_min never come together within window_ms. One that
    # hangs may be a slow card, two a coincidence.
    hanging_min: int = 3
    # So many calls in a row that did not even reach it open it by themselves, however far apart:
    # that is no matter of one card, and with few calls each order would wait for this gateway until
    # it is too late for any. One order is tried that often within its patience.
    unreached_min: int = 5
    # How long the slowest of its usual answers take, if its operator knows: it stands for those
    # that a worker has not had yet. None goes by answers alone, and waits slow_ms for the first.
    usual_ms: int | None = None


class Breaker:
    """One gateway's breaker, as one process sees it.

    ``begin`` asks for a permit, and whoever got one gives it back with ``end``. Without permits
    (``saw``) it follows results that others had.
    """

    __slots__ = (
        "_hanging",
        "_latest",
        "_open_until_ms",
        "_probing",
        "_rule",
        "_turn",
        "_unreached",
        "_wait_ms",
        "_well",
    )

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._latest: deque[tuple[float, bool]] = deque(maxlen=rule.calls_min)
        # Calls that were found hanging since the last one was answered.
        self._hanging = 0
        # Calls in a row that did not reach it.
        self._unreached = 0
        # Rises with every opening: the end of a call that began before it says nothing new.
        self._turn = 0
        self._open_until_ms: float | None = None
        self._wait_ms = rule.wait_ms
        self._probing = 0
        self._well = 0

    def state(self, now_ms: float) -> str:
        if self._open_until_ms is None:
            return CLOSED
        return OPEN if now_ms < self._open_until_ms else HALF_OPEN

    @property
    def suspects(self) -> bool:
        """Whether it is closed, and calls hang without one having been answered since."""
        return self._open_until_ms is None and self._hanging > 0

    def retry_in_ms(self, now_ms: float) -> int:
        """How long until probes are let through; 0 unless it is open."""
        if self._open_until_ms is None:
            return 0
        return max(0, int(self._open_until_ms - now_ms))

    def begin(self, now_ms: float) -> int | None:
        """A permit for one call, or None when it must not be made now."""
        if self._open_until_ms is not None:
            if now_ms < self._open_until_ms or self._probing + self._well >= self._rule.probes:
                return None
            self._probing += 1
        return self._turn

    def end(
        self,
        permit: int,
        well: bool | None,
        now_ms: float,
        *,
        hangs: bool = False,
        unreached: bool = False,
    ) -> None:
        """A permitted call has ended: well, in trouble, or (None) saying nothing of the gateway.

        ``hangs``: it is in trouble for having no answer, nor has any other had one since it began.
        ``unreached``: no connection came about.
        """
        if permit != self._turn:
            return
        if self._open_until_ms is not None:
            self._probing -= 1
        if well is not None:
            self.saw(well, now_ms, hangs=hangs, unreached=unreached)

    def reached(self) -> None:
        """Something came back from the gateway, whatever it says."""
        self._unreached = 0

    def answered(self) -> None:
        """Calls are answered: what was found hanging was none of the gateway's silence."""
        self._hanging = 0

    def saw(
        self, well: bool, now_ms: float, *, hangs: bool = False, unreached: bool = False
    ) -> None:
        """Count one end. While it is open, ends say nothing: they are of calls made before."""
        if self._open_until_ms is None:
            self._latest.append((now_ms, well))
            self._unreached = self._unreached + 1 if unreached else 0
            if not well:
                self._hanging += hangs
                self._judge(now_ms)
        elif now_ms >= self._open_until_ms:
            if not well:
                self._open(now_ms)
                return
            self._well += 1
            if self._well >= self._rule.probes:
                self._close()

    def opened_elsewhere(self, now_ms: float, for_ms: int | None = None) -> None:
        """Somebody who makes the calls has opened theirs: so is this one, for as long as theirs."""
        until_ms = now_ms + (for_ms or self._rule.wait_ms)
        if self._open_until_ms is None:
            self._open(now_ms)
            self._open_until_ms = until_ms
        else:
            self._open_until_ms = max(self._open_until_ms, until_ms)
            self._well = 0

    def _judge(self, now_ms: float) -> None:
        if self._hanging >= self._rule.hanging_min or self._unreached >= self._rule.unreached_min:
            self._open(now_ms)
            return
        latest, count = self._latest, self._rule.calls_min
        if len(latest) < count or latest[0][0] <= now_ms - self._rule.window_ms:
            return
        trouble = sum([not well for _, well in latest])
        if trouble * 100 >= self._rule.trouble_percent * count:
            self._open(now_ms)

    def _open(self, now_ms: float) -> None:
        self._turn += 1
        self._open_until_ms = now_ms + self._wait_ms
        self._wait_ms = min(2 * self._wait_ms, self._rule.wait_ms_max)
        self._probing = self._well = self._hanging = self._unreached = 0

    def _close(self) -> None:
        self._turn += 1
        self._open_until_ms = None
        self._wait_ms = self._rule.wait_ms
        self._probing = self._well = 0
        self._latest.clear()
