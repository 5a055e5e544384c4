"""Text that a person or a file says and a decision keeps: what every database and topic can hold.

A byte of a command line that is no UTF-8 comes in as half of a surrogate pair, which is no text to
anybody else: no database stores it, and no record of a topic carries it.
"""

from __future__ import annotations

from typing import Final

from pipeline.errors import UserError

# Of a name of somebody.
NAME_LENGTH_MAX: Final = 255
# Why something was decided: some pages.
REASON_LENGTH_MAX: Final = 10_000
# A bank's reference; as long as what is kept of the text of its line (Max140Text).
REFERENCE_LENGTH_MAX: Final = 140


def is_storable(text: str) -> bool:
    """Whether the text can be kept: it is UTF-8, and holds no NUL, which PostgreSQL refuses."""
    return "\0" not in text and storable(text) == text


def storable(text: str) -> str:
    r"""The text, with what is no UTF-8 of it written out as ``\udce9``.

    For what was decided before such text was refused: the decision stays as it was made.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def require_text(text: str, what: str, length_max: int) -> None:
    """UserError, which calls the text ``what``, where it cannot be kept or is too long."""
    if not is_storable(text):
        raise UserError(
            f"{what} {storable(text[:NAME_LENGTH_MAX])!r} cannot be kept: it holds a byte that is "
            "no UTF-8, or a NUL. Write it again without."
        )
    if len(text) > length_max:
        raise UserError(
            f"{what} has {len(text):,} characters and can have {length_max:,}: say it shorter."
        )
