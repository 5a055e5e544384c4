"""Which call of the Kafka client a lane is in, and whether it should have come back by now.

A call that is given a time-out does not always keep it: ``send_offsets_to_transaction`` never comes
back if the group's coordinator goes away under it, not even once there is one again
(librdkafka#5456 and #5511, seen with 2.16; every other call that a lane makes kept its time-out).
Nothing can be done for the thread that is in it, so another one has to notice.
"""

from __future__ import annotations

from collections.abc import Callable

# Beyond its time-out. A call is two requests at most, the first of which may take the socket's own
# time-out (ten seconds, as seen) before the clock of the second begins.
SLACK_S = 10.0


class ClientCalls:
    """The lane's thread says what it calls; any other may ask."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self.under_way: tuple[str, float] | None = None

    def calling(self, what: str, timeout_s: float) -> ClientCalls:
        """``with`` this the call is made, and said to be under way until it is back."""
        self.under_way = (what, self._monotonic_s() + timeout_s + SLACK_S)
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_raised: object) -> None:
        self.under_way = None

    def overdue(self) -> str | None:
        """What has not come back although its time is over."""
        under_way = self.under_way
        if under_way is None or self._monotonic_s() <= under_way[1]:
            return None
        return under_way[0]
