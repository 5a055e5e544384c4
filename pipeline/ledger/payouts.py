"""Deciding on payouts, in one transaction of the ledger's database.

Each function takes the connection of a transaction and makes decisions in it; whoever calls it
commits, and publishes them afterwards (``producers.ledger_events``). All decisions are made one
after the other, so nothing is paid twice by two commands that run at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import sha1
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection

from pipeline.domain import payouts as rules
from pipeline.domain.model import LedgerEvent
from pipeline.domain.money import format_amount
from pipeline.domain.payout_plan import Position, fitted, plan_payout
from pipeline.domain.payout_records import companions
from pipeline.domain.payout_terms import (
    PAYOUT_TERMS,
    PayoutTerms,
    TermsInForce,
    TermsNotKnown,
    in_force_since,
    terms_of,
    terms_on,
)
from pipeline.domain.payouts import APPROVED, Payout, PayoutBook, Standing, book_of
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.ledger.decisions import decide, decisions_of, lock_decisions, require_publishable
from pipeline.ledger.payout_positions import Funds, funds
from pipeline.ledger.trial_booking import require_bookable

# So many days before the newest are made up for, each by its own cut-off; what is older is paid
# with the first of them. More than a year, and few enough to look at in each command.
CATCH_UP_DAYS_MAX: Final = 400


# What the records beside a payout's decision are written by.
SCHEMA_OF: Final = {"payouts": "payout", "audit": "audit-entry"}


class Made(Struct, frozen=True):
    """``unpaid``: merchants and currencies with available funds and no terms, or none yet."""

    events: tuple[LedgerEvent, ...]
    unpaid: tuple[tuple[str, str, int], ...]


def payout_book(connection: Connection) -> PayoutBook:
    return book_of(decisions_of(connection, rules.PAYOUT_KINDS))


def payout_terms(connection: Connection) -> tuple[PayoutTerms, ...]:
    return terms_of(decisions_of(connection, (PAYOUT_TERMS,)))


def decide_payout_terms(
    connection: Connection, *, body: str, effective_from_ms: int, actor: str, reason: str,
    now_ms: int,
) -> LedgerEvent:  # fmt: skip
    """Put payout terms into force; UserError when a payout was created by other ones since."""
    lock_decisions(connection)
    standings = payout_book(connection).standings.values()
    latest_ms = max((standing.last_cut_off_ms for standing in standings), default=-1)
    if effective_from_ms <= latest_ms:
        latest = datetime.fromtimestamp(latest_ms / 1000, UTC)
        raise UserError(
            f"a payout of the cut-off {latest:%Y-%m-%d %H:%M:%S} UTC is created already: the terms "
            "can count from a later time on only."
        )
    return decide(
        connection, kind=PAYOUT_TERMS, body=body, actor=actor, reason=reason, now_ms=now_ms
    )


def days_left_as_decided(
    connection: Connection, event: LedgerEvent
) -> tuple[tuple[str, str, str], ...]:
    """Merchant, currency and business day of each whose last one was decided before the terms that
    a decision brings, and would go by them: they change it no more."""
    book = payout_book(connection)
    (version,) = terms_of([event])
    found = []
    for terms in version.payouts:
        last_day = book.standing(terms.merchant, terms.currency).last_day
        if not last_day:
            continue
        day = date.fromisoformat(last_day)
        if terms.days.is_one(day) and terms.days.cut_off_ms(day) >= version.effective_from_ms:
            found.append((terms.merchant, terms.currency, last_day))
    return tuple(found)


def create_payouts(
    connection: Connection,
    *,
    through: date,
    actor: str,
    now_ms: int,
    reason: str = "",
    merchants: Collection[str] = (),
) -> Made:
    """Create what is to be paid for business days through one, whose cut-off has passed by now.

    For each merchant and currency at most one decision a business day, a payout or what is netted,
    later ones only after earlier ones; so a second call creates nothing. ``merchants``: only these.
    """
    lock_decisions(connection)
    book = payout_book(connection)
    versions = payout_terms(connection)
    keys = sorted({(t.merchant, t.currency) for v in versions for t in v.payouts})
    found = funds(connection, lambda key: book.standing(*key).last_cut_off_ms)
    events: list[LedgerEvent] = []
    for key in keys:
        if key in found and (not merchants or key[0] in merchants):
            events += _create(
                connection, key, found[key], book, versions, through=through, actor=actor,
                reason=reason, now_ms=now_ms,
            )  # fmt: skip
    require_bookable(connection, *events)
    unpaid = tuple(
        (*key, each.available_minor)
        for key, each in sorted(found.items())
        if key not in keys and each.available_minor > 0
    )
    return Made(tuple(events), unpaid)


def _create(
    connection: Connection,
    key: tuple[str, str],
    at: Funds,
    book: PayoutBook,
    versions: Sequence[PayoutTerms],
    *,
    through: date,
    actor: str,
    reason: str,
    now_ms: int,
) -> list[LedgerEvent]:
    events: list[LedgerEvent] = []
    newest = _newest_day(versions, key, through, now_ms)
    if newest is None:
        return events
    for day in _open_days(at, book.standing(*key), newest):
        force = _terms_on(versions, key, day, now_ms)
        if force is None or force.cut_off_ms > now_ms:
            continue
        if at.available_minor < 0 and day != newest:
            # Called in on the newest day: a receivable's age counts from then.
            continue
        standing = book.standing(*key)
        funds_minor = at.by(force.cut_off_ms)
        reserved_minor = standing.reserved_by(force.cut_off_ms)
        plan = plan_payout(
            Position(
                funds_minor=funds_minor,
                late_minor=at.available_minor - funds_minor,
                reserve=fitted(standing.reserve, at.reserve_minor),
                receivable_minor=max(0, at.receivable_minor),
                reserved_minor=reserved_minor,
                late_reserved_minor=standing.reserved_minor - reserved_minor,
                # What is pending now was not so on an earlier day.
                pending_minor=at.pending_minor if day == newest else 0,
            ),
            force.terms,
            day,
        )
        if not plan.decides:
            continue
        kind, body = rules.taking_body(plan, force, day.isoformat())
        event = _decided(connection, book, kind, body, actor=actor, reason=reason, now_ms=now_ms)
        events.append(event)
        at.available_minor += (
            plan.from_reserve_minor + plan.called_in_minor + plan.released_minor
            - plan.collected_minor - plan.held_minor - (plan.amount_minor - plan.advanced_minor)
        )  # fmt: skip
        at.reserve_minor += plan.held_minor - plan.released_minor - plan.from_reserve_minor
        at.receivable_minor += plan.called_in_minor - plan.collected_minor + plan.advanced_minor
    return events


def _newest_day(
    versions: Sequence[PayoutTerms], key: tuple[str, str], through: date, now_ms: int
) -> date | None:
    """The last business day through one whose cut-off has passed by now."""
    # No time zone's day begins earlier than a day before UTC's.
    last = min(through, date.fromisoformat(_day(now_ms)) + timedelta(days=1))
    for day in _days(last):
        force = _terms_on(versions, key, day, now_ms)
        if force is not None and force.cut_off_ms <= now_ms:
            return day
    return None


def _terms_on(
    versions: Sequence[PayoutTerms], key: tuple[str, str], day: date, now_ms: int
) -> TermsInForce | None:
    """None also for a day of terms that were replaced since and that nobody can follow any more:
    what is due of it is paid with the next day."""
    try:
        return terms_on(versions, *key, day)
    except TermsNotKnown as unknown:
        if unknown.since >= in_force_since(versions, now_ms):
            raise
        return None


def _open_days(at: Funds, standing: Standing, newest: date) -> list[date]:
    """Days for which nothing was decided yet, up to one; none before there were funds."""
    if standing.last_day:
        first = date.fromisoformat(standing.last_day) + timedelta(days=1)
    else:
        first = at.first_day() or newest
    return [day for day in _days(newest) if day >= first][::-1]


def _days(last: date) -> Iterator[date]:
    """A day and those before it that are looked at, backwards."""
    first = max(1, last.toordinal() - CATCH_UP_DAYS_MAX)
    return map(date.fromordinal, range(last.toordinal(), first - 1, -1))


class Receivable(Struct, frozen=True):
    """What a merchant owes. ``since``: the oldest part's day, empty where an entry by hand says so
    alone."""

    merchant: str
    currency: str
    amount_minor: int
    since: str
    age_days: int


def receivables(connection: Connection, book: PayoutBook, *, today_ms: int) -> list[Receivable]:
    """By merchant and currency, as the books have it, with the age of its oldest part."""
    today = date.fromisoformat(_day(today_ms))
    found = []
    for (merchant, currency), each in sorted(funds(connection).items()):
        parts = fitted(book.standing(merchant, currency).receivable, each.receivable_minor)
        if each.receivable_minor <= 0:
            continue
        since = min((part.day for part in parts if part.day), default="")
        age_days = (today - date.fromisoformat(since)).days if since else 0
        found.append(Receivable(merchant, currency, each.receivable_minor, since, age_days))
    return found


def payout_history(
    connection: Connection, payout_id: str
) -> tuple[Payout, tuple[LedgerEvent, ...]]:
    """A payout and the decisions about it, in order. UserError when there is none."""
    events = decisions_of(connection, rules.PAYOUT_KINDS)
    payout = _known(book_of(events), payout_id)
    return payout, tuple(e for e in events if json.loads(e.body)["payout_id"] == payout_id)


def move_payouts(
    connection: Connection,
    payout_ids: Collection[str],
    act: str,
    *,
    actor: str,
    now_ms: int,
    reason: str = "",
    day: str = "",
    only: str = "",
    **said: str,
) -> tuple[LedgerEvent, ...]:
    """Make a transition of ``domain/payouts.TRANSITIONS`` of each; UserError when it is none.

    ``day``: the one that entries count under, by default that of ``now_ms`` (UTC). ``only``: the
    state it has to be in, where the table allows more.
    """
    lock_decisions(connection)
    book = payout_book(connection)
    events = []
    for payout_id in payout_ids:
        payout = _known(book, payout_id)
        if only and payout.state != only:
            raise UserError(f"payout {payout_id} is {payout.state}, not {only}.")
        kind, body = rules.moving_body(payout, act, actor=actor, day=day or _day(now_ms), **said)
        event = _decided(connection, book, kind, body, actor=actor, reason=reason, now_ms=now_ms)
        events.append(event)
    require_bookable(connection, *events)
    return tuple(events)


def submit_payouts(
    connection: Connection,
    currency: str,
    *,
    actor: str,
    now_ms: int,
    reason: str = "",
) -> tuple[str, tuple[LedgerEvent, ...]]:
    """Hand every approved payout of a currency to the bank, as one message; its id and decisions.

    With nothing approved since, the id of the newest message and no decision: its file is the same
    again. UserError when there never was one.
    """
    lock_decisions(connection)
    book = payout_book(connection)
    of_currency = [p for p in book.payouts.values() if p.currency == currency]
    approved = [p for p in of_currency if p.state == APPROVED]
    if not approved:
        submitted = [p for p in of_currency if p.message_id]
        if not submitted:
            raise UserError(f"no payout in {currency} is approved: see `paystream payouts list`.")
        return max(submitted, key=lambda p: p.sequence).message_id, ()
    # The terms may have named another account in between, under the same name too: a message is
    # from one, and the older one's goes first.
    debtors = {p.payout_id: (p.bank, book.created[p.payout_id]["paid_from"]) for p in approved}
    first = debtors[min(approved, key=lambda p: p.sequence).payout_id]
    approved = [p for p in approved if debtors[p.payout_id] == first]
    message_id = message_id_of(p.payout_id for p in approved)
    execution_date = max(_day(now_ms), *(p.business_date for p in approved))
    events = []
    for payout in approved:
        kind, body = rules.moving_body(
            payout, rules.SUBMIT, actor=actor, day=_day(now_ms), message_id=message_id,
            execution_date=execution_date,
        )  # fmt: skip
        events.append(
            _decided(connection, book, kind, body, actor=actor, reason=reason, now_ms=now_ms)
        )
    require_bookable(connection, *events)
    return message_id, tuple(events)


def message_id_of(payout_ids: Iterable[str]) -> str:
    """Of the payouts that are in it: at most 35 characters (Max35Text)."""
    said = "\n".join(sorted(payout_ids))
    return f"PS{sha1(f'payout-message:{said}'.encode()).hexdigest()[:30]}"


def settle_by_bank(
    connection: Connection,
    end_to_end_id: str,
    *,
    returned: bool,
    amount_minor: int,
    currency: str,
    booking_date: str,
    reference: str,
    actor: str,
    now_ms: int,
    reason: str = "",
    book: PayoutBook | None = None,
) -> LedgerEvent | None:
    """What the bank's statement says of a payout: it was paid, or it came back.

    None when that is known already, so the same statement may be read again; also when a payment
    is told after its return is known. UserError when there is no such payout, it was never
    submitted, or the bank's amount is another one: somebody has to look at it. The payout posts
    to ``bank:...`` itself, so the statement's line is not to be booked once more. Whether another
    line of the same payout is new money is for the caller to say, who knows the lines.

    For many lines in one transaction: take ``lock_decisions`` and then ``payout_book`` once, and
    give the ``book`` to each call, which keeps it up to date.
    """
    lock_decisions(connection)
    book = payout_book(connection) if book is None else book
    payout = _known(book, end_to_end_id)
    if (currency, amount_minor) != (payout.currency, payout.amount_minor):
        raise UserError(
            f"payout {end_to_end_id} is {format_amount(payout.amount_minor, payout.currency)}, "
            f"the bank tells of {format_amount(amount_minor, currency)}."
        )
    if not payout.message_id:
        raise UserError(
            f"the bank tells of payout {end_to_end_id}, which is {payout.state} and was never "
            "submitted."
        )
    if payout.state == rules.RETURNED or (payout.state == rules.PAID and not returned):
        return None
    kind, body = rules.moving_body(
        payout, rules.RETURN if returned else rules.CONFIRM, actor=actor, day=booking_date,
        reference=reference,
    )  # fmt: skip
    # A statement goes on without the line whose decision is refused.
    return _decided(
        connection, book, kind, body, actor=actor, reason=reason, now_ms=now_ms, tried=True
    )


def _decided(
    connection: Connection,
    book: PayoutBook,
    kind: str,
    body: str,
    *,
    actor: str,
    reason: str,
    now_ms: int,
    tried: bool = False,
) -> LedgerEvent:
    """Make a decision about a payout and follow it in the book. UserError, and nothing made, also
    when what is published beside it could not be.

    Not ``tried``: all of a command are tried together, by ``require_bookable``.
    """
    with connection.begin_nested():
        event = decide(
            connection, kind=kind, body=body, actor=actor, reason=reason, now_ms=now_ms,
            tried=tried,
        )  # fmt: skip
        payout = book.take(event)
        for role, _key, noun in companions(event, payout) if payout is not None else ():
            require_publishable(to_record(noun), SCHEMA_OF[role])
    return event


def _known(book: PayoutBook, payout_id: str) -> Payout:
    found = book.payouts.get(payout_id)
    if found is None:
        raise UserError(f"there is no payout {payout_id!r}; see `paystream payouts list`.")
    return found


def _day(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
