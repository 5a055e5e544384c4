"""Payouts on SQLite: all that is demanded of every ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.payouts import PayoutSuite
from tests.support.payouts_unconfirmed import PayoutsUnconfirmedSuite


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def other_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'other.db'}"


class TestPayoutsOnSqlite(PayoutSuite):
    pass


class TestPayoutsUnconfirmedOnSqlite(PayoutsUnconfirmedSuite):
    pass
