"""Whether a decision can be booked, tried before it is made: booked once and taken back."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from pipeline.domain.decisions import ENTRY, Rules, require_entry_come
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.model import LedgerEvent
from pipeline.domain.payouts import PAYOUT_KINDS
from pipeline.domain.periods import Closing
from pipeline.domain.reconciliation_decisions import BANK_STATEMENT
from pipeline.domain.said_text import storable
from pipeline.errors import UserError
from pipeline.ledger.decision_booking import closed_through, entries_of
from pipeline.ledger.entries import EntryWriter, Item

# Those whose accounts and amounts a person or a file says. What others post is made of entries that
# are booked, and there may be half a million of them.
_TRIED_KINDS: Final = frozenset({ENTRY, BANK_STATEMENT, *PAYOUT_KINDS})
# PostgreSQL's class of what is larger than it takes, a name in an index for one.
_LIMIT_EXCEEDED: Final = "54"
# No topic has such a name.
_NO_TOPIC: Final = "tried/"


def require_bookable(connection: Connection, event: LedgerEvent) -> None:
    """UserError when the books would refuse what the decision posts; nothing is booked.

    What lies in the way of the server, and not of this decision, is raised as it is.
    """
    if event.kind not in _TRIED_KINDS:
        return
    driver: Any = connection.dialect.loaded_dbapi
    try:
        _try(connection, event)
    except (OperationalError, driver.OperationalError) as error:
        if not _is_too_large(error):
            raise
        raise _not_bookable(error) from error
    # A driver's own are raised where entries are written past SQLAlchemy; the others by text and
    # numbers that no driver takes.
    except (DBAPIError, driver.Error, ValueError, OverflowError, InvariantBroken) as error:
        raise _not_bookable(error) from error


def _is_too_large(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlstate", None) or "").startswith(_LIMIT_EXCEEDED)


def _not_bookable(error: Exception) -> UserError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    said = next(iter(storable(str(cause)).strip().splitlines()), type(cause).__name__)
    return UserError(f"the decision cannot be booked ({said}), so it is not made.")


def _try(connection: Connection, event: LedgerEvent) -> None:
    closed = closed_through(connection)
    rules = Rules(closings=(Closing(0, closed, {}),) if closed else ())
    entries = entries_of(connection, event, rules)
    require_entry_come(event)
    writer = EntryWriter(connection.dialect.name, lambda: event.decided_at_ms)
    # What is booked already is passed over when it is booked, or refused by name.
    known = writer.known(connection, [entry.entry_id for entry in entries])
    new = [entry for entry in entries if entry.entry_id not in known]
    if not new:
        return
    items = [Item(0, event.sequence, entry, part) for part, entry in enumerate(new)]
    tried = connection.begin_nested()
    try:
        writer.add_balances(connection, writer.insert(connection, _NO_TOPIC, items))
    finally:
        tried.rollback()
