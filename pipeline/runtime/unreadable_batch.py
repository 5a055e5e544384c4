"""A batch that cannot be unfolded, or would be too much: one message stands for all its records.

It is buried like any input that cannot be handled, in the transaction that moves the position
behind the whole batch. Nobody knows whose records they were, so no payment is told.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pipeline.batches.record_batch import RecordBatch
from pipeline.batches.unreadable import CannotStepOver, UnreadableBatches, is_damaged
from pipeline.errors import UserError
from pipeline.runtime.work import Headers, TopicPartitionKey

_log = logging.getLogger(__name__)

CAUSE: Final = "unreadable_batch"


@dataclass(frozen=True, slots=True)
class UnreadableBatch:
    """In the client's own manner of a message; its offset is the batch's last. ``bytes_max``: it
    unfolds to more than so many, and was not given to the client; else 0. ``has_false_offsets``:
    its records say that they are elsewhere."""

    in_topic: str
    in_partition: int
    batch: RecordBatch
    bytes_max: int = 0
    has_false_offsets: bool = False

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self.in_topic

    def partition(self) -> int:
        return self.in_partition

    def offset(self) -> int:
        return self.batch.last_offset

    def timestamp(self) -> tuple[int, int]:
        return 2, self.batch.at_ms

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return self.batch.data

    def headers(self) -> None:
        return None

    @property
    def detail(self) -> str:
        batch = self.batch
        why = "cannot be decompressed"
        if self.bytes_max:
            why = f"are more than {self.bytes_max >> 20} MiB decompressed"
        elif self.has_false_offsets:
            why = "give other offsets of themselves"
        return (
            f"{batch.records} records at offsets {batch.first_offset} to {batch.last_offset} "
            f"{why} ({batch.codec_name})"
        )

    def letter_headers(self) -> Headers:
        """What a letter says of it beside the place of its first record."""
        batch = self.batch
        return [
            ("dlq.last_offset", str(batch.last_offset).encode()),
            ("dlq.batch_records", str(batch.records).encode()),
            ("dlq.batch_bytes", str(len(batch.data)).encode()),
            ("dlq.batch_sha256", hashlib.sha256(batch.data).hexdigest().encode()),
        ]


def step_over(batches: UnreadableBatches, consumer: Any, message: Any) -> UnreadableBatch | None:
    """What stands for the batch that this error of the client is about, or None when it is met
    again, or has no record that anybody would be handed. The consumer is then behind it.

    UserError when it has to be a person who steps over it.
    """
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    try:
        batch = batches.step_over(consumer, topic, partition, offset)
    except CannotStepOver as error:
        raise UserError(
            f"the batch at {topic}[{partition}]@{offset} cannot be decompressed, and where it ends "
            f"could not be asked for ({error}). Nothing is skipped unasked; docs/operations.md "
            "says how to step over it."
        ) from error
    if batch is None:
        return None
    _log.warning(
        "%s[%d]: offsets %d to %d cannot be decompressed; going on behind them%s",
        topic, partition, batch.first_offset, batch.last_offset,
        "" if batch.visible else ", which are no records that anybody is handed",
    )  # fmt: skip
    return UnreadableBatch(topic, partition, batch) if batch.visible else None


def require_undamaged(message: Any) -> None:
    """UserError when the client says that a batch is not as its checksum says."""
    if is_damaged(message.error()):
        raise UserError(
            f"the batch at {message.topic()}[{message.partition()}]@{message.offset()} is damaged: "
            f"{message.error().str()}. Another replica may have it whole; nothing is skipped "
            "unasked, see docs/operations.md."
        )


class DamagedBatches:
    """Those that a worker meets. It ends at one, but first handles what came before: whoever steps
    over the batch by hand would lose that too.

    Nothing that comes later of such a partition is looked at. Behind a wrong checksum the client
    reads on at a wrong place of the same answer, and asks for offsets that it made up (librdkafka
    2.16: an unknown format of batch, then a position that is not in the log).
    """

    def __init__(self) -> None:
        self._met: dict[TopicPartitionKey, UserError] = {}

    def clear(self) -> None:
        self._met.clear()

    def forget(self, tp: TopicPartitionKey) -> None:
        """Of a partition that is read again from before."""
        self._met.pop(tp, None)

    def before(self, messages: list[Any]) -> list[Any]:
        """These, without what a worker must not take."""
        if not self._met and all(each.error() is None for each in messages):
            return messages
        taken = []
        for message in messages:
            tp = message.topic(), message.partition()
            if tp in self._met:
                continue
            try:
                require_undamaged(message)
            except UserError as error:
                self._met[tp] = UserError(
                    f"{error} Where no replica has, `paystream positions step-over` goes on behind "
                    "it."
                )
                _log.error("%s What came before it is handled first.", error)
            else:
                taken.append(message)
        return taken

    def end(self, in_hand: Callable[[TopicPartitionKey], bool]) -> None:
        """UserError of one, if of its partition nothing is in hand any more."""
        for tp, error in self._met.items():
            if not in_hand(tp):
                raise error
