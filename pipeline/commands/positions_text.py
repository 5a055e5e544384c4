"""Positions as people and programs read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.runtime.positions.standing import Position

Found = Sequence[tuple[str, Position]]

_HEADS = ("group", "partition", "position", "first", "end", "gone")


def position_lines(found: Found, everything: bool) -> Iterator[str]:
    """A table, one partition a line, and how much is gone."""
    shown = [each for each in found if everything or _is_told(each[1])]
    if shown:
        yield from _table(
            [
                (
                    group,
                    each.place,
                    "none" if each.committed is None else str(each.committed),
                    str(each.first),
                    str(each.end),
                    "beyond the end" if each.is_beyond_end else f"{each.gone:,}",
                )
                for group, each in shown
            ]
        )
        yield ""
    gone = [each for _, each in found if each.gone]
    if not gone:
        yield f"nothing is gone in {len(found):,} partitions"
    else:
        count = sum(each.gone for each in gone)
        yield (
            f"{count:,} offset{'' if count == 1 else 's'} of {len(gone)} "
            f"partition{'' if len(gone) == 1 else 's'} gone unread; `paystream positions move` "
            "goes on behind them"
        )
    if without := sum(each.committed is None for _, each in found):
        yield f"{without:,} without a position: `paystream topics apply` commits where they begin"
    yield from (beyond_end(each) for _, each in found if each.is_beyond_end)


def beyond_end(position: Position) -> str:
    return (
        f"{position.place} ends at {position.end}, before the position {position.committed}: the "
        "cluster lost records that it had acknowledged. Find out which before anything is moved"
    )


def positions_json(found: Found, everything: bool) -> dict[str, Any]:
    return {
        "positions": [
            {
                "group": group,
                "topic": each.topic,
                "partition": each.partition,
                "position": each.committed,
                "first": each.first,
                "end": each.end,
                "gone": each.gone,
            }
            for group, each in found
            if everything or _is_told(each)
        ],
        "gone": sum(each.gone for _, each in found),
    }


def _is_told(position: Position) -> bool:
    return bool(position.gone or position.is_beyond_end or position.committed is None)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(_HEADS, *rows, strict=True)]
    for row in (_HEADS, *rows):
        cells = (
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
