"""A check that stays when Python runs with -O: broken means a bug, so the worker stops."""

from __future__ import annotations


class InvariantBroken(Exception):
    """A programmer's error was found; nothing may be committed after it."""


def invariant(condition: object, why: str) -> None:
    """Raise InvariantBroken unless the condition holds. Never used for bad input."""
    if not condition:
        raise InvariantBroken(why)
