"""What the suites over the ledger's database share: they run over SQLite and over PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from pipeline.ledger.database import open_ledger


class OnEachDatabase:
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def engine(self, url: str) -> Iterator[Engine]:
        engine = open_ledger(url)
        yield engine
        engine.dispose()
