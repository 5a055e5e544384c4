"""What a client brings of a partition with one answer of its broker, and nothing more.

It asks once, for so many bytes: what is more the broker cuts off. With the answer in its queue it
is content for longer than it lives, as long as nobody has touched that queue, in which is the
assignment's own mark: two of them are enough. So that an answer has come is asked of what the
client knows of the partition, and then it is given time to unfold it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, Message, TopicPartition

from pipeline.batches.unreadable import UNFOLDED_BYTES_MAX
from pipeline.broker_addresses import broker_address
from pipeline.kafka_access import reaching

Place = tuple[str, int]

# Until an answer has come, and between two looks whether it has.
TIMEOUT_S: Final = 30.0
LOOK_S: Final = 0.002
# For an address to take a connection.
REACH_S: Final = 1.0
# For so long they are not asked again; and for so long those that were away are not.
REACHED_S: Final = 5.0
AWAY_S: Final = 60.0
# Taken at a time, of what has come.
RECORDS_MAX: Final = 10_000

# Those that were reached last, by all that were given; until when they are taken unasked, and until
# when the others are left out.
_reached: dict[str, tuple[tuple[str, ...], float, float]] = {}


def asks_once(
    servers: str, answer_bytes: int, *, access: Mapping[str, Any] | None = None, **more: Any
) -> Consumer:
    """A client for one answer of so many bytes."""
    return Consumer(
        {
            **reaching(_answering(servers), access),
            "log_level": 0,
            # Never used: partitions are assigned by hand and nothing is committed.
            "group.id": "paystream-one-answer-unused",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.message.max.bytes": answer_bytes,
            "fetch.wait.max.ms": 100,
            "queued.min.messages": 2,
            "fetch.queue.backoff.ms": 300_000,
            "queued.max.messages.kbytes": 1024 * 1024,
            "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
            "check.crcs": True,
            **more,
        }
    )


def _answering(servers: str) -> str:
    """Those of the addresses that can be reached: what the client says of another one lies in the
    same queue, and would be taken for the answer. Of those that were reached before, one is enough;
    the others are asked when none of them is, after a while, and where no answer came."""
    now_s = time.monotonic()
    reached, until_s, away_until_s = _reached.get(servers, ((), now_s, now_s))
    if now_s >= until_s:
        reached = _reached_of(reached) if now_s < away_until_s else ()
        if not reached:
            reached = _reached_of(servers.split(","))
            away_until_s = time.monotonic() + AWAY_S
        if reached:
            _reached[servers] = reached, time.monotonic() + REACHED_S, away_until_s
    return ",".join(reached) or servers


def _reached_of(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(each.strip() for each in addresses if _is_reached(each))


def _is_reached(address: str) -> bool:
    try:
        socket.create_connection(broker_address(address), REACH_S).close()
    except (OSError, ValueError):
        return False
    return True


def one_answer(
    client: Any,
    place: Place,
    position: int,
    unfolding_s: float,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Message]:
    """What the client was sent from a position on, and says of it; nothing where that was not
    unfolded yet. TimeoutError where no answer comes, or it is to stop waiting for one."""
    there = TopicPartition(*place, position)
    client.assign([there])
    until_s = time.monotonic() + TIMEOUT_S
    while client.get_watermark_offsets(there, cached=True)[1] < 0:
        if (late := time.monotonic() > until_s) or stopped():
            if late:
                # They may take connections and answer none, and another one would.
                _reached.clear()
            raise TimeoutError(f"{place[0]}[{place[1]}] brings nothing from offset {position} on")
        time.sleep(LOOK_S)
    # Not before it is unfolded and in the queue.
    time.sleep(unfolding_s)
    messages: list[Message] = []
    while more := client.consume(RECORDS_MAX, 0):
        messages += more
    return messages
