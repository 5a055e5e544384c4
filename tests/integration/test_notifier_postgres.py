"""The callbacks on PostgreSQL: the same demands as on SQLite."""

from __future__ import annotations

import pytest

from tests.unit.test_notifier_store import StoreSuite

pytestmark = pytest.mark.integration


class TestPostgres(StoreSuite):
    @pytest.fixture
    def url(self, own_postgres_url: str) -> str:
        return own_postgres_url
