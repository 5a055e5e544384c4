"""What a scenario is given, and what it comes to: figures, and claims that can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Say = Callable[[str], None]
MIB = 1024 * 1024


@dataclass(frozen=True)
class Options:
    """The sizes. ``rate_per_s`` is the steady pace of what goes on beside the trouble."""

    place: Path
    partitions: int = 6
    rate_per_s: float = 100.0
    # Ten times as much as this comes.
    gateway_rate_per_s: float = 100.0
    overload_s: float = 120.0
    pause_s: float = 600.0
    large_records: int = 100
    letters: int = 100_000
    hot_commands: int = 5_000
    payments: int = 2_000_000
    jump_s: float = 3_600.0


@dataclass(frozen=True)
class Claim:
    """What has to be, and what was."""

    must: str
    seen: str
    held: bool


@dataclass
class Outcome:
    """One scenario. ``what`` says in a line what was done."""

    name: str
    what: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def held(self) -> bool:
        """Nothing claimed is nothing shown."""
        return bool(self.claims) and all(claim.held for claim in self.claims)

    def figure(self, name: str, value: str) -> None:
        self.figures.append((name, value))

    def claim(self, must: str, seen: str, *, held: bool) -> None:
        self.claims.append(Claim(must, seen, held))
