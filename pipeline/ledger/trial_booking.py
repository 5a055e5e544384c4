"""Whether a decision can be booked, tried before it is made: booked once and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from pipeline.domain.decisions import ENTRY, Rules, require_entry_come
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.model import LedgerEvent
from pipeline.domain.payouts import PAYOUT_KINDS
from pipeline.domain.periods import Closing
from pipeline.domain.reconciliation_decisions import BANK_STATEMENT
from pipeline.errors import UserError
from pipeline.ledger.decision_booking import closed_through, entries_of
from pipeline.ledger.entries import EntryWriter, Item
from pipeline.ledger.unbookable import in_a_line, is_too_large

# Those whose accounts and amounts a person or a file says. What others post is made of entries that
# are booked, and there may be half a million of them.
_TRIED_KINDS: Final = frozenset({ENTRY, BANK_STATEMENT, *PAYOUT_KINDS})
# No topic has such a name.
_NO_TOPIC: Final = "tried/"


def require_bookable(connection: Connection, *events: LedgerEvent) -> None:
    """UserError when the books would refuse what the decisions post; nothing is booked.

    Those of one transaction are tried together: each after the others, as they will be booked, and
    at little more than the cost of one. What lies in the way of the server, and not of a decision,
    is raised as it is.
    """
    tried = [event for event in events if event.kind in _TRIED_KINDS]
    if not tried:
        return
    driver: Any = connection.dialect.loaded_dbapi
    try:
        _try(connection, tried)
    except (OperationalError, driver.OperationalError) as error:
        if not is_too_large(error):
            raise
        raise _not_bookable(error) from error
    # A driver's own are raised where entries are written past SQLAlchemy; the others by text and
    # numbers that no driver takes.
    except (DBAPIError, driver.Error, ValueError, OverflowError, InvariantBroken) as error:
        raise _not_bookable(error) from error


def _not_bookable(error: Exception) -> UserError:
    return UserError(f"the decision cannot be booked ({in_a_line(error)}), so it is not made.")


def _try(connection: Connection, events: Sequence[LedgerEvent]) -> None:
    closed = closed_through(connection)
    rules = Rules(closings=(Closing(0, closed, {}),) if closed else ())
    now_ms = events[0].decided_at_ms
    writer = EntryWriter(connection.dialect.name, lambda: now_ms)
    tried = connection.begin_nested()
    try:
        items = _items(connection, writer, events, rules)
        if items:
            # At once, as a transaction's entries are booked: PostgreSQL takes no lines after it has
            # checked the first, and balances are locked in one order by all who post.
            writer.add_balances(connection, writer.insert(connection, _NO_TOPIC, items))
    finally:
        tried.rollback()


def _items(
    connection: Connection, writer: EntryWriter, events: Sequence[LedgerEvent], rules: Rules
) -> list[Item]:
    posted = []
    for event in events:
        posted.append((event.sequence, entries_of(connection, event, rules)))
        require_entry_come(event)
    # What is booked already is passed over when it is booked, or refused by name.
    known = writer.known(connection, [entry.entry_id for _, made in posted for entry in made])
    return [
        Item(0, sequence, entry, part)
        for sequence, made in posted
        for part, entry in enumerate(entry for entry in made if entry.entry_id not in known)
    ]
