"""Merchants paid of what is available, by two people and the bank; some payouts come back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from benchmarks.failure import WrongRun
from consumers.reconciliation import Reconciler
from pipeline.domain.payout_terms import terms_body
from pipeline.domain.payouts import APPROVE, PAID, RETURNED, Payout
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.gateways.simulator.bank import Payout as BankMovement
from pipeline.gateways.simulator.bank import statement
from pipeline.gateways.simulator.reports import value_date
from pipeline.ledger.database import reading
from pipeline.ledger.payout_positions import funds
from pipeline.ledger.payouts import (
    create_payouts,
    decide_payout_terms,
    move_payouts,
    payout_book,
    submit_payouts,
)
from producers.ledger_events import LedgerEvents

ONE, OTHER = "anna", "bert"
# Whom the bank's lines of payouts name; no gateway is called so.
PAYEE = "OUR MERCHANTS"
# Of the payouts one in so many is sent back by the bank on the next day.
RETURNED_EVERY = 5
# Business days from a payout to its line: later than every line of the gateway's.
BANK_DAYS = 5
_IBAN = "GB82WEST12345698765432"

# What the bank makes of what it was told to pay.
Spoil = Callable[[list[BankMovement]], list[BankMovement]]
Read = Callable[[bytes], Sequence[BankStatement]]


@dataclass(frozen=True)
class PaidOut:
    """``paid`` by currency: what was paid and has not come back."""

    payouts: int
    returned: int
    paid: Mapping[str, int]


def make_payouts(engine: Engine, log: LedgerEvents, account: str) -> list[Payout]:
    """Terms for everybody who has something, and its payout: created, approved and submitted."""
    with reading(engine) as connection:
        owed = [key for key, each in sorted(funds(connection).items()) if each.available_minor > 0]
    day = _business_day()
    # The day's cut-off is its end, which is not waited for.
    now_ms = int(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1000) + 90_000_000
    with engine.begin() as connection:
        decide_payout_terms(
            connection, body=terms_body(_terms(owed, account), 1), effective_from_ms=1, actor=ONE,
            reason="terms of the proof", now_ms=int(time.time() * 1000),
        )  # fmt: skip
        made = create_payouts(connection, through=day, actor=ONE, now_ms=now_ms)
    log.publish(engine)
    with engine.begin() as connection:
        ids = sorted(payout_book(connection).payouts)
        move_payouts(connection, ids, APPROVE, actor=OTHER, now_ms=now_ms)
        for currency in sorted({currency for _, currency in owed}):
            submit_payouts(connection, currency, actor=ONE, now_ms=now_ms)
    log.publish(engine)
    with reading(engine) as connection:
        payouts = payout_book(connection).payouts
    if not len(payouts) == len(made.events) == len(owed):
        raise WrongRun(f"{len(owed)} merchants have funds, {len(payouts)} payouts were made.")
    return [payouts[payout_id] for payout_id in ids]


def book_bank(
    reconciler: Reconciler,
    account: str,
    read: Read,
    payouts: Sequence[Payout],
    spoil: Spoil = lambda moved: moved,
) -> int:
    """The bank's statements of what it paid, and the day after of what came back; how many lines
    they have. ``spoil`` changes what was paid."""
    day = value_date(payouts[0].business_date, BANK_DAYS)
    after = value_date(day, 1)
    paid = [BankMovement(p.payout_id, p.currency, -p.amount_minor, day) for p in payouts]
    back = [
        BankMovement(p.payout_id, p.currency, p.amount_minor, after)
        for p in payouts[::RETURNED_EVERY]
    ]
    lines = 0
    moved = [*spoil(paid), *back]
    for value_day in (day, after):
        for found in read(statement(account, PAYEE, value_day, moved, 0)):
            reconciler.import_statement(found, ONE)
            lines += len(found.lines)
    return lines


def paid_out(engine: Engine) -> PaidOut:
    """What the payouts say that they are."""
    with reading(engine) as connection:
        payouts = list(payout_book(connection).payouts.values())
    paid: Counter[str] = Counter()
    for each in payouts:
        if each.state == PAID:
            paid[each.currency] += each.amount_minor
    returned = sum(each.state == RETURNED for each in payouts)
    return PaidOut(len(payouts), returned, paid)


def _terms(owed: Sequence[tuple[str, str]], bank: str) -> dict[str, Any]:
    def account(currency: str, holder: str) -> dict[str, str]:
        # Japan has no IBAN.
        if currency == "JPY":
            return {"holder": holder, "number": "0001-1234567", "bic": "BOTKJPJT"}
        return {"holder": holder, "iban": _IBAN}

    return {
        "payouts": [
            {"merchant": merchant, "currency": currency, "time_zone": "UTC", "cut_off": "24:00",
             "account": account(currency, merchant)}
            for merchant, currency in owed
        ],
        "paid_from": [
            {"currency": currency, "bank": bank, "account": account(currency, "Paystream")}
            for currency in sorted({currency for _, currency in owed})
        ],
    }  # fmt: skip


def _business_day() -> date:
    """Today by UTC, or the Monday after it."""
    day = datetime.now(UTC).date()
    while day.weekday() >= 5:
        day += timedelta(days=1)
    return day
