"""Which faults a run has, when each begins and how long it lasts: drawn from the seed alone.

Pure. What a fault hits is settled when it begins (``pick`` among what is there then): who is the
coordinator, or which worker runs, no seed can know.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# The workers join, the caches fill, the load reaches every partition.
WARM_UP_S = 8.0
# No fault in the end of a run: the last recovery is to be seen under load as well.
TAIL_S = 8.0
# A broker that has come back copies what it missed; until it is in sync another one may not go.
BROKER_REST_S = 10.0


@dataclass(frozen=True)
class Kind:
    """One sort of fault. ``holds``: of each of these things only one fault is under way at a time;
    ``seconds``: shortest and longest. ``needs``: brokers that a cluster must have for it. ``once``:
    it cannot happen a second time."""

    name: str
    holds: frozenset[str]
    seconds: tuple[float, float]
    says: str
    needs: int = 1
    once: bool = False


@dataclass(frozen=True)
class Drawn:
    """One fault of a run: begins ``at_s`` after the start and lasts ``duration_s``."""

    number: int
    at_s: float
    kind: str
    duration_s: float
    pick: int


def _kind(
    name: str, holds: str, shortest_s: float, longest_s: float, says: str, needs: int = 1
) -> Kind:
    return Kind(name, frozenset(holds.split()), (shortest_s, longest_s), says, needs)


# Workers begin as the older version in a run that has it. It lasts long enough for a worker that
# refused, and stays away for its session, to refuse once more.
UPGRADE = "upgrade"

# A run that has it puts a relay between its brokers.
MARKERS_APART = "markers-apart"

# Sessions and transactions time out after 10 s, a broker's registration after 9 s, a request to a
# gateway may be sent for 15 s and is asked about afterwards: short is below these, long above.
KINDS: tuple[Kind, ...] = (
    _kind("kill-payments", "payments", 0, 0, "SIGKILL of a payments worker"),
    _kind("kill-gateway-worker", "gateway", 0, 0, "SIGKILL of a gateway worker"),
    _kind("kill-ledger", "ledger", 0, 0, "SIGKILL of a ledger worker"),
    _kind("freeze-payments-short", "payments", 2, 6, "a payments worker stands still for 2-6 s"),
    _kind("freeze-payments-long", "payments", 13, 20, "... beyond its session and transaction"),
    _kind("freeze-gateway-worker-short", "gateway", 2, 6, "a gateway worker stands still"),
    _kind("freeze-gateway-worker-past-failover", "gateway", 22, 27,
          "... until others have taken over and the time to send is over; then it wakes"),
    _kind("freeze-ledger", "ledger", 13, 18, "a ledger worker stands still beyond its session"),
    _kind("twin-payments", "payments", 6, 12,
          "a second payments worker with the same node id and slot, so the same transactional id"),
    _kind("twin-gateway-worker", "gateway", 6, 12, "the same of a gateway worker"),
    _kind("twin-ledger", "ledger", 6, 12, "the same of a ledger worker"),
    _kind("full-disk", "payments", 5, 10,
          "a payments worker's files cannot grow (RLIMIT_FSIZE), nor its successors'"),
    _kind("late-ends", "proxy", 6, 12, "EndTxn of one node arrive in its next transaction"),
    _kind("doubled-ends", "proxy", 6, 12, "EndTxn of one node arrive twice, unanswered"),
    _kind("dropped-answers", "proxy", 6, 12, "answers to EndTxn and TxnOffsetCommit get lost"),
    _kind("doubled-writes", "proxy", 6, 12, "Produce of one node arrive twice, or get lost"),
    _kind("reordered-writes", "proxy", 6, 12, "Produce of one node arrive out of order, or late"),
    _kind("kill-broker", "brokers", 4, 12, "SIGKILL of a broker, which then comes back", 3),
    _kind("kill-coordinator", "brokers", 4, 12,
          "... of the one that coordinates a worker's transactions", 3),
    _kind("kill-group-coordinator", "brokers", 4, 12,
          "... of the one that keeps a stage's offsets and shares its partitions out", 3),
    _kind("kill-controller", "brokers", 4, 12, "... of the one that leads the controllers", 3),
    _kind("freeze-broker-short", "brokers", 2, 5, "a broker stands still below its time-outs"),
    _kind("freeze-coordinator-long", "brokers", 12, 18,
          "a coordinator stands still until it counts as dead, and wakes", 3),
    _kind("freeze-group-coordinator-long", "brokers", 12, 18, "... the one of a stage's group", 3),
    _kind("freeze-controller-long", "brokers", 12, 18,
          "... the leader of the controllers, which wakes when another one leads", 3),
    _kind(MARKERS_APART, "brokers payments", 20, 24,
          "a payments worker's commit is told to all brokers but one with a part of the table; it "
          "stands still until another has taken over", 3),
    _kind("roll-brokers", "brokers", 30, 45, "all brokers are restarted in turn", 3),
    _kind("kill-simulator", "simulators", 1, 6, "SIGKILL of a gateway"),
    _kind("freeze-simulator", "simulators", 11, 16,
          "a gateway stands still with calls open, beyond sessions and transactions"),
    _kind("gateway-outage", "simulators", 5, 15, "a gateway answers 500, or refuses connections"),
    _kind("kill-postgres", "postgres", 1, 6, "SIGKILL of the ledger's PostgreSQL"),
    _kind("freeze-postgres", "postgres", 11, 16,
          "PostgreSQL stands still, its sessions included, for as long"),
    _kind("roll-workers", "payments gateway ledger nodes", 12, 20,
          "all nodes are drained and started again in turn"),
    _kind("scale-up", "nodes", 10, 20, "one more node comes, and is drained again"),
    _kind("scale-down", "payments gateway ledger nodes", 6, 15,
          "a node is drained, and comes back"),
    Kind(UPGRADE, frozenset(("payments", "gateway", "ledger", "nodes")), (20, 32),
         "workers become a version that reads more topics: all at once, or node by node",
         once=True),
)  # fmt: skip

BY_NAME = {kind.name: kind for kind in KINDS}


def draw(
    seed: int, seconds: float, *, every_s: float, kinds: Sequence[Kind] = KINDS
) -> list[Drawn]:
    """The faults of a run of that length, ``every_s`` apart on average, in order of their time.

    Kinds come in shuffled rounds: none comes a third time before each came once, unless what it
    would hit is held by another fault.
    """
    dice = random.Random(seed)
    drawn: list[Drawn] = []
    free_at: dict[str, float] = {}
    bag: list[Kind] = []
    at_s = WARM_UP_S
    kinds = list(kinds)
    while kinds:
        if len(bag) < len(kinds):
            bag += dice.sample(kinds, len(kinds))
        placed = _first_free(bag, free_at, at_s)
        if placed is not None:
            kind = bag.pop(placed)
            duration_s = round(dice.uniform(*kind.seconds), 1)
            if at_s + duration_s <= seconds - TAIL_S:
                drawn.append(
                    Drawn(
                        len(drawn) + 1, round(at_s, 1), kind.name, duration_s, dice.getrandbits(32)
                    )
                )
                if kind.once:
                    kinds.remove(kind)
                    bag = [other for other in bag if other != kind]
                for thing in kind.holds:
                    rest_s = BROKER_REST_S if thing == "brokers" else 1.0
                    free_at[thing] = at_s + duration_s + rest_s
        at_s += every_s * dice.uniform(0.4, 1.6)
        if at_s > seconds - TAIL_S:
            break
    return drawn


def _first_free(bag: Sequence[Kind], free_at: dict[str, float], at_s: float) -> int | None:
    for place, kind in enumerate(bag):
        if all(free_at.get(thing, 0.0) <= at_s for thing in kind.holds):
            return place
    return None
