"""What waits for a group, and for how long it has stood before that: pure, the times are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

# By topic and partition: the group's committed offset and the end of the log.
Places = Mapping[tuple[str, int], tuple[int, int]]


def lag_of(places: Places) -> dict[str, int]:
    """Records between the committed offsets and the ends, by topic."""
    lag: Counter[str] = Counter()
    for (topic, _), (committed, end) in places.items():
        lag[topic] += max(0, end - committed)
    return dict(lag)


class Stalls:
    """Of one group, by looks at its places.

    Partitions with one number are one worker's, who takes them in order of importance: one stands
    only while nothing is committed in any of them. ``delayed`` topics are left out, whose records
    wait for their time.
    """

    def __init__(self, delayed: Collection[str] = ()) -> None:
        self._delayed = frozenset(delayed)
        self._topics: frozenset[str] = frozenset()
        self._committed: dict[tuple[str, int], int] = {}
        # Only of what waits: since when nothing was committed beside it.
        self._since_s: dict[tuple[str, int], float] = {}

    def look(self, places: Places, now_s: float) -> None:
        committed = {place: offset for place, (offset, _end) in places.items()}
        moved = {
            partition
            for (topic, partition), offset in committed.items()
            if self._committed.get((topic, partition)) != offset
        }
        self._committed = committed
        self._topics = frozenset(topic for topic, _ in places) - self._delayed
        self._since_s = {
            (topic, partition): now_s
            if partition in moved
            else self._since_s.get((topic, partition), now_s)
            for (topic, partition), (offset, end) in places.items()
            if topic in self._topics and offset < end
        }

    def seconds(self, now_s: float) -> dict[str, float]:
        """By topic, of the partition that has stood longest; 0 where nothing waits."""
        since = self._since_s  # replaced after the topics, maybe meanwhile
        longest = dict.fromkeys(self._topics, 0.0)
        for (topic, _), since_s in since.items():
            longest[topic] = max(longest[topic], now_s - since_s)
        return longest
