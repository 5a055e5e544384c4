"""Whether the records of a batch are at the places that they say.

A broker looks at the offsets that records give of themselves where they come compressed, and at the
last one that a batch's head gives. Those of the records of an uncompressed batch it takes as they
are, and the client hands them out so.
"""

from __future__ import annotations

from pipeline.batches.record_batch import NONE, RECORDS_AT, RecordBatch


def gives_false_offsets(batch: RecordBatch) -> bool:
    """Whether its records say that they are elsewhere than at its places, one after the other.

    Of a compressed one a broker has looked at them. One with fewer records than places has been
    compacted, and was looked at when it came.
    """
    if batch.codec != NONE or batch.records != batch.last_offset - batch.first_offset + 1:
        return False
    data, at = batch.data, RECORDS_AT
    try:
        for place in range(batch.records):
            size, at = _number(data, at)
            behind = at + size
            # Behind a byte of attributes and how far it is from the first one's time.
            _, at = _number(data, at + 1)
            offset, _ = _number(data, at)
            if offset != place:
                return True
            at = behind
    except IndexError:
        # The client says nothing of what it cannot parse, and its partition stands.
        pass
    return False


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, positive and negative ones in turn; and what is behind it."""
    byte = data[at]
    at += 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value >> 1 ^ -(value & 1), at
