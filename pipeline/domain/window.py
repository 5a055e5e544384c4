"""How many of the latest things went well: a count over a sliding window, in slices.

Pure: the time comes with every call. A window of ten slices forgets a tenth at a time, which is
exact enough for a share and needs no memory of single results.
"""

from __future__ import annotations

# A share of ten slices is at most a tenth of the window older than it says.
SLICES = 10


class SlidingWindow:
    """Good and bad results of the last ``window_ms``; times may come slightly out of order."""

    __slots__ = ("_bad", "_good", "_slice", "_slice_ms")

    def __init__(self, window_ms: int) -> None:
        self._slice_ms = max(1, window_ms // SLICES)
        self._good = [0] * SLICES
        self._bad = [0] * SLICES
        self._slice = 0

    def saw(self, good: bool, at_ms: float) -> None:
        """Count one result; one from before the newest slice counts in the newest."""
        self._move(at_ms)
        counts = self._good if good else self._bad
        counts[self._slice % SLICES] += 1

    def counts(self, now_ms: float) -> tuple[int, int]:
        """(good, all) of the window that ends now."""
        self._move(now_ms)
        good = sum(self._good)
        return good, good + sum(self._bad)

    def clear(self) -> None:
        self._good = [0] * SLICES
        self._bad = [0] * SLICES

    def _move(self, now_ms: float) -> None:
        number = int(now_ms) // self._slice_ms
        passed = number - self._slice
        if passed <= 0:
            return
        if passed >= SLICES:
            self.clear()
        else:
            for each in range(self._slice + 1, number + 1):
                self._good[each % SLICES] = 0
                self._bad[each % SLICES] = 0
        self._slice = number
