"""The ledger's tables, read by SQL of the audit's own in one read transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipeline.audit.unavailable import AuditUnavailable
from pipeline.interrupted_queries import InterruptibleConnection

# Rows fetched at a time, so that the driver does not hold all of them besides ours.
FETCH_ROWS: Final = 10_000
BUSY_TIMEOUT_S: Final = 8
# An order of each entry would be the most of what is kept in memory, so only where it is asked for.
_ENTRIES: Final = (
    "SELECT entry_number, entry_id, settlement_id, source_topic, source_partition, source_offset,"
    " kind, merchant_id, business_date, booked_date, terms, CASE WHEN merchant_id IN"
    " (SELECT merchant_id FROM journal_entries WHERE kind = 'fee_true_up')"
    " THEN order_id ELSE '' END FROM journal_entries"
)


class PostingSeen(Struct, frozen=True, gc=False):
    """``amount_minor`` is signed: debits positive, credits negative."""

    account: str
    currency: str
    amount_minor: int


class EntrySeen(Struct, frozen=True, gc=False):
    """A journal entry, the settlement it books ("" for none) and the record it was booked from.

    ``order_id`` only where it counts: of merchants whose tiers a close corrected, "" otherwise.

    ``booked_date``: the day it counts under when its own was closed, else "".
    """

    entry_id: str
    settlement_id: str
    source_topic: str
    source_partition: int
    source_offset: int
    postings: tuple[PostingSeen, ...]
    kind: str = ""
    merchant_id: str = ""
    business_date: str = ""
    booked_date: str = ""
    terms: str = ""
    order_id: str = ""


class WaitingSeen(Struct, frozen=True, gc=False):
    """A decision that was made and that the ledger has not booked."""

    event_id: str
    sequence: int
    kind: str
    actor: str


@dataclass(frozen=True)
class LedgerCopy:
    """``offsets``: next offset of each partition of each topic, committed with the entries.
    ``balances``: debits and credits, both positive, by account and currency. ``waiting``: by
    their numbers."""

    entries: list[EntrySeen]
    balances: Mapping[tuple[str, str], tuple[int, int]]
    offsets: Mapping[tuple[str, int], int] = field(default_factory=dict)
    waiting: Sequence[WaitingSeen] = ()


class LedgerReader:
    """Reads a ledger; writes nothing, and makes no file where there is none."""

    def __init__(self, url: str) -> None:
        self._engine, self._shown = _engine(url)

    def close(self) -> None:
        self._engine.dispose()

    def read(self) -> LedgerCopy:
        """Everything, as of one moment. Raises AuditUnavailable when it cannot be read."""
        with self._reading() as connection:
            names: dict[int, str] = {
                number: intern(name)
                for number, name in connection.execute(
                    text("SELECT account_id, name FROM accounts")
                )
            }
            postings: dict[int, tuple[PostingSeen, ...]] = {}
            for number, account, currency, amount_minor in _rows(
                connection,
                "SELECT entry_number, account_id, currency, amount_minor FROM postings"
                " ORDER BY entry_number, line",
            ):
                name = names.get(account, f"account {account}")
                postings[number] = (
                    *postings.get(number, ()),
                    PostingSeen(name, intern(currency), amount_minor),
                )
            entries = [
                EntrySeen(
                    entry_id,
                    settlement_id,
                    intern(topic),
                    partition,
                    offset,
                    postings.pop(number, ()),
                    intern(kind),
                    intern(merchant_id),
                    intern(business_date),
                    intern(booked_date),
                    intern(terms),
                    order_id,
                )
                for (
                    number,
                    entry_id,
                    settlement_id,
                    topic,
                    partition,
                    offset,
                    kind,
                    merchant_id,
                    business_date,
                    booked_date,
                    terms,
                    order_id,
                ) in _rows(connection, _ENTRIES)
            ]
            # Postings of no entry still move balances, so they are shown as one.
            entries += [
                EntrySeen(f"entry number {number}, which is missing", "", "", -1, -1, left)
                for number, left in postings.items()
            ]
            balances = {
                (names.get(account, f"account {account}"), currency): (debits, credits)
                for account, currency, debits, credits in connection.execute(
                    text("SELECT account_id, currency, debits_minor, credits_minor FROM balances")
                )
            }
            offsets = {
                (topic, partition): offset
                for topic, partition, offset in connection.execute(
                    text("SELECT topic, partition, next_offset FROM consumer_offsets")
                )
            }
            waiting = [
                WaitingSeen(*row)
                for row in connection.execute(
                    text(
                        "SELECT event_id, sequence, kind, actor FROM ledger_decisions"
                        " WHERE published_offset IS NULL ORDER BY sequence"
                    )
                )
            ]
        return LedgerCopy(entries, balances, offsets, waiting)

    def entries_of(self, settlement_ids: Sequence[str]) -> list[dict[str, Any]]:
        """The entries that book these settlements, with their postings."""
        asked = text(
            "SELECT e.entry_id, e.settlement_id, e.business_date, a.name, p.currency,"
            " p.amount_minor FROM journal_entries e"
            " JOIN postings p ON p.entry_number = e.entry_number"
            " JOIN accounts a ON a.account_id = p.account_id"
            " WHERE e.entry_id IN :entry_ids ORDER BY e.entry_number, p.line"
        ).bindparams(bindparam("entry_ids", expanding=True))
        # By entry_id, which has the index; the database checks that it names the settlement.
        entry_ids = [f"settlement:{settlement_id}" for settlement_id in settlement_ids]
        found: dict[str, dict[str, Any]] = {}
        with self._reading() as connection:
            for entry_id, settlement_id, date, account, currency, amount in connection.execute(
                asked, {"entry_ids": entry_ids}
            ):
                entry = found.setdefault(
                    entry_id,
                    {
                        "entry_id": entry_id,
                        "settlement_id": settlement_id,
                        "business_date": date,
                        "postings": [],
                    },
                )
                entry["postings"].append(
                    {"account": account, "currency": currency, "amount_minor": amount}
                )
        return list(found.values())

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise AuditUnavailable(
                f"The ledger at {self._shown} cannot be read ({reason}); check --ledger-url, or"
                " leave it out with --no-ledger."
            ) from None


def _rows(connection: Connection, statement: str) -> Iterator[Any]:
    # Plain tuples without SQLAlchemy's row objects cost a third.
    cursor = connection.execution_options(yield_per=FETCH_ROWS).execute(text(statement))
    for batch in cursor.partitions(FETCH_ROWS):
        yield from batch


def _engine(url: str) -> tuple[Engine, str]:
    """An engine whose transactions see one moment and write nothing."""
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed.database, shown), shown
        if parsed.get_backend_name() in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(
            parsed,
            isolation_level="REPEATABLE READ",
            connect_args={"connect_timeout": BUSY_TIMEOUT_S},
        )
        return engine.execution_options(postgresql_readonly=True), shown
    except ModuleNotFoundError as error:
        raise AuditUnavailable(
            f"The ledger at {shown} needs {error.name}; install paystream[postgres]."
        ) from None
    except (ArgumentError, SQLAlchemyError):
        raise AuditUnavailable(
            f"{url!r} is no database address; give --ledger-url as sqlite:////absolute/file or"
            " postgresql://host/name."
        ) from None


def _sqlite(database: str | None, shown: str) -> Engine:
    path = Path(database or "")
    if not path.is_file():
        raise AuditUnavailable(
            f"There is no ledger at {shown}. Its workers make it when they start: start the flow,"
            " or start it again if it runs; name another with --ledger-url, or leave it out with"
            " --no-ledger."
        )
    engine = create_engine(
        URL.create("sqlite", database=str(path.absolute())),
        connect_args={"timeout": BUSY_TIMEOUT_S, "factory": InterruptibleConnection},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # Transactions are begun below: the driver's own would begin after the first read.
        connection.isolation_level = None
        connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
