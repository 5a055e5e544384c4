"""Charges that customers' banks dispute: some of what is captured by the first third of the
orders, each with a fee; every third of them is won in the end.

The gateway tells of none: what it took for them, and gave back, stands in its reports alone.
"""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Collection
from typing import Any

from sqlalchemy import text

from benchmarks.failure import WrongRun
from pipeline.ledger.database import open_ledger, reading

# Of all orders one in so many, and no fewer than every damage to one can have a few of.
DISPUTED_EVERY = 400
DISPUTED_MIN = 40
WON_EVERY = 3
FEE_MINOR = 1_500
HTTP_TIMEOUT_S = 120.0
_CAPTURES = text(
    "SELECT order_id, gateway_reference FROM journal_entries WHERE kind = 'capture' "
    "ORDER BY merchant_id, order_id"
)


class Disputes:
    """``entries``: of the gateway's books, for what is disputed by now: taken, kept and given back.
    ``told``: how many disputes there is news of since it was asked last."""

    def __init__(self, gateway_url: str, ledger_url: str, orders: int, draw: random.Random) -> None:
        self._url = f"{gateway_url}/v1/admin/disputes"
        self._ledger_url = ledger_url
        self._count = max(DISPUTED_MIN, orders // DISPUTED_EVERY)
        self._draw = draw
        self._opened: list[dict[str, Any]] = []
        self._news = 0
        self.entries = 0

    def open(self, but: Collection[str]) -> None:
        """Dispute charges of orders that are booked, ``but`` those that are given back anyway."""
        engine = open_ledger(self._ledger_url, create=False)
        with reading(engine) as connection:
            booked = [charge for order, charge in connection.execute(_CAPTURES) if order not in but]
        engine.dispose()
        if len(booked) < self._count:
            raise WrongRun(f"{len(booked)} charges are booked, and {self._count} to be disputed.")
        for charge in self._draw.sample(booked, self._count):
            self._opened.append(
                self._ask({"charge_id": charge, "state": "opened", "fee_minor": FEE_MINOR})
            )
        self._news = len(self._opened)
        self.entries += 2 * len(self._opened)

    def win(self) -> None:
        """The banks give some of it back."""
        won = self._opened[::WON_EVERY]
        for each in won:
            self._ask({"charge_id": each["charge_id"], "dispute_id": each["id"], "state": "won"})
        self._news = len(won)
        self.entries += len(won)

    @property
    def opened(self) -> int:
        return len(self._opened)

    def news(self) -> int:
        """How many disputes the next look tells their payments of."""
        news, self._news = self._news, 0
        return news

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self._url, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:
            said: dict[str, Any] = json.load(answer)
            return said
