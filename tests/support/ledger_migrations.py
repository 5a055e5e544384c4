"""What every ledger demands of its migrations, from each earlier version, whatever database."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.model import LedgerEvent
from pipeline.errors import UserError
from pipeline.ledger import migrations
from pipeline.ledger.checksums import offset_checksum, place_checksum
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import event_id_of
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.queries import (
    balances,
    booked_offsets,
    drifted_balances,
    entry_count,
    trial_balance,
)
from pipeline.ledger.tables import REVISION, metadata
from pipeline.ledger.verification import verify_books
from tests.support.ledger import PAIR, SOURCE, book_by_hand, entry_of, of_no_settlement

EARLIER = ("0001", "0002", "0003", "0004", "0005", "0006")


class MigrationSuite:
    """Subclassed once for each database; ``url`` and ``other_url`` are of two empty ones."""

    @pytest.mark.parametrize("version", EARLIER)
    def test_books_of_an_earlier_version_go_on(self, url: str, version: str) -> None:
        """Every entry, balance and offset is there, guarded, and the next settlement is booked."""
        made_by(url, version)
        with bare(url) as connection:
            for n in range(3):
                write_v1(connection, n)
            if version != migrations.FIRST:
                write_decision(connection, with_checksum=version >= "0005")
            if version >= "0005":
                row = connection.execute(text("SELECT * FROM consumer_offsets")).one()
                connection.execute(text("UPDATE consumer_offsets SET checksum = :checksum"),
                                   {"checksum": offset_checksum(row)})  # fmt: skip
        engine = open_ledger(url)
        try:
            with reading(engine) as connection:
                assert verify_books(connection).damages == ()
            journal = Journal(engine, SOURCE)
            assert journal.stored_offset(0) == 3
            # A duplicate of what the earlier version booked is known for what it is.
            done = journal.post([Item(0, 3, entry_of(1)), Item(0, 4, entry_of(7))],
                                {0: Progress(3, 5)})  # fmt: skip
            assert (done.posted, len(done.duplicates)) == (1, 1)
            with reading(engine) as connection:
                assert entry_count(connection) == 4
                assert drifted_balances(connection) == []
                assert [t.difference_minor for t in trial_balance(connection)] == [0]
                assert [b.next_offset for b in booked_offsets(connection)] == [5]
                assert sum(b.debits_minor for b in balances(connection)) == 5000
                assert verify_books(connection).damages == ()
            attacks = ["UPDATE postings SET amount_minor = 1", "DELETE FROM journal_entries"]
            if version != migrations.FIRST:
                attacks.append("UPDATE ledger_decisions SET place_checksum = ''")
                with reading(engine) as connection:
                    kept = connection.execute(text("SELECT place_checksum FROM ledger_decisions"))
                    assert len(kept.scalar_one()) == 64
            for attack in attacks:
                with pytest.raises(DBAPIError, match="never changed"), engine.begin() as attacked:
                    attacked.execute(text(attack))
            with pytest.raises(DBAPIError, match="the record has one entry"):
                book_by_hand(engine, 500, PAIR, of_no_settlement("mine"), offset=4, part=1)
        finally:
            engine.dispose()

    @pytest.mark.parametrize("version", EARLIER)
    def test_a_migrated_schema_is_the_schema_of_a_new_ledger(
        self, url: str, other_url: str, version: str
    ) -> None:
        """Columns, keys, checks, indexes and triggers: nobody can tell which way it was made."""
        made_by(url, version)
        for each in (url, other_url):
            open_ledger(each).dispose()
        assert described(url) == described(other_url)

    @pytest.mark.parametrize("version", EARLIER)
    def test_a_writer_of_the_earlier_version_may_be_at_work(self, url: str, version: str) -> None:
        """The migration waits for its transactions, and it goes on afterwards: nothing is lost."""
        made_by(url, version)
        stop, failures, written = threading.Event(), list[BaseException](), [0]

        def write() -> None:
            engine = engine_of(url)
            try:
                while not stop.is_set() and written[0] < 20_000:
                    with engine.begin() as connection:
                        write_v1(connection, written[0])
                    written[0] += 1
            except BaseException as error:
                failures.append(error)
            finally:
                engine.dispose()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while written[0] < 10 and writer.is_alive():
                time.sleep(0.001)
            engine = open_ledger(url)
            at_migration = written[0]
            while written[0] < at_migration + 10 and writer.is_alive():
                time.sleep(0.001)
        finally:
            stop.set()
            writer.join(60)
        assert not failures, failures[0]
        with reading(engine) as connection:
            assert entry_count(connection) == written[0] >= at_migration + 10
            assert drifted_balances(connection) == []
        engine.dispose()

    def test_those_who_only_read_do_not_migrate(self, url: str) -> None:
        """A report does not change a production database under its writers; it says what to do."""
        made_by(url, "0001")
        with pytest.raises(UserError, match="paystream ledger migrate"):
            open_ledger(url, create=False)
        open_ledger(url).dispose()
        open_ledger(url, create=False).dispose()

    def test_the_newest_revision_is_the_schemas(self, url: str) -> None:
        """Whoever adds a revision raises the version that a new ledger is stamped with."""
        made_by(url, "head")
        with bare(url) as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        assert found == REVISION


def made_by(url: str, revision: str) -> None:
    """An empty ledger as that version left it. The first one named no revision."""
    engine = engine_of(url)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    engine.dispose()
    with bare(url) as connection:
        migrations.migrate(connection, revision)
        if revision == migrations.FIRST:
            connection.execute(text("DROP TABLE alembic_version"))


def engine_of(url: str) -> Engine:
    return create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"),
        connect_args={"timeout": 20} if url.startswith("sqlite") else {},
    )


class bare:
    """A transaction on a connection of no pragma or setting of ours."""

    def __init__(self, url: str) -> None:
        self._engine = engine_of(url)

    def __enter__(self) -> Connection:
        self._begun = self._engine.begin()
        return self._begun.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._begun.__exit__(*error)
        self._engine.dispose()


def write_v1(connection: Connection, n: int) -> None:
    """What the first version wrote for one capture: offset, postings, balances, entry."""
    entry = entry_of(n)
    run = connection.execute
    run(
        text(
            "INSERT INTO consumer_offsets (topic, partition, cluster_id, topic_id, next_offset, "
            "updated_at_ms) VALUES ('settlements', 0, 'cluster', 'topic', :next, 1) "
            "ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset"
        ),
        {"next": n + 1},
    )
    number = 1 + n
    if connection.dialect.name == "postgresql":
        number = run(text("SELECT nextval('journal_entry_numbers')")).scalar_one()
    for posting in entry.postings:
        run(
            text("INSERT INTO accounts (name) SELECT :name "
                 "WHERE NOT EXISTS (SELECT 1 FROM accounts WHERE name = :name)"),
            {"name": posting.account},
        )  # fmt: skip
    for line, posting in enumerate(entry.postings, 1):
        said = {"number": number, "line": line, "currency": posting.currency,
                "amount": posting.amount_minor, "name": posting.account,
                "debits": max(0, posting.amount_minor),
                "credits": max(0, -posting.amount_minor)}  # fmt: skip
        account = "(SELECT account_id FROM accounts WHERE name = :name)"
        run(
            text("INSERT INTO postings (entry_number, line, account_id, currency, amount_minor) "
                 f"VALUES (:number, :line, {account}, :currency, :amount)"), said,
        )  # fmt: skip
        run(
            text("INSERT INTO balances (account_id, currency, debits_minor, credits_minor) "
                 f"VALUES ({account}, :currency, :debits, :credits) "
                 "ON CONFLICT (account_id, currency) DO UPDATE SET "
                 "debits_minor = balances.debits_minor + excluded.debits_minor, "
                 "credits_minor = balances.credits_minor + excluded.credits_minor"), said,
        )  # fmt: skip
    run(
        text(
            "INSERT INTO journal_entries (entry_number, entry_id, settlement_id, kind, "
            "merchant_id, order_id, payment_id, operation_id, gateway, gateway_reference, "
            "business_date, source_topic, source_partition, source_offset, settled_at_ms, "
            "posted_at_ms, posting_count) VALUES (:number, :entry_id, :settlement_id, :kind, "
            ":merchant_id, :order_id, :payment_id, :operation_id, :gateway, :gateway_reference, "
            ":business_date, 'settlements', 0, :offset, :settled_at_ms, 1, 2)"
        ),
        {
            "number": number,
            "offset": n,
            **{name: getattr(entry, name) for name in entry.__struct_fields__
               if name not in ("postings", "terms", "booked_date", "payment_method")},
        },
    )  # fmt: skip


def write_decision(connection: Connection, *, with_checksum: bool) -> None:
    """A published decision that posts nothing, as the second version wrote it, or the fifth."""
    event = LedgerEvent(event_id="", kind="break_resolution", sequence=1, actor="anna",
                        reason="looked at", decided_at_ms=1, body="{}")  # fmt: skip
    event_id = event_id_of(event)
    column, value = (", place_checksum", ", :checksum") if with_checksum else ("", "")
    connection.execute(
        text(
            "INSERT INTO ledger_decisions (sequence, event_id, kind, actor, reason, decided_at_ms, "
            f"body, published_partition, published_offset{column}) VALUES (:sequence, :event_id, "
            f":kind, :actor, :reason, :decided_at_ms, :body, 0, 5{value})"
        ),
        {name: getattr(event, name) for name in event.__struct_fields__}
        | {"event_id": event_id, "checksum": place_checksum(event_id, 0, 5)},
    )


def _condition(index: Any) -> str:
    """What entries of a table an index holds; "" for all."""
    conditions = [str(v) for k, v in index["dialect_options"].items() if k.endswith("_where")]
    return "".join(conditions)


def described(url: str) -> dict[str, Any]:
    """Everything about a schema that somebody could notice, without names nobody chose."""
    engine = engine_of(url)
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        inspector = inspect(connection)
        for table in sorted(metadata.tables):
            found[table] = {
                "columns": [
                    (c["name"], str(c["type"]), c["nullable"], str(c["default"]))
                    for c in inspector.get_columns(table)
                ],
                "key": inspector.get_pk_constraint(table)["constrained_columns"],
                "foreign": sorted(
                    (f["constrained_columns"], f["referred_table"], sorted(f["options"].items()))
                    for f in inspector.get_foreign_keys(table)
                ),
                "unique": sorted(
                    u["column_names"] for u in inspector.get_unique_constraints(table)
                ),
                "checks": sorted(
                    (str(c["name"]), re.sub(r"\s+", "", c["sqltext"]))
                    for c in inspector.get_check_constraints(table)
                ),
                "indexes": sorted(
                    (str(i["name"]), i["column_names"], _condition(i))
                    for i in inspector.get_indexes(table)
                ),
            }
        if connection.dialect.name == "sqlite":
            asked = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY 1"
        else:
            asked = (
                "SELECT tgname, pg_get_triggerdef(t.oid), pg_get_functiondef(tgfoid) "
                "FROM pg_trigger t WHERE NOT tgisinternal ORDER BY 1"
            )
        found["triggers"] = [
            [re.sub(r"\s+", " ", str(part)) for part in row]
            for row in connection.execute(text(asked))
        ]
    engine.dispose()
    return found
