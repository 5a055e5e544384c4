"""What the suites over the ledger's database share: they run over SQLite and over PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from pipeline.ledger.database import open_ledger


class OnEachDatabase:
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def engine(self, url: str, new_books: Path) -> Iterator[Engine]:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            path = Path(str(parsed.database))
            path.parent.mkdir(exist_ok=True)
            shutil.copy(new_books, path)
        engine = open_ledger(url)
        yield engine
        engine.dispose()
