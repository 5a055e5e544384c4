"""A consumed record as the engine's decisions see it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class InputRecord(Struct, frozen=True, gc=False):
    """``timestamp_ms`` is the append time; ``origin`` the client's message, for its headers."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    origin: Any = None


def input_record(message: Any) -> InputRecord:
    """Take what is needed of a confluent-kafka message."""
    return InputRecord(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        message,
    )
