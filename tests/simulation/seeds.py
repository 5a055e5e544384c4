"""Seeds that have failed once, which the tests run for ever, and what each of them had found."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("failed_seeds.txt")

# A seed, and the mix of orders that it was drawn with.
Drawn = tuple[int, str]


def failed_seeds() -> list[Drawn]:
    """One a line: the seed, its mix, then what it showed."""
    lines = [line.split() for line in FILE.read_text().splitlines()]
    return [(int(line[0]), line[1]) for line in lines if line and line[0] != "#"]


def remember(drawn: Drawn, what: str) -> None:
    """Keep a seed that failed."""
    if drawn in failed_seeds():
        return
    seed, mix = drawn
    with FILE.open("a") as file:
        file.write(f"{seed:<8} {mix:<6} {' '.join(what.split())[:150]}\n")
