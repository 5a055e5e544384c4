"""What stands of the control topic: the newest entry, whether workers take it, and what they go by.

The same judgement as a worker's (``live_policy``), made over everything the topic still holds, by
the configuration of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pipeline.domain.model import ControlEntry
from pipeline.domain.policy import Policy
from pipeline.domain.route_rules import ROUTING, RoutesRefused, read_routes, routed


class Told(Struct, frozen=True):
    """A record of the topic as it came: an entry, a deletion, or one that cannot be read; without
    a key a batch of them that cannot be decompressed."""

    key: str
    entry: ControlEntry | None
    unreadable: str | None = None


class Standing(Struct, frozen=True):
    """What stands of one key; ``problems`` say why the newest record is refused.

    ``in_force`` is what workers follow: the newest entry, or an earlier one where that is refused;
    None is the configuration's own rules.
    """

    key: str
    newest: ControlEntry | None
    problems: tuple[str, ...] = ()
    in_force: ControlEntry | None = None


def standing(configured: Policy, told: Iterable[Told]) -> dict[str, Standing]:
    """What stands of each key that has an entry, after the topic's records in their order."""
    found: dict[str, Standing] = {}
    for each in told:
        if not each.key:
            continue
        before = found.get(each.key, Standing(each.key, None))
        if each.unreadable is not None:
            problems: tuple[str, ...] = (each.unreadable,)
        elif each.entry is None:
            found.pop(each.key, None)
            continue
        else:
            problems = _problems(configured, each.entry)
        in_force = before.in_force if problems else each.entry
        found[each.key] = Standing(each.key, each.entry, problems, in_force)
    return found


def _problems(configured: Policy, entry: ControlEntry) -> tuple[str, ...]:
    if entry.key != ROUTING:
        return (f"no worker follows this key; known is {ROUTING}",)
    try:
        routed(configured, read_routes(entry.value), version=entry.version)
    except RoutesRefused as refused:
        return refused.problems
    return ()
