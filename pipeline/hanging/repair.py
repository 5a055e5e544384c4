"""Ending what hangs the way it was decided, for whoever has just started a broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.broker_connection import Refused
from pipeline.hanging.requests import OVERTAKEN
from pipeline.hanging.search import PATIENCE_S, Cluster, Hanging, find_hanging, patiently


@dataclass
class Repair:
    ended: list[Hanging] = field(default_factory=list)
    # Of these nobody can tell any more what was decided.
    left: list[Hanging] = field(default_factory=list)
    # Of these the producer wrote on in the partition: its next marker ends both alike.
    overtaken: list[Hanging] = field(default_factory=list)


def end_what_hangs(
    bootstrap_servers: str,
    *,
    undecided: bool | None = None,
    on_ended: Callable[[Hanging, bool], None] = lambda _hanging, _commit: None,
    patience_s: float = PATIENCE_S,
) -> Repair:
    """End every transaction that hangs as its coordinator had decided.

    ``undecided``: how to end those of which that cannot be told; None leaves them. UserError when
    the cluster does not tell, or does not take a marker.
    """
    repair = Repair()
    waiting = find_hanging(bootstrap_servers, patience_s=patience_s)

    def end_all() -> None:
        if not waiting:
            return
        with Cluster(bootstrap_servers) as cluster:
            while waiting:
                each = waiting[0]
                commit = undecided if each.commit is None else each.commit
                if commit is None:
                    repair.left.append(each)
                elif _ended(cluster, each, commit):
                    repair.ended.append(each)
                    on_ended(each, commit)
                else:
                    repair.overtaken.append(each)
                waiting.pop(0)

    patiently(end_all, patience_s)
    return repair


def _ended(cluster: Cluster, hanging: Hanging, commit: bool) -> bool:
    try:
        cluster.end(hanging.found, commit=commit)
    except Refused as refused:
        if refused.code in OVERTAKEN:
            return False
        raise
    return True
