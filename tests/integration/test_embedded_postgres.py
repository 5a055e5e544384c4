"""The embedded PostgreSQL: data kept over restarts, databases of their own for each who asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from pipeline.embedded.postgres import new_database, start_postgres, stop_postgres
from tests.support.servers import passable

pytestmark = pytest.mark.integration


def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for statement in statements[:-1]:
                connection.execute(text(statement))
            result = connection.execute(text(statements[-1]))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def test_rows_survive_a_restart_and_the_server_is_found_running(tmp_path: Path) -> None:
    """What was committed is there after a stop and a start; a second start finds the first."""
    data_dir = passable(tmp_path) / "postgres"
    first = start_postgres(data_dir, die_with_parent=True)
    try:
        url = new_database(first, "kept")
        run(url, "create table t (a int)", "insert into t values (7)")
        again = start_postgres(data_dir)
        assert (again.pid, again.started_here) == (first.pid, False)
        stop_postgres(first)
        start_postgres(data_dir, die_with_parent=True)
        assert run(url, "select a from t") == [(7,)]
    finally:
        stop_postgres(data_dir)


def test_the_shared_server_answers(postgres_url: str) -> None:
    """The tests' own database takes tables and gives rows."""
    assert run(postgres_url, "create temp table t (a int)", "select 1 + 1") == [(2,)]
