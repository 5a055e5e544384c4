"""A consumer of a group whose close ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka import Consumer

from pipeline.runtime.kafka_errors import LaneHung

# Leaving a group takes a request; to a broker that is away the client tries for some seconds.
CLOSE_S = 30.0


def close_within(close: Callable[[], None], timeout_s: float = CLOSE_S) -> bool:
    """Call a consumer's ``close``; False when it does not come back in ``timeout_s`` seconds.

    With its brokers gone in the middle of a join or a commit it may wait for ever. What it then
    holds (a thread, memory) stays until the process ends. The callbacks of a rebalance are called
    as ever, on another thread, while this one waits; what they raise is raised here.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            close()
        except BaseException as error:
            raised.append(error)

    closing = threading.Thread(target=call, name="consumer-close", daemon=True)
    closing.start()
    closing.join(timeout_s)
    if raised:
        raise raised[0]
    return not closing.is_alive()


class GroupConsumer(Consumer):  # type: ignore[misc,unused-ignore]
    """A worker's consumer. ``close`` raises LaneHung where the client does not come back: the
    process leaves as if killed, and the group gives its partitions to others."""

    def close(self) -> None:
        if not close_within(super().close):
            raise LaneHung(f"the consumer's close does not come back within {CLOSE_S:.0f} s")
