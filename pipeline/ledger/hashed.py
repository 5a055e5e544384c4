"""What is hashed of a row: its values as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import json


def hashed_form(said: Sequence[object]) -> bytes:
    """Of values that hold bytes which are no text, something that no whole row has."""
    try:
        return json.encode(said)
    except UnicodeEncodeError:
        return b"\0" + repr(said).encode()
