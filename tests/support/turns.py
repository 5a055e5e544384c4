"""Which files begin first, so that none is waited for alone at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.house import TOP

UNIT = TOP / "tests" / "unit"


def in_turn(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Files that start servers first, then what counts for long, and the fast unit tests last;
    among equals slow ones before others. A file's tests stay in their order."""
    with_servers = {item.path for item in items if item.get_closest_marker("integration")}
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> tuple[bool, bool]:
        if item.path in with_servers:
            return False, item.path not in slow
        return True, UNIT in item.path.parents and item.path not in slow

    return sorted(items, key=turn)
