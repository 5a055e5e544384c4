"""Text in a CSV file that people open with a spreadsheet."""

from __future__ import annotations


def cell(text: str) -> str:
    """A spreadsheet runs what begins like a formula; what the world sent is text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
