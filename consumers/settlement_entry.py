"""From a record of `settlements` to the entry that books it, or why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.keys import record_key
from pipeline.domain.posting import JournalEntry, PostingRefused, journal_entry
from pipeline.domain.records import settlement_from_record
from schemas.errors import DecodeError

KEY_MISMATCH: Final = "key_mismatch"


class NotBookable(Struct, frozen=True, gc=False):
    """``cause`` is a dead letter's; ``detail`` is for people."""

    cause: str
    detail: str


def entry_of_record(
    decode: Callable[[bytes], dict[str, Any]], key: bytes | None, value: bytes
) -> JournalEntry | NotBookable:
    """The movement of a settlement's record. Pure but for the codec's own ids (which may raise
    RegistryUnavailable): a rebuild refuses what the first booking refused."""
    try:
        settlement = settlement_from_record(decode(value))
    except DecodeError as error:
        return NotBookable(error.kind, error.detail)
    if key != record_key(settlement.merchant_id, settlement.order_id):
        return NotBookable(KEY_MISMATCH, "the key is not the payload's merchant and order")
    entry = journal_entry(settlement)
    if isinstance(entry, PostingRefused):
        return NotBookable(entry.rule, entry.detail)
    return entry
