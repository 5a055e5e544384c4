"""The diagrams of docs/lifecycle.md from the tables: generated, and held equal by a test.

Regenerate with ``python -m pipeline.lifecycle_document``; the text around them is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pipeline.domain.lifecycle import attempt_diagram, payment_diagram

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "lifecycle.md"

_BLOCK: Final = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def with_diagrams(text: str) -> str:
    """The document with its two diagrams, the payment's and the attempt's, drawn anew."""
    diagrams = iter((payment_diagram(), attempt_diagram()))
    return _BLOCK.sub(lambda _: f"```mermaid\n{next(diagrams)}```", text, count=2)


if __name__ == "__main__":
    DOCUMENT.write_text(with_diagrams(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
