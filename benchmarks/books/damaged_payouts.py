"""What the bank says of payouts to merchants, and did not do, or did and nobody asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from benchmarks.books.findings import RECONCILE, Damage
from benchmarks.books.paid_out import RETURNED_EVERY
from pipeline.gateways.simulator.bank import Payout


def _other_amount(payout: Payout) -> tuple[list[Payout], int]:
    return [replace(payout, amount_minor=payout.amount_minor - 1)], 0


def _twice(payout: Payout) -> tuple[list[Payout], int]:
    return [payout, payout], 1


def _nobodys(payout: Payout) -> tuple[list[Payout], int]:
    return [payout, replace(payout, batch_id=f"{payout.batch_id[:-4]}ffff")], 1


# What stands in a payout's place, and which of it nobody can explain.
PAYOUT_KINDS: dict[str, Callable[[Payout], tuple[list[Payout], int]]] = {
    "the bank has paid out a minor unit more": _other_amount,
    "the bank has paid a payout twice": _twice,
    "the bank has paid a payout that nobody made": _nobodys,
}


class SpoiltPayouts:
    """Changes what the bank says it paid; ``damages`` says afterwards what has to be found."""

    def __init__(self, account: str, draw: random.Random, each: int) -> None:
        self._account = account
        self._draw = draw
        self._each = each
        self.damages: list[Damage] = []

    def __call__(self, paid: list[Payout]) -> list[Payout]:
        # None that comes back the day after: its return would be explained by nothing.
        pool = [payout for n, payout in enumerate(paid) if n % RETURNED_EVERY]
        each = min(self._each, len(pool) // len(PAYOUT_KINDS))
        drawn = iter(self._draw.sample(pool, each * len(PAYOUT_KINDS)))
        spoilt: dict[str, tuple[str, list[Payout], int]] = {}
        for kind, spoil in PAYOUT_KINDS.items():
            for payout in (next(drawn) for _ in range(each)):
                spoilt[payout.batch_id] = kind, *spoil(payout)
        said: list[Payout] = []
        strange: list[tuple[str, Payout]] = []
        for payout in paid:
            kind, lines, at = spoilt.get(payout.batch_id, ("", [payout], 0))
            # Equal lines are told apart by being objects of their own.
            own = [replace(line) for line in lines]
            said += own
            if kind:
                strange.append((kind, own[at]))
        self.damages = [
            Damage(kind, f"payout {line.batch_id} of {line.currency}",
                   {RECONCILE: (("bank_line_unknown", self._line(said, line)),)})
            for kind, line in strange
        ]  # fmt: skip
        return said

    def _line(self, said: Sequence[Payout], line: Payout) -> str:
        """As a break names it: account, statement and the bank's number of the line."""
        of_currency = [each for each in said if each.currency == line.currency]
        number = next(n for n, each in enumerate(of_currency, 1) if each is line)
        day = line.value_date
        statement = f"{self._account}-{day}-{line.currency}"
        return f"{self._account}:{statement}:{day.replace('-', '')}-{line.currency}-{number}"
