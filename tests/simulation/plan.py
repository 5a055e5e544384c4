"""What a seed draws: the orders of a run and what becomes of them, and the faults.

A plan is data, and a run is a function of it: to find the shortest trace of a failure, orders and
faults are taken out and the rest is run again from the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tests.simulation.gateway import TRANSPORT, Script
from tests.simulation.lives import (
    FINAL_DECLINES,
    GATEWAYS,
    MAIN,
    OTHER,
    PASSED_ON,
    SUCCEED,
    CommandPlan,
    OrderPlan,
    draw_life,
)

ORDERS_MIN = 200
FAULTS_MIN = 20
MERCHANT = "shop"
# When orders come and faults strike; after it everything heals.
ACTIVE_S = 90.0
BURSTS = 7
BURST_EVERY_S = ACTIVE_S * 0.7 / BURSTS

# Orders of one customer, of whom no more are taken (see ``policy``), and unlinked credits.
BUSY_CUSTOMER = "busy"
BUSY_ORDERS = 8
BUSY_MAX = 5
CREDITS = 2
# How often one card may be declined.
DECLINES_MAX = 3
# How long commands wait for their order to be handled: shorter than a worker may be frozen and its
# successors killed, so that some are rejected.
AWAITING_ORDER_S = 120.0
# How long a gateway holds what it has authorized.
AUTHORIZATION_S = 120.0


@dataclass(frozen=True)
class Fault:
    """``after_steps``: at which passage of its target, counted from ``at_s``, it strikes."""

    kind: str
    at_s: float
    target: str = ""
    after_steps: int = 0
    for_s: float = 0.0
    what: str = ""

    def __str__(self) -> str:
        more = f" {self.what}" if self.what else ""
        where = f" {self.target}" if self.target else ""
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.kind}{more}{where} at {self.at_s:.2f} s, step {self.after_steps}{lasting}"


@dataclass(frozen=True)
class Mix:
    """What the orders of a seed are: up to which of a hundred one leads which life (the rest is bad
    input), how many are published again, how often a gateway tells of each operation.

    And what else makes a run longer, in how many of four seeds: more workers, transactions of few
    records, a quick or impatient pace."""

    plain: int
    many_turns: int
    trouble: int
    declined: int
    waiting: int
    commanded: int
    conflict: int
    hurried: int
    repeated: int
    notices: tuple[int, ...]
    payments_workers: tuple[int, ...]
    gateway_workers: tuple[int, ...]
    records_max: tuple[int, ...]
    other_pace: float
    partitions: tuple[int, ...]
    # How late the ledger's worker is told at most of what there is to book.
    booked_s: float
    # Of how many of a hundred seeds the first gateway knows no keys.
    keyless: int


# One seed of so many is rich. In the others most orders lead the short life (order, charge,
# settlement) and a few any other: what defends the log meets as many faults, for half the work.
RICH_EVERY = 11
# And one has payouts, whose decisions take as long as two other seeds.
PAYOUTS_EVERY = 24
MIXES = {
    "rich": Mix(
        23, 45, 68, 74, 82, 92, 95, 97, repeated=8, notices=(0, 0, 0, 1, 2),
        payments_workers=(1, 2, 2, 3), gateway_workers=(1, 2, 2, 3),
        records_max=(4_000, 4_000, 50, 7), other_pace=0.25,
        partitions=(2, 3, 3, 4), booked_s=20.0, keyless=15,
    ),
    "short": Mix(
        89, 91, 94, 95, 96, 97, 98, 99, repeated=3, notices=(0,) * 12 + (1, 2),
        payments_workers=(1, 1, 2, 2), gateway_workers=(1, 1, 2, 2),
        records_max=(4_000, 4_000, 4_000, 4_000, 4_000, 4_000, 50, 7), other_pace=0.06,
        partitions=(2, 2, 3, 3), booked_s=45.0, keyless=6,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """How long things take. ``call_s``: a call to a broker, and ``fetch_s``: what was written until
    it is read, at most; ``inquiry_s``: until the first question about an outcome, of which
    ``inquiries`` are asked. ``nervous``: breakers open as soon as production's do."""

    call_s: float = 0.25
    fetch_s: float = 1.0
    inquiry_s: float = 20.0
    inquiries: int = 6
    nervous: bool = False


# Quick and impatient ones take half as much work again: more
# transactions of fewer records, more refusals by an open breaker, more questions in vain.
_QUICK_BROKERS = {"call_s": 0.06, "fetch_s": 0.3}
_IMPATIENT = {"inquiry_s": 9.0, "inquiries": 10}


@dataclass(frozen=True)
class Plan:
    seed: int
    orders: tuple[OrderPlan, ...]
    faults: tuple[Fault, ...]
    mix: str = "rich"
    partitions: int = 3
    payments_workers: int = 2
    gateway_workers: int = 2
    risk_workers: int = 1
    skews_s: tuple[float, ...] = ()
    grace_s: float = 8.0
    # How long the first gateway remembers keys, and whether it knows any.
    retention_s: float = 86_400.0
    idempotent: bool = True
    records_max: int = 4_000
    pace: Pace = Pace()
    # Whether records are written and read as Avro, or handed on as they are.
    avro: bool = True
    # Whether merchants other than the orders' are paid out meanwhile.
    payouts: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        return (
            *(f"payments-{n}" for n in range(self.payments_workers)),
            *(f"gateway-{n}" for n in range(self.gateway_workers)),
            *(f"risk-{n}" for n in range(self.risk_workers)),
            "ledger-0",
        )

    def only(self, orders: tuple[OrderPlan, ...], faults: tuple[Fault, ...]) -> Plan:
        return replace(self, orders=orders, faults=faults)


def mix_of(seed: int) -> str:
    return "short" if seed % RICH_EVERY else "rich"


def draw(seed: int, mix: str | None = None) -> Plan:
    """The plan of a seed; ``mix``: another one of its orders than its number says."""
    random = Random(f"{seed}/plan")
    name = mix_of(seed) if mix is None else mix
    drawn = MIXES[name]
    orders = tuple(_counted(_order(random, number, drawn), number) for number in range(ORDERS_MIN))
    payments_workers = random.choice(drawn.payments_workers)
    gateway_workers = random.choice(drawn.gateway_workers) if payments_workers > 1 else 2
    plan = Plan(
        seed=seed,
        mix=name,
        orders=orders,
        faults=(),
        partitions=random.choice(drawn.partitions),
        payments_workers=payments_workers,
        gateway_workers=gateway_workers,
        risk_workers=random.choice((1, 1, 1, 2)),
        skews_s=tuple(round(random.uniform(-2.4, 2.4), 2) for _ in range(8)),
        retention_s=random.choice((86_400.0, 86_400.0, 86_400.0, 600.0)),
        idempotent=random.random() * 100 > drawn.keyless,
        records_max=random.choice(drawn.records_max),
        avro=seed % 16 == 0,
        payouts=seed % PAYOUTS_EVERY == 1,
    )
    return replace(plan, faults=_faults(random, plan), pace=_pace(random, drawn))


def _pace(random: Random, mix: Mix) -> Pace:
    made = Pace(nervous=random.random() < mix.other_pace)
    if random.random() < mix.other_pace:
        made = replace(made, **_QUICK_BROKERS)  # type: ignore[arg-type]
    if random.random() < mix.other_pace:
        made = replace(made, **_IMPATIENT)  # type: ignore[arg-type]
    return made


def _counted(order: OrderPlan, number: int) -> OrderPlan:
    """The first orders are of a customer who orders too often; a few are no orders but credits."""
    if number < BUSY_ORDERS:
        return replace(
            order, customer=BUSY_CUSTOMER, input="order", capture_method="automatic", commands=(),
            conflict_at_s=None, pay_within_s=None, shape="", token=None, card=None,
            script=Script(SUCCEED, notices=order.script.notices),
        )  # fmt: skip
    if number < BUSY_ORDERS + CREDITS:
        copies = 1 + number % 2
        credit = CommandPlan(0.0, f"c{number}a", "credit", order.amount_minor, copies)
        return replace(
            order, input="credit", commands=(credit,), copies=(), conflict_at_s=None,
            pay_within_s=None, shape="", script=Script(SUCCEED),
        )  # fmt: skip
    return order


def _order(random: Random, number: int, mix: Mix) -> OrderPlan:
    # In bursts, so that transactions are of several orders.
    at_s = random.randrange(BURSTS) * BURST_EVERY_S + random.random() * 0.05
    amount_minor = random.randrange(100, 100_000)
    plain = OrderPlan(
        number, at_s, amount_minor, Script(SUCCEED, notices=random.choice(mix.notices))
    )
    if random.random() * 100 < mix.repeated:
        plain = replace(plain, copies=tuple(random.uniform(0, 20) for _ in range(2)))
    kind = random.random() * 100
    if kind < mix.plain:
        return plain
    if kind < mix.many_turns:
        return draw_life(random, plain)
    script = plain.script
    if kind < mix.trouble:
        # Trouble on the way to the gateway, and some in the questions about it.
        script = replace(
            script,
            transport=tuple(random.choice(TRANSPORT) for _ in range(random.choice((1, 1, 2, 3)))),
            inquiries=tuple(
                random.choice(("ok", "error_before", "hang"))
                for _ in range(random.choice((0, 0, 1, 2)))
            ),
        )
        return replace(plain, script=script)
    if kind < mix.declined:
        outcome = random.choice(
            (
                dict.fromkeys(GATEWAYS, f"decline:{random.choice(FINAL_DECLINES)}"),
                {MAIN: f"decline:{PASSED_ON}"},
                {MAIN: f"decline:{PASSED_ON}", OTHER: f"decline:{PASSED_ON}"},
            )
        )
        transport = (random.choice(TRANSPORT),) if random.random() < 0.4 else ()
        return replace(plain, script=replace(script, outcome=outcome, transport=transport))
    if kind < mix.waiting:
        outcome = {
            MAIN: random.choice(
                ("pending_succeed", "pending_decline", "action_succeed", "action_late",
                 "action_nothing")
            )
        }  # fmt: skip
        transport = (random.choice(TRANSPORT),) if random.random() < 0.3 else ()
        return replace(
            plain,
            script=replace(
                script, outcome=outcome, transport=transport, pending_s=random.uniform(1, 45)
            ),
        )
    if kind < mix.commanded:
        return _with_commands(random, plain)
    if kind < mix.conflict:
        return replace(plain, conflict_at_s=random.uniform(0.0, 30.0))
    if kind < mix.hurried:
        return replace(plain, pay_within_s=random.uniform(0.5, 40.0), script=replace(
            script, transport=tuple(random.choice(TRANSPORT) for _ in range(2))
        ))  # fmt: skip
    return replace(
        plain,
        copies=(),
        input=random.choice(
            ("garbage", "empty", "misrouted", "wrong_key", "bad_currency", "nothing_due")
        ),
    )


def _with_commands(random: Random, plain: OrderPlan) -> OrderPlan:
    """Captures, refunds and cancels, early and late, some told twice."""
    manual = random.random() < 0.5
    later = random.choice((0.0, 0.5, 5.0, 40.0))
    copies = random.choice((1, 1, 2))
    commands: list[CommandPlan] = []
    half = plain.amount_minor // 2
    name = f"c{plain.number}"
    if manual:
        first = random.choice(("capture", "capture", "cancel", "none"))
        if first != "none":
            amount = random.choice((None, half)) if first == "capture" else None
            commands.append(CommandPlan(later, f"{name}a", first, amount, copies))
        if first == "capture" and random.random() < 0.5:
            commands.append(CommandPlan(later + 30.0, f"{name}b", "refund", half // 2, 1))
    else:
        first = random.choice(("refund", "refund", "refund", "cancel"))
        amount = random.choice((None, half)) if first == "refund" else None
        commands.append(CommandPlan(later, f"{name}a", first, amount, copies))
        if first == "refund" and random.random() < 0.5:
            commands.append(CommandPlan(later + 0.1, f"{name}b", "refund", half, copies))
    transport = tuple(random.choice(TRANSPORT) if random.random() < 0.4 else "ok" for _ in range(3))
    script = replace(
        plain.script,
        transport=transport,
        operations=(
            random.choice(("succeed", "succeed", "succeed", "decline", "pending_succeed")),
        ),
    )
    return replace(
        plain,
        capture_method="manual" if manual else "automatic",
        commands=tuple(commands),
        script=script,
    )


# kind, how often of a hundred.
_KINDS = (
    ("crash", 28),
    ("pause", 8),
    ("zombie", 8),
    ("twin", 6),
    ("end_txn", 20),
    # An abort whose EndTxn is late: it may meet the transaction that does the same work again.
    ("late_abort", 8),
    ("refusal", 6),
    ("slow_markers", 5),
    ("deaf", 3),
    ("stop", 4),
    ("join", 3),
    ("outage", 2),
    ("database", 5),
)
# What its successor takes for a death. More of them would have a record quarantined that is not to
# blame: the first three make a gateway worker careful, and a record that is then in hand at three
# others is condemned.
DEADLY = frozenset({"crash", "twin"})
DEATHS_OF_A_WORKER_MAX = 5
# One seed of so many has payments workers that come while markers are slow, so that one takes over
# a part of the table behind whose end a transaction is still open though its offsets count.
TAKEOVERS_EVERY = 3
END_TXN_FAULTS = (
    "answer_lost", "late", "late", "late_then_refused", "late_then_refused", "lost", "slow",
    "refused",
)  # fmt: skip


def _faults(random: Random, plan: Plan) -> tuple[Fault, ...]:
    count = random.randrange(FAULTS_MIN + 4, FAULTS_MIN + 16)
    kinds = [kind for kind, weight in _KINDS for _ in range(weight)]
    workers = [slot for slot in plan.slots if not slot.startswith("ledger")]
    made: list[Fault] = []
    deaths: dict[str, int] = {}
    for _ in range(count):
        kind = random.choice(kinds)
        at_s = random.uniform(1.0, ACTIVE_S)
        target = random.choice(workers)
        steps = random.randrange(0, 60)
        if kind == "crash":
            target = random.choice(plan.slots)
            if target.startswith("ledger"):
                steps = random.randrange(0, 10)  # it takes few of them
        if kind in DEADLY:
            deaths[target] = deaths.get(target, 0) + 1
            if deaths[target] > DEATHS_OF_A_WORKER_MAX:
                kind = "end_txn"
        if kind == "crash":
            made.append(Fault(kind, at_s, target, steps, random.choice((0.2, 1.0, 12.0))))
        elif kind == "pause":
            made.append(Fault(kind, at_s, target, steps, random.uniform(0.5, 8.0)))
        elif kind == "zombie":
            made.append(Fault(kind, at_s, target, steps, random.uniform(11.0, 100.0)))
        elif kind == "twin":
            made.append(Fault(kind, at_s, target, steps, random.uniform(2.0, 40.0)))
        elif kind == "end_txn":
            what = random.choice(END_TXN_FAULTS)
            late_s = random.choice((0.02, 0.05, 0.1, 0.1, 0.3, 3.0)) * random.uniform(0.3, 1.5)
            target = random.choice([slot for slot in workers if slot.startswith(("payments", "g"))])
            made.append(Fault(kind, at_s, target, 0, late_s, what))
        elif kind == "late_abort":
            made.append(Fault("refusal", at_s, target, 0, 0.0, "abortable"))
            late_s = random.choice((0.02, 0.05, 0.1)) * random.uniform(0.3, 1.5)
            made.append(Fault("end_txn", at_s, target, 0, late_s, "late"))
        elif kind == "refusal":
            what = random.choice(("abortable", "retriable"))
            made.append(Fault(kind, at_s, target, 0, 0.0, what))
        elif kind == "slow_markers":
            made.append(Fault(kind, at_s, "", 0, random.uniform(2.0, 10.0)))
        elif kind == "deaf":
            made.append(Fault(kind, at_s, target, 0, random.uniform(1.0, 20.0)))
        elif kind == "stop":
            made.append(Fault(kind, at_s, target, 0, random.choice((0.5, 14.0))))
        elif kind == "join":
            stage = random.choice(("payments", "gateway"))
            made.append(Fault(kind, at_s, f"{stage}-9", 0, random.uniform(5.0, 40.0)))
        elif kind == "outage":
            made.append(Fault(kind, at_s, random.choice(GATEWAYS), 0, random.uniform(5.0, 40.0)))
        else:
            what = random.choice(("commit_unknown", "commit_lost", "away"))
            made.append(Fault(kind, at_s, "ledger-0", 0, random.uniform(0.5, 5.0), what))
    if plan.seed % TAKEOVERS_EVERY == 0:
        made += _takeovers_behind_markers(plan.seed)
    return tuple(sorted(made, key=lambda fault: fault.at_s))


def _takeovers_behind_markers(seed: int) -> list[Fault]:
    """Drawn apart: what else a seed has does not change with it. Two workers more, one in each of
    two bursts, when there is most to hand over; each time all give back what they have."""
    random = Random(f"{seed}/takeovers")
    burst_s = random.randrange(BURSTS - 1) * BURST_EVERY_S
    again_s = burst_s + BURST_EVERY_S
    return [
        Fault("slow_markers", burst_s, "", 0, 16.0),
        Fault(
            "join", burst_s + random.uniform(0.5, 6.0), "payments-8", 0, random.uniform(1.0, 3.5)
        ),
        Fault(
            "join", again_s + random.uniform(0.5, 6.0), "payments-7", 0, random.uniform(1.0, 3.5)
        ),
    ]
