"""What a spreadsheet would run is text in every CSV file."""

from __future__ import annotations

import pytest

from pipeline.domain.csv_cells import cell


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", " =1+1", "\u00a0\u2003=1", "\t=1", "\r=1", "\n=1", "\t1",
     "\n1", "\uff1d1"],
)  # fmt: skip
def test_what_begins_like_a_formula_is_text(text: str) -> None:
    """Blanks before the sign are taken off by what opens the file."""
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", " ", "shop", "a=b", "1-1", " two words", "'=1"])
def test_other_text_stays_as_it_is(text: str) -> None:
    """So that a name can be looked up by what it is in the books."""
    assert cell(text) == text
