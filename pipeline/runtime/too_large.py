"""Which input made a record that no topic takes: it is dead-lettered, and the lane goes on.

What is read is bounded before it is kept (``domain/texts``), so this is the last defence: of rows
that an older version wrote, of a topic whose limit was lowered. The client or the broker refuses
the record, its transaction is aborted, and the input is known by the record's place in the batch.
Read again, it is not looked at but buried. Nothing is written down: after a restart the record is
refused once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.runtime.batch import Batch
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.work import TopicPartitionKey

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

    def refused(self, batch: Batch, output: int | None) -> None:
        """A transaction was aborted; ``output``: the place of what was too large, if that was why.

        Raises LaneFatal when the letter of an input is itself refused: it cannot be left out.
        """
        if output is None:
            return
        place = batch.input_of(output)
        refusals = self._refusals.get(place, 0) + 1
        if refusals > _REFUSALS_MAX:
            topic, partition, offset = place
            raise LaneFatal(
                f"the dead letter of {topic}[{partition}]@{offset} is larger than its topic takes: "
                "see `paystream topics plan`"
            )
        self._refusals[place] = refusals

    def refusals(self, record: InputRecord) -> int:
        """How often the effects of this input were refused; 0 for nearly every one."""
        return self._refusals.get((record.topic, record.partition, record.offset), 0)

    def committed(self, offsets: Mapping[TopicPartitionKey, int]) -> None:
        """A transaction went through up to these next offsets."""
        if self._refusals:
            self._refusals = {
                (topic, partition, offset): refusals
                for (topic, partition, offset), refusals in self._refusals.items()
                if offset >= offsets.get((topic, partition), 0)
            }

    def clear(self) -> None:
        """The partitions are given back."""
        self._refusals = {}
