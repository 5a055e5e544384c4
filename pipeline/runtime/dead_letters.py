"""An input that cannot be handled goes to the dead letters whole, with its cause.

The letter keeps the input's key, partition and bytes (card numbers masked); what is known about it
stands in headers, all of them UTF-8 text:

=================  ===========================================================================
dlq.topic          where it came from, with ``dlq.partition`` and ``dlq.offset``
dlq.timestamp_ms   its append time
dlq.stage          who refused it: payments, gateway or ledger
dlq.cause          the named cause, the same word in metrics and documents
dlq.detail         one sentence for people; never the record's own text
dlq.chunk          ``i/n`` when the input was split because of its size
dlq.header.NAME    each header of the input
=================  ===========================================================================
"""

from __future__ import annotations

from pipeline.domain.card_numbers import mask_card_numbers
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.work import Headers, Outgoing

# With its headers and the batch's own bytes a piece has to fit the topic's 16 MiB, compressible
# or not; half of it leaves room for headers of any sane size.
CHUNK_BYTES = 8 * 1024 * 1024
# Headers of an input are kept up to this size in all; what is over is named, not copied.
HEADER_BYTES_MAX = 64 * 1024


def dead_letter(
    record: InputRecord,
    *,
    topic: str,
    stage: str,
    cause: str,
    detail: str = "",
    chunk_bytes: int = CHUNK_BYTES,
) -> list[Outgoing]:
    """The records that carry one refused input: one, or several pieces of it.

    The pieces go to one partition in order and in the same transaction as the input's offset, so
    a letter is there exactly once and never in part.
    """
    headers: Headers = [
        ("dlq.topic", record.topic.encode()),
        ("dlq.partition", str(record.partition).encode()),
        ("dlq.offset", str(record.offset).encode()),
        ("dlq.timestamp_ms", str(record.timestamp_ms).encode()),
        ("dlq.stage", stage.encode()),
        ("dlq.cause", cause.encode()),
        ("dlq.detail", detail.encode("utf-8", "replace")),
        *_original_headers(record),
    ]
    value = record.value
    if value is None:
        return [(topic, record.partition, record.key, None, headers)]
    masked = mask_card_numbers(value)
    count = max(1, -(-len(masked) // chunk_bytes))
    if count == 1:
        return [(topic, record.partition, record.key, masked, headers)]
    return [
        (
            topic,
            record.partition,
            record.key,
            masked[i * chunk_bytes : (i + 1) * chunk_bytes],
            [*headers, ("dlq.chunk", f"{i + 1}/{count}".encode())],
        )
        for i in range(count)
    ]


def _original_headers(record: InputRecord) -> Headers:
    original = record.origin.headers() if record.origin is not None else None
    kept: Headers = []
    size = 0
    for name, value in original or ():
        text = value if isinstance(value, bytes) else str(value or "").encode()
        size += len(name) + len(text)
        if size > HEADER_BYTES_MAX:
            kept.append(("dlq.headers_dropped", b"over the size limit"))
            break
        kept.append((f"dlq.header.{name}", mask_card_numbers(text)))
    return kept
