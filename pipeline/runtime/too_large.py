"""Which input made a record that no topic takes: it is dead-lettered, and the lane goes on.

What is read is bounded before it is kept, so this is the last defence: of rows that an older
version wrote, of a topic whose limit was lowered. The client or the broker refuses the record, its
transaction is aborted, and the input is known by the record's place in the batch. Read again, it is
not looked at but buried. Nothing is written down: after a restart the record is refused once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.runtime.batch import Batch
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.work import Outcome, TopicPartitionKey

CAUSE: Final = "effect_too_large"
DETAIL: Final = "a record that it leads to is larger than its topic takes"

# Buried with a word to its payment, then, if that is what is too large, without; after that it is
# the letter itself.
_REFUSALS_MAX: Final = 2


class TooLarge:
    """The inputs of one worker whose effects were refused for their size, and how often."""

    def __init__(self) -> None:
        self._refusals: dict[tuple[str, int, int], int] = {}

    def __bool__(self) -> bool:
        return bool(self._refusals)

    def ended(self, batch: Batch, outcome: Outcome, output: int | None) -> None:
        """A transaction has ended; ``output``: the place of what was too large, if it was aborted
        for that.

        Raises LaneFatal when the letter of an input is itself refused: it cannot be left out.
        """
        if outcome is Outcome.COMMITTED:
            self._committed(batch.offsets)
        elif output is not None:
            self._refused(*batch.input_of(output))

    def refusals(self, record: InputRecord) -> int:
        """How often the effects of this input were refused; 0 for nearly every one."""
        return self._refusals.get((record.topic, record.partition, record.offset), 0)

    def clear(self) -> None:
        """The partitions are given back."""
        self._refusals = {}

    def _refused(self, topic: str, partition: int, offset: int) -> None:
        refusals = self._refusals.get((topic, partition, offset), 0) + 1
        if refusals > _REFUSALS_MAX:
            raise LaneFatal(
                f"the dead letter of {topic}[{partition}]@{offset} is larger than its topic takes: "
                "see `paystream topics plan`"
            )
        self._refusals[topic, partition, offset] = refusals

    def _committed(self, offsets: Mapping[TopicPartitionKey, int]) -> None:
        if self._refusals:
            self._refusals = {
                (topic, partition, offset): refusals
                for (topic, partition, offset), refusals in self._refusals.items()
                if offset >= offsets.get((topic, partition), 0)
            }
