"""How many calls a gateway that is just back gets at once: a few, then more while it is quick.

Everybody has waited for it. All at once they would be more than it can answer in time, its breaker
would open again, and so on for as long as there is a backlog, which grows meanwhile. The rule is
that of TCP's slow start with Vegas' look at the round-trip time: one more for each quick answer,
which doubles it each round; one more every few seconds while all are slow, since that may be its
pace; half when calls are in trouble. So it stays near what the gateway can do, and once it has
everything back there is no limit any more.

Pure: times come with every call, in milliseconds.
"""

from __future__ import annotations

from typing import Self

# An answer is quick up to so many times the quickest one since it came back, however slow that is.
QUICK_TIMES = 2
# So often one more while no answer is quick. A queue at the gateway that grows as slowly is seen
# long before its calls are in trouble.
SLOW_GROWTH_MS = 5_000
# A call in trouble after so many that were answered is a slow card: where it is the crowd that is
# slow, the next one is in trouble as well.
LONE_ANSWERS = 20


class ReturnWindow:
    """From ``room_min`` calls at once to ``room_max``, from where on there is no limit.

    ``slow_ms``: after which a call is in trouble. An answer within a quarter of it is quick: what
    begins meanwhile takes twice as long as that before it is seen.
    """

    __slots__ = (
        "_calm_ms",
        "_grown_ms",
        "_halved_ms",
        "_room",
        "_room_max",
        "_room_min",
        "_slow_ms",
        "_well",
    )

    def __init__(self, room_min: int, room_max: float, slow_ms: float) -> None:
        self._room_min = room_min
        self._room: float = room_min
        self._room_max = room_max
        self._slow_ms = slow_ms
        # Calls that were answered since the last one in trouble.
        self._well = 0
        self._calm_ms = float("inf")
        self._halved_ms = self._grown_ms = float("-inf")

    @classmethod
    def wide_open(cls) -> Self:
        """Of a gateway that was not away."""
        return cls(0, 0, 0)

    def has_room(self, in_flight: int) -> bool:
        return self._room >= self._room_max or in_flight < self._room

    def answered(self, took_ms: float, now_ms: float) -> None:
        """A call has ended well."""
        self._well += 1
        self._calm_ms = min(self._calm_ms, took_ms)
        quick_ms = max(self._slow_ms / 4, QUICK_TIMES * self._calm_ms)
        if took_ms <= quick_ms or now_ms - self._grown_ms >= SLOW_GROWTH_MS:
            self._room += 1
            self._grown_ms = now_ms

    def troubled(self, began_ms: float, now_ms: float) -> None:
        """A call that began then is in trouble. Those of one crowd halve the room once."""
        well, self._well = self._well, 0
        if well < LONE_ANSWERS and self._room < self._room_max and began_ms > self._halved_ms:
            self._halved_ms = now_ms
            self._room = max(self._room_min, self._room // 2)
