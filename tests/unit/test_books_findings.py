"""What the proof of the books takes for found."""

from __future__ import annotations

import pytest

from benchmarks.books.findings import Damage, compare, compare_counts
from benchmarks.failure import WrongRun


def test_a_damage_that_is_not_found_fails_the_proof() -> None:
    """As does a finding that nobody damaged, and a second one of a name that is counted."""
    damages = [Damage("x", "place", {"check": (("entry_changed", "t[0]@1"),)})]
    compare("check", damages, [("entry_changed", "t[0]@1")])
    for found in ([], [("entry_changed", "t[0]@2")], [("seal_changed", "t[0]@1")]):
        with pytest.raises(WrongRun, match=r"entry_changed t\[0\]@1"):
            compare("check", damages, found)
    with pytest.raises(WrongRun, match="found and not damaged: balance_differs b"):
        compare("check", damages, [("entry_changed", "t[0]@1"), ("balance_differs", "b")])
    compare_counts("check", damages, {"entry_changed": 1})
    with pytest.raises(WrongRun):
        compare_counts("check", damages, {"entry_changed": 2})
