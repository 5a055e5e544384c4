"""The measurement of reconciliation in small: no figure without the right result."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.failure import WrongRun
from benchmarks.reconcile import expected, prepare_sales, reconcile_sales
from pipeline.config import Settings, load_settings
from topics.provisioning import provision

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(kafka: str, topic_prefix: str, tmp_path: Path) -> Settings:
    made = load_settings(
        bootstrap_servers=kafka, topic_prefix=topic_prefix, partitions=2, replication_factor=1,
        min_insync_replicas=1, state_dir=tmp_path, schema_registry_url="",
    )  # fmt: skip
    provision(kafka, made.catalogue())
    return made


@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_reconciliation_is_measured_only_where_every_break_was_found(
    settings: Settings, tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    """A small run of the very code: what was damaged is found by name, and nothing else; what
    matches is booked."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    if database == "PostgreSQL":
        url = request.getfixturevalue("own_postgres_url")
    prepare_sales(settings, url, 1_000)
    done = reconcile_sales(settings, database, url, 1_000)
    assert (done.sales, done.rows, done.breaks, done.entries) == (1_000, 1_010, 6 * 10 + 5, 970)
    assert set(expected(1_000).values()) == {10, 5}


def test_a_break_that_nobody_made_is_a_wrong_run(settings: Settings, tmp_path: Path) -> None:
    """Sales that were never booked are missing here: no figure comes of that."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    prepare_sales(settings, url, 1_000, booked=500)
    with pytest.raises(WrongRun, match="missing_here"):
        reconcile_sales(settings, "SQLite", url, 1_000)
