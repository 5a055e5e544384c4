"""Whether two names in the log are one person's, written a second time from docs/payouts.md."""

from __future__ import annotations

import unicodedata
from typing import Final

# Shown by no font though they count as letters, marks or signs: grapheme joiner, fillers, inherent
# vowels, variation selectors, the blank of Braille. All others have a category that says so.
_HIDDEN: Final = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800),
        (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)  # fmt: skip


def one_person(one: str, other: str) -> bool:
    """Capitals, forms of a letter, blanks and what nobody sees tell nobody apart; whoever has a
    name of nothing else is told apart from nobody."""
    names = {_letters(one), _letters(other)}
    return len(names) == 1 or "" in names


def _letters(name: str) -> str:
    """Folded while each letter holds its marks, since one of them becomes a letter by that (Unicode
    3.13, D145), and taken apart after it; until nothing changes, since what was taken apart or has
    lost what stood in between may fold once more."""
    while True:
        seen = "".join(character for character in name if not _is_hidden(character))
        whole = unicodedata.normalize("NFKC", seen)
        parts = unicodedata.normalize("NFKD", whole.casefold())
        if parts == name:
            return name
        name = parts


def _is_hidden(character: str) -> bool:
    """Controls, formats, what no character is assigned to, and separators (C and Z)."""
    return unicodedata.category(character)[0] in "CZ" or character in _HIDDEN
