"""Text in a CSV file that people open with a spreadsheet."""

from __future__ import annotations

from typing import Final

# The second four are the same signs in full width, which some take for them.
_STARTS: Final = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
# Between cells and rows: what stands behind one may be read as a cell of its own.
_BREAKS: Final = frozenset("\t\r\n")


def cell(text: str) -> str:
    """A spreadsheet runs what begins like a formula, also behind blanks that it takes off; what the
    world sent is text."""
    first = text.lstrip()[:1]
    return f"'{text}" if first in _STARTS or text[:1] in _BREAKS else text
