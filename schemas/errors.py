"""What can be wrong with a record's bytes, and with the source of schema ids."""

from __future__ import annotations

from typing import Final, Literal

DecodeKind = Literal[
    "not_wire_format", "unknown_schema_id", "wrong_schema", "truncated", "malformed",
    "trailing_bytes", "record_too_large",
]  # fmt: skip

DECODE_KINDS: Final[tuple[DecodeKind, ...]] = (
    "not_wire_format",  # no magic byte 0, or shorter than the header of five bytes
    "unknown_schema_id",  # neither the lock nor the registry knows the id
    "wrong_schema",  # a known id, but of another record than this topic carries
    "truncated",  # the body ends before the record does
    "malformed",  # bytes no Avro writer makes: bad UTF-8, a branch that is not there
    "trailing_bytes",  # a whole record, and more behind it
    "record_too_large",  # more bytes than a record may have, whatever they hold
)


class DecodeError(Exception):
    """The bytes are no record of the expected schema: bad input, for the dead-letter topic.

    ``kind`` is one of DECODE_KINDS and becomes the dead letter's cause; ``detail`` is for people
    and never holds the record's own text.
    """

    def __init__(self, kind: DecodeKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: DecodeKind = kind
        self.detail = detail


class EncodeError(Exception):
    """The record does not fit its schema: an error of the program that made it, not of its input.

    Raised for a missing or unknown field, a wrong type (a float where minor units belong) and an
    integer out of range. Nothing was encoded.
    """


class UnknownSchemaId(Exception):
    """The source of ids was asked, and has no schema of this id."""

    def __init__(self, schema_id: int) -> None:
        super().__init__(f"no schema has id {schema_id}")
        self.schema_id = schema_id


class RegistryUnavailable(Exception):
    """The schema registry did not answer. Pauses the flow; never a reason to dead-letter."""
