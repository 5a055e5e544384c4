"""Seeds that have failed once, which the tests run for ever, and what each of them had found."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("failed_seeds.txt")


def failed_seeds() -> list[int]:
    """One a line: the seed, then what it showed."""
    return [
        int(line.split()[0])
        for line in FILE.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]


def remember(seed: int, what: str) -> None:
    """Keep a seed that failed."""
    if seed in failed_seeds():
        return
    with FILE.open("a") as file:
        file.write(f"{seed:<8} {' '.join(what.split())[:150]}\n")
