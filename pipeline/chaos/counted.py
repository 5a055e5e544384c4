"""How many of something, in words."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """``what`` begins with its noun in the plural: "1 decision taken back", "2,000 orders"."""
    noun, space, rest = what.partition(" ")
    return f"{count:,} {noun.removesuffix('s') if count == 1 else noun}{space}{rest}"
