"""Gateways' own texts: evidence for people, not a place to store pages of HTML or card numbers."""

from __future__ import annotations

from typing import Final

from pipeline.domain.card_numbers import mask_card_number_text

GATEWAY_TEXT_LENGTH_MAX: Final = 255


def kept_text(text: str) -> str:
    """As much of a gateway's text as a record keeps, whether it answered or told by itself."""
    return mask_card_number_text(text[:GATEWAY_TEXT_LENGTH_MAX])
