"""What was damaged and what was found: each damage by name at its place, and nothing besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.failure import WrongRun

LEDGER_VERIFY = "ledger verify"
RECONCILE = "reconcile run"
IMPORT = "reconcile import"
VERIFY = "verify"
CHECKS = (LEDGER_VERIFY, RECONCILE, IMPORT, VERIFY)

# A name and the place it is found at.
Found = tuple[str, str]


@dataclass(frozen=True)
class Damage:
    """One row that was damaged. ``found`` is what has to be found, by check."""

    kind: str
    place: str
    found: Mapping[str, tuple[Found, ...]] = field(default_factory=dict)


def compare(check: str, damages: Sequence[Damage], found: Iterable[Found]) -> None:
    """WrongRun unless a check has found what was damaged, all of it and nothing else. What two
    damages have in common, as the balance of an account, counts once."""
    _require(check, Counter(_wanted(check, damages)), Counter(set(found)))


def compare_counts(check: str, damages: Sequence[Damage], counts: Mapping[str, int]) -> None:
    """The same for a check that counts by name."""
    _require(
        check,
        Counter((name, "") for name, _ in _wanted(check, damages)),
        Counter({(name, ""): count for name, count in counts.items()}),
    )


def _wanted(check: str, damages: Sequence[Damage]) -> set[Found]:
    return {each for damage in damages for each in damage.found.get(check, ())}


def _require(check: str, wanted: Counter[Found], seen: Counter[Found]) -> None:
    missed, strange = wanted - seen, seen - wanted
    if missed or strange:
        raise WrongRun(
            f"`{check}` on damaged books: not found: {_said(missed)}; found and not damaged: "
            f"{_said(strange)}"
        )


def _said(found: Counter[Found]) -> str:
    lines = [f"{name} {place} x{count}" for (name, place), count in sorted(found.items())]
    return ", ".join(lines) or "nothing"
