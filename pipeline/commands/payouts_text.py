"""Payouts in words and columns, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.commands.deciding import shown_time
from pipeline.domain.model import LedgerEvent
from pipeline.domain.money import decimal, format_amount
from pipeline.domain.payouts import Payout

if TYPE_CHECKING:
    from pipeline.ledger.payouts import Made, Receivable


def created_lines(made: Made) -> Iterator[str]:
    for event in made.events:
        body = json.loads(event.body)
        currency = body["currency"]
        said = [
            f"{what} {decimal(body[name], currency)}"
            for what, name in (
                ("held", "held_minor"), ("released", "released_minor"),
                ("collected", "collected_minor"), ("met from the reserve", "from_reserve_minor"),
                ("called in", "called_in_minor"), ("advanced", "advanced_minor"),
            )
            if body.get(name)
        ]  # fmt: skip
        whose = f"{body['merchant_id']} {body['business_date']}"
        rest = f" ({', '.join(said)})" if said else ""
        if body["payout_id"]:
            amount = format_amount(body["amount_minor"], currency)
            yield f"{whose}: {amount}{rest}, payout {body['payout_id']}"
        else:
            yield f"{whose}: nothing to pay in {currency}{rest}"
    if not made.events:
        yield "nothing was to be created"
    for merchant, currency, minor in made.unpaid:
        yield f"{merchant} has {format_amount(minor, currency)} available and no payout terms"


def left_as_decided_lines(left: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """What new terms came too late for: merchants, currencies and days."""
    if left:
        merchant, currency, day = left[0]
        others = f" (and of {len(left) - 1} others their last one)" if left[1:] else ""
        yield (
            f"{day} of {merchant} in {currency}{others} is decided already, and is not decided "
            "again: what comes until its new cut-off is paid with the next business day's payout"
        )


def list_lines(found: Sequence[Payout], owed: Sequence[Receivable]) -> Iterator[str]:
    yield f"{'payout':<32}  {'day':<10}  {'merchant':<20} cur {'amount':>16}  state"
    for p in found:
        amount = decimal(p.amount_minor, p.currency)
        yield (
            f"{p.payout_id:<32}  {p.business_date:<10}  {p.merchant_id:<20} {p.currency} "
            f"{amount:>16}  {p.state}"
        )
    for each in owed:
        age = (
            f"since {each.since}, {each.age_days} days" if each.since else "since an entry by hand"
        )
        yield f"{each.merchant} owes {format_amount(each.amount_minor, each.currency)} ({age})"


def payout_lines(payout: Payout, decided: Sequence[LedgerEvent]) -> Iterator[str]:
    yield f"payout {payout.payout_id}: {payout.state}"
    yield (
        f"  {format_amount(payout.amount_minor, payout.currency)} to {payout.merchant_id}, account "
        f"{payout.account}, from bank:{payout.bank}, business day {payout.business_date}"
    )
    for what, minor in (
        ("held for the reserve", payout.held_minor),
        ("released from the reserve", payout.released_minor),
        ("collected first", payout.collected_minor),
    ):
        if minor:
            yield f"  {what}: {format_amount(minor, payout.currency)}"
    if payout.message_id:
        yield f"  message {payout.message_id}, to be paid on {payout.execution_date}"
    if payout.reference:
        yield f"  the bank's reference: {payout.reference}"
    for event in decided:
        why = f": {event.reason}" if event.reason else ""
        yield (
            f"  {event.sequence:>6}  {shown_time(event.decided_at_ms)}  "
            f"{event.kind.removeprefix('payout_'):<10} by {event.actor}{why}"
        )
