"""An input that cannot be handled goes to the dead letters whole, with its cause.

The letter keeps the input's key, partition and bytes (card numbers masked, in the key where it
names no order); what is known about it stands in headers, all of them UTF-8 text:

=================  ===========================================================================
dlq.topic          where it came from, with ``dlq.partition`` and ``dlq.offset``
dlq.timestamp_ms   its append time
dlq.stage          who refused it: payments, gateway, risk, ledger, notifications or webhooks
dlq.cause          the named cause, the same word in metrics and documents
dlq.detail         one sentence for people; never the record's own text
dlq.attempts       how often it had been redriven, and buried again, before this letter
dlq.first_ms       append time of the record when it came for the first time
dlq.first          ``partition:offset`` of its first letter, when this is not the first
dlq.masked         what holds masked card numbers, of key, value and headers
dlq.key            the beginning of a key that is too long for any record of this flow; the letter
                   has none then
dlq.chunk          ``i/n`` when the input was split because of its size
dlq.last_offset    of a batch of records that cannot be unfolded, whose first offset is
                   ``dlq.offset``; with ``dlq.batch_records``, ``dlq.batch_bytes`` and
                   ``dlq.batch_sha256``
dlq.header.NAME    each header of the input
dlq.headers_unreadable
                   why there is none of those, where the client cannot read the input's headers
=================  ===========================================================================

A redriven record says what it is in headers of its own (``redrive.``), so that a letter made of it
knows its history and an audit can tell it from the input that it stands for:

=================  ===========================================================================
redrive.letter     ``partition:offset`` of the letter it was redriven from
redrive.offset     offset of the refused input, in the same topic and partition
redrive.count      how often the record has been redriven by now
redrive.first      ``partition:offset`` of its first letter, with ``redrive.first_ms``
=================  ===========================================================================
"""

from __future__ import annotations

import re
from typing import Final

from msgspec.structs import replace

from pipeline.domain.card_numbers import mask_card_numbers
from pipeline.domain.invariant import invariant
from pipeline.domain.keys import masked_key
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.unreadable_batch import CAUSE as UNREADABLE_CAUSE
from pipeline.runtime.unreadable_batch import UnreadableBatch
from pipeline.runtime.work import Headers, Outgoing
from topics.record_headers import UNREADABLE, record_headers

# With its headers and the batch's own bytes a piece has to fit the topic's 16 MiB, compressible
# or not; half of it leaves room for headers of any sane size.
CHUNK_BYTES = 8 * 1024 * 1024
# Headers of an input are kept up to this size in all; what is over is named, not copied.
HEADER_BYTES_MAX = 64 * 1024
# A detail may repeat a word of the input, and a word may be a book.
DETAIL_LENGTH_MAX = 1_000
# No key of this flow is longer than some hundred bytes. A letter goes without one that is longer
# than this, and with the beginning of it in a header.
KEY_BYTES_MAX = 1024 * 1024
KEY_BYTES_SHOWN = 4 * 1024

REDRIVE: Final = "redrive."
# The last millisecond that a date can have.
_TIME_MS_MAX: Final = 253_402_300_799_999
_PLACE: Final = re.compile(r"[0-9]{1,9}:[0-9]{1,19}")


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
    value = record.value
    masked = None if value is None else mask_card_numbers(value)
    key = masked_key(record.key)
    given, readable = _headers_of(record)
    batch = record.origin if isinstance(record.origin, UnreadableBatch) else None
    offset = record.offset if batch is None else batch.batch.first_offset
    kept, headers_masked = _original_headers(given)
    holds = [
        name
        for name, has_some in (
            ("key", key != record.key),
            ("value", masked != value),
            ("headers", headers_masked),
        )
        if has_some
    ]
    headers: Headers = [
        ("dlq.topic", record.topic.encode()),
        ("dlq.partition", str(record.partition).encode()),
        ("dlq.offset", str(offset).encode()),
        ("dlq.timestamp_ms", str(record.timestamp_ms).encode()),
        ("dlq.stage", stage.encode()),
        ("dlq.cause", cause.encode()),
        ("dlq.detail", detail[:DETAIL_LENGTH_MAX].encode("utf-8", "replace")),
        *_history(record, given),
        *([] if batch is None else batch.letter_headers()),
        *([("dlq.masked", ",".join(holds).encode())] if holds else []),
        *kept,
        *([] if readable else [("dlq.headers_unreadable", b"the name of a header is not UTF-8")]),
    ]
    if key is not None and len(key) > KEY_BYTES_MAX:
        headers.append(("dlq.key", mask_card_numbers(key[:KEY_BYTES_SHOWN])))
        key = None
    if masked is None:
        return [(topic, record.partition, key, None, headers)]
    count = max(1, -(-len(masked) // chunk_bytes))
    if count == 1:
        return [(topic, record.partition, key, masked, headers)]
    return [
        (
            topic,
            record.partition,
            key,
            masked[i * chunk_bytes : (i + 1) * chunk_bytes],
            [*headers, ("dlq.chunk", f"{i + 1}/{count}".encode())],
        )
        for i in range(count)
    ]


def unreadable_letter(
    record: InputRecord, *, topic: str, stage: str, whole: bool = True
) -> list[Outgoing]:
    """The letter of a batch that cannot be unfolded; without its bytes unless ``whole``."""
    invariant(type(record.origin) is UnreadableBatch, "an unreadable batch is known by its origin")
    return dead_letter(
        record if whole else replace(record, value=None),
        topic=topic,
        stage=stage,
        cause=UNREADABLE_CAUSE,
        detail=record.origin.detail,
    )


def is_redriven(record: InputRecord) -> bool:
    """Whether this input came out of the dead letters."""
    if record.origin is None:
        return False
    return any(name == "redrive.letter" for name, _ in record_headers(record.origin))


def _headers_of(record: InputRecord) -> tuple[Headers, bool]:
    """The input's headers, and whether they can be read."""
    found = () if record.origin is None else record_headers(record.origin)
    if found is UNREADABLE:
        return [], False
    return [
        (name, value if isinstance(value, bytes) else str(value or "").encode())
        for name, value in found
    ], True


def _history(record: InputRecord, given: Headers) -> Headers:
    """How often and since when it comes back. Whoever writes inputs could write these as well, so
    what is not well formed counts as not there; a redrive believes only its own markers."""
    said = {name: value.decode("ascii", "replace") for name, value in given}
    first, count = said.get("redrive.first", ""), said.get("redrive.count", "")
    first_ms = said.get("redrive.first_ms", "")
    if not (
        _PLACE.fullmatch(first)
        and _is_number(count)
        and _is_number(first_ms)
        and int(first_ms) <= _TIME_MS_MAX
    ):
        return [("dlq.attempts", b"0"), ("dlq.first_ms", str(record.timestamp_ms).encode())]
    return [
        ("dlq.attempts", count.encode()),
        ("dlq.first_ms", first_ms.encode()),
        ("dlq.first", first.encode()),
    ]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _original_headers(given: Headers) -> tuple[Headers, bool]:
    """The input's own headers as the letter keeps them, and whether any of them was masked."""
    kept: Headers = []
    size = 0
    any_masked = False
    for name, text in given:
        if name.startswith(REDRIVE):
            continue  # its history, told by the letter's own headers
        size += len(name) + len(text)
        if size > HEADER_BYTES_MAX:
            kept.append(("dlq.headers_dropped", b"over the size limit"))
            break
        masked = mask_card_numbers(text)
        any_masked = any_masked or masked != text
        kept.append((f"dlq.header.{name}", masked))
    return kept, any_masked
