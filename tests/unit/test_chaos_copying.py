"""The verdict on copies: what a reader saw against what there was to copy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.chaos.copying.report import Report, rows
from pipeline.chaos.copying.variant import ALL, Result
from pipeline.chaos.copying.verdict import Copied, compare


@pytest.mark.parametrize(
    ("seen", "check_order", "found"),
    [
        ([0, 1, 2], True, Copied(0, 0, 0, disorder=False)),
        ([1, 0, 2], False, Copied(0, 0, 0, disorder=False)),
        ([1, 0, 2], True, Copied(0, 0, 0, disorder=True)),
        ([0, 2], False, Copied(1, 0, 0, disorder=False)),
        ([0, 1, 2, 2, 2], False, Copied(0, 0, 2, disorder=False)),
        ([0, 1, 2, 7], False, Copied(0, 1, 0, disorder=False)),
    ],
)
def test_each_damage_has_its_count(
    seen: Sequence[int], *, check_order: bool, found: Copied
) -> None:
    """Missing, twice, foreign, and in another order than the input."""
    assert compare([0, 1, 2], seen, check_order=check_order) == found


def test_there_are_kafkas_sixteen_variants() -> None:
    """Each has a name of its own."""
    assert len({variant.name for variant in ALL}) == 16


@pytest.mark.parametrize(
    ("result", "exact"),
    [
        (Result(ALL[0], messages=10, bounces=3), True),
        (Result(ALL[0], messages=10, bounces=3, exits=2), True),
        (Result(ALL[0], messages=0, bounces=3), False),
        (Result(ALL[0], messages=10, bounces=0), False),
        (Result(ALL[0], messages=10, bounces=3, later=Copied(1, 0, 0, disorder=False)), False),
        (Result(ALL[0], messages=10, bounces=3, meanwhile=Copied(0, 0, 1, disorder=False)), False),
    ],
)
def test_both_readers_count_and_nothing_copied_is_nothing_shown(
    result: Result, *, exact: bool
) -> None:
    """A variant is exact for the reader at the end and for the one meanwhile, or it is broken."""
    report = Report("", "", "", "", "", [result])
    assert report.holds is exact
    assert rows(report)[0][-1] == ("exact" if exact else "BROKEN")
