"""Lives with many turns, drawn from the seed: what merchants, customers, banks and people do about
one order, and what its gateway makes of it.

Each shape leans to one thing that has gone wrong before; the last draws from everything at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from tests.simulation.disputes import ENDING_LIVES, NUMBERED_LIVES, DisputePlan
from tests.simulation.gateway import TRANSPORT, Script

MAIN, OTHER = "alpha", "beta"
GATEWAYS = (MAIN, OTHER)
SUCCEED = {MAIN: "succeed", OTHER: "succeed"}
# Codes of declines that no other gateway would take, and of one that another may.
FINAL_DECLINES = ("card_declined", "insufficient_funds", "lost_card")
PASSED_ON = "processing_error"

# Instruments that the risk rules want a person to look at.
WATCHED = "tok_watched"

# How soon a command follows its order: before it, at once, while a call is open, when all is over.
SOON_S = (-4.0, 0.0, 0.3, 0.8, 2.0, 6.0)
LATER_S = (12.0, 30.0, 55.0, 90.0)


@dataclass(frozen=True)
class CommandPlan:
    """``copies``: how often it is published; with ``changed`` the last copy asks for one more.

    What a person can say only of what has happened is filled in when it is said (see ``people``).
    """

    at_s: float
    command_id: str
    type: str
    amount_minor: int | None = None
    copies: int = 1
    token: str | None = None
    decision: str | None = None
    override: str | None = None
    changed: bool = False
    card: str | None = None


@dataclass(frozen=True)
class OrderPlan:
    """One order. ``input``: order, or what an upstream system may get wrong (garbage, empty,
    misrouted, wrong_key, bad_currency), nothing_due, or a credit instead of an order. ``copies``:
    when it is published again. ``shape``: of a life with many turns. ``card``, ``customer``: what
    is counted across orders."""

    number: int
    at_s: float
    amount_minor: int
    script: Script
    input: str = "order"
    capture_method: str = "automatic"
    copies: tuple[float, ...] = ()
    conflict_at_s: float | None = None
    pay_within_s: float | None = None
    commands: tuple[CommandPlan, ...] = ()
    shape: str = ""
    card: str | None = None
    customer: str | None = None
    token: str | None = None

    @cached_property
    def order_id(self) -> str:
        return f"o{self.number}"

    def has(self, *types: str) -> bool:
        return any(command.type in types for command in self.commands)


def draw_life(random: Random, plain: OrderPlan) -> OrderPlan:
    """The order with a life of one of the shapes."""
    name = random.choice(_DRAWN)
    return replace(_SHAPES[name](random, plain), shape=name, copies=())


def _returned(random: Random, plain: OrderPlan) -> OrderPlan:
    """A refund that comes back, told in any order; and perhaps another refund meanwhile."""
    life = _captured(random, plain)
    first = _command(
        life, "refund", random.choice((12.0, 20.0)), random.choice((None, _half(life)))
    )
    commands = [*life.commands, first]
    if random.random() < 0.4:
        commands.append(_command(life, "refund", first.at_s + 25.0, _half(life), "b"))
    script = replace(
        life.script,
        transport=("ok",) * len(life.commands) + ("ok", random.choice(_LOSING)),
        inquiries=random.choice(((), ("error_before",), ("hang", "error_before"))),
        returns_s=random.choice((0.5, 2.0, 8.0, 30.0)),
        notices=random.choice((0, 1, 2)),
    )
    return replace(life, commands=tuple(commands), script=script)


def _disputed(random: Random, plain: OrderPlan) -> OrderPlan:
    """A dispute, told in any order, with refunds, cancels and people's words around it."""
    life = _captured(random, plain)
    commands = list(life.commands)
    for name in "bcd"[: random.choice((0, 1, 2, 3))]:
        what = random.choice(("refund", "refund", "resolve_dispute", "give_back", "cancel"))
        override = "dispute" if random.random() < 0.4 else None
        amount_minor = _half(life) if what == "refund" else None
        commands.append(
            _command(life, what, random.choice(LATER_S), amount_minor, name, override=override)
        )
    script = replace(life.script, dispute=_dispute(random), notices=random.choice((0, 1, 2)))
    return replace(life, commands=tuple(commands), script=script)


def _too_late(random: Random, plain: OrderPlan) -> OrderPlan:
    """Money is taken that nobody wants any more, and giving it back meets with trouble."""
    manual = random.random() < 0.4
    first = random.choice((*_LOSING, "slow_answer", "late"))
    unsent = ("refused",) * random.choice((2, 7, 9))
    trouble = random.choice(((), unsent, unsent, (random.choice(_LOSING),), ("error_before",) * 3))
    dispute = _dispute(random) if random.random() < 0.5 else None
    if dispute is not None and random.random() < 0.7:
        # The bank is faster than the gateway's own word.
        dispute = replace(dispute, after_s=random.choice((0.1, 1.0)), late_s=1.0, apart_s=40.0)
    script = replace(
        plain.script,
        outcome={MAIN: random.choice(("succeed", "succeed", "pending_succeed"))},
        transport=(first, *trouble),
        inquiries=random.choice(((), (), ("error_before", "hang"))),
        operations=random.choice(
            (("succeed",), ("succeed",), (f"decline:{PASSED_ON}", "succeed"), ("pending_succeed",),
             ("decline",), ("pending_decline", "succeed"))
        ),
        pending_s=random.uniform(5, 45),
        notices=random.choice((0, 0, 1, 2)),
        dispute=dispute,
    )  # fmt: skip
    commands = [_command(plain, "cancel", random.choice(SOON_S))]
    within_s = None
    if random.random() < 0.35:
        commands, within_s = [], random.choice((2.0, 6.0, 15.0, 30.0))
    for name in "bc"[: random.choice((0, 0, 1, 2))]:
        what = random.choice(("give_back", "give_back", "refund", "cancel"))
        override = "dispute" if random.random() < 0.3 else None
        at_s = random.choice((*SOON_S, *LATER_S))
        commands.append(_command(plain, what, at_s, None, name, override=override))
    return replace(
        plain,
        capture_method="manual" if manual else "automatic",
        script=script,
        commands=tuple(commands),
        pay_within_s=within_s,
    )


def _retried(random: Random, plain: OrderPlan) -> OrderPlan:
    """A decline, another instrument, and what merchants do in between."""
    decline = random.choice(FINAL_DECLINES)
    card = random.choice((None, None, "card_shared"))
    script = replace(
        plain.script,
        outcome=dict.fromkeys(GATEWAYS, f"decline:{decline}"),
        retry_outcome=random.choice(
            ("succeed", "succeed", "decline:insufficient_funds", "pending_succeed")
        ),
        transport=tuple(_sometimes(random, 0.3) for _ in range(4)),
        notices=random.choice((0, 1, 2)),
    )
    commands = []
    for name in "abc"[: random.choice((1, 2, 3))]:
        token = f"tok_{plain.number}{name}" if random.random() < 0.85 else WATCHED
        at_s = random.choice((3.0, 8.0, 15.0, 40.0))
        commands.append(_command(plain, "retry", at_s, None, name, token=token, card=card))
    for name in "de"[: random.choice((0, 1, 1, 2))]:
        what = random.choice(("cancel", "cancel", "refund", "capture", "review"))
        commands.append(_command(plain, what, random.choice((*SOON_S, *LATER_S)), None, name))
    return replace(
        plain,
        capture_method=random.choice(("automatic", "manual")),
        script=script,
        card=card,
        commands=tuple(replace(each, decision=_decision(random, each)) for each in commands),
    )


def _unknown(random: Random, plain: OrderPlan) -> OrderPlan:
    """A gateway that does not say what became of it: a person does."""
    script = replace(
        plain.script,
        outcome={MAIN: random.choice(("succeed", "decline:card_declined", "pending_succeed"))},
        transport=(random.choice(_LOSING),),
        inquiries=("error_before",) * random.choice((5, 14)),
        notices=random.choice((0, 0, 1)),
    )
    commands = [
        _command(plain, "resolve", random.choice((10.0, 20.0, 45.0, 80.0)), None, name)
        for name in "ab"[: random.choice((1, 2))]
    ]
    if random.random() < 0.4:
        what = random.choice(("refund", "cancel"))
        commands.append(_command(plain, what, random.choice((1.0, 30.0, 70.0)), None, "c"))
    return replace(plain, script=script, commands=tuple(commands))


def _watched(random: Random, plain: OrderPlan) -> OrderPlan:
    """A person looks at it first, or nobody does."""
    commands = []
    for name in "ab"[: random.choice((0, 1, 1, 2))]:
        what = random.choice(("review", "review", "review", "cancel"))
        commands.append(_command(plain, what, random.choice((2.0, 10.0, 40.0)), None, name))
    return replace(
        plain,
        token=WATCHED,
        commands=tuple(replace(each, decision=_decision(random, each)) for each in commands),
        script=replace(plain.script, transport=(_sometimes(random, 0.3),)),
    )


def _anything(random: Random, plain: OrderPlan) -> OrderPlan:
    script = Script(
        outcome={
            MAIN: random.choice(
                ("succeed", "succeed", "succeed", "decline:lost_card", f"decline:{PASSED_ON}",
                 "pending_succeed", "pending_decline", "action_succeed")
            ),
            OTHER: random.choice(("succeed", "decline:card_declined")),
        },
        transport=tuple(_sometimes(random, 0.4) for _ in range(random.choice((0, 3, 8)))),
        inquiries=tuple(
            random.choice(("ok", "error_before", "hang")) for _ in range(random.choice((0, 2, 6)))
        ),
        operations=tuple(
            random.choice(
                ("succeed", "succeed", "decline", f"decline:{PASSED_ON}", "pending_succeed",
                 "pending_decline")
            )
            for _ in range(random.choice((1, 2, 4)))
        ),
        notices=random.choice((0, 1, 2, 3)),
        pending_s=random.uniform(1, 45),
        retry_outcome=random.choice(("succeed", "decline:card_declined", "action_late")),
        returns_s=random.choice((None, None, 1.0, 20.0)),
        dispute=_dispute(random) if random.random() < 0.35 else None,
    )  # fmt: skip
    commands = []
    for index in range(random.choice((2, 3, 4, 6))):
        what = random.choice(
            ("capture", "capture", "refund", "refund", "cancel", "retry", "resolve", "review",
             "resolve_dispute", "give_back")
        )  # fmt: skip
        name = "abcdef"[index]
        partial = what in ("capture", "refund") and random.random() < 0.6
        made = _command(
            plain,
            what,
            random.choice((*SOON_S, *LATER_S)),
            max(1, plain.amount_minor // random.choice((2, 3, 5))) if partial else None,
            name,
            token=f"tok_{plain.number}{name}" if what == "retry" else None,
            override="dispute" if random.random() < 0.2 else None,
        )
        copies = random.choice((1, 1, 1, 2))
        changed = copies > 1 and what in ("capture", "refund") and random.random() < 0.5
        commands.append(
            replace(made, decision=_decision(random, made), copies=copies, changed=changed)
        )
    return replace(
        plain,
        capture_method=random.choice(("automatic", "manual")),
        script=script,
        commands=tuple(commands),
        pay_within_s=random.choice((5.0, 30.0)) if random.random() < 0.1 else None,
    )


_SHAPES: dict[str, Callable[[Random, OrderPlan], OrderPlan]] = {
    "returned": _returned,
    "disputed": _disputed,
    "too late": _too_late,
    "retried": _retried,
    "unknown": _unknown,
    "watched": _watched,
    "anything": _anything,
}
# Giving back has gone wrong most often.
_DRAWN = (*_SHAPES, "too late", "too late", "anything")
# What loses an answer of which something came, or nothing.
_LOSING = ("lost_answer", "error_after", "hang", "lost_request")


def _captured(random: Random, plain: OrderPlan) -> OrderPlan:
    """An order whose money is taken, at once or by one or two captures."""
    if random.random() < 0.6:
        return plain
    commands = [_command(plain, "capture", 1.0, random.choice((None, _half(plain))), "a")]
    if random.random() < 0.3:
        commands.append(_command(plain, "capture", 5.0, None, "f"))
    return replace(plain, capture_method="manual", commands=tuple(commands))


def _command(
    order: OrderPlan,
    what: str,
    at_s: float,
    amount_minor: int | None = None,
    name: str = "a",
    *,
    token: str | None = None,
    override: str | None = None,
    card: str | None = None,
) -> CommandPlan:
    return CommandPlan(
        at_s,
        f"c{order.number}{name}",
        what,
        amount_minor,
        token=token,
        override=override,
        card=card,
    )


def _decision(random: Random, command: CommandPlan) -> str | None:
    return random.choice(("approve", "approve", "deny")) if command.type == "review" else None


def _dispute(random: Random) -> DisputePlan:
    numbered = random.random() < 0.7
    lives = (*ENDING_LIVES, *NUMBERED_LIVES) if numbered else ENDING_LIVES
    return DisputePlan(
        states=random.choice(lives),
        after_s=random.choice((0.1, 1.0, 6.0, 30.0)),
        apart_s=random.choice((0.5, 10.0, 40.0)),
        share=random.choice((1.0, 1.0, 0.4)),
        numbered=numbered,
        named=random.random() < 0.7,
        fee_minor=random.choice((0, 1_500)),
        late_s=random.choice((1.0, 30.0, 90.0)),
    )


def _half(order: OrderPlan) -> int:
    return max(1, order.amount_minor // 2)


def _sometimes(random: Random, share: float) -> str:
    return random.choice(TRANSPORT) if random.random() < share else "ok"
