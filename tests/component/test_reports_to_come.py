"""A settlement report of a day that is yet to come is refused before anything is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.reconciliation import Reconciler
from pipeline.domain.due_days import latest_day, require_come
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.errors import UserError
from pipeline.gateways.reports import ReportFile
from pipeline.ledger.database import open_ledger
from schemas.codec import default_codec
from tests.support.payouts import ms
from topics.catalogue import build_catalogue

NOWHERE = "127.0.0.1:1"
# In Los Angeles it is still the 27th.
NOW_MS = ms("2026-11-28T02:00")


def test_a_report_that_its_gateways_clock_does_not_know_yet_is_refused(tmp_path: Path) -> None:
    """The 29th is tomorrow by UTC, and not where the gateway is."""
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    rules = read_rules({"gateways": {"pacific": {"time_zone": "America/Los_Angeles"}}})
    reconciler = Reconciler(
        NOWHERE, build_catalogue(), default_codec(), engine, rules, now_ms=lambda: NOW_MS
    )
    said = "the report r-29 of pacific is of 2026-11-29, which is yet to come"
    with pytest.raises(UserError, match=f"{said}: nothing is later than 2026-11-28"):
        reconciler.import_report(ReportFile("pacific", "r-29", "2026-11-29", ()))
    engine.dispose()


def test_tomorrow_has_come_for_those_who_are_ahead() -> None:
    """Whoever is ahead of us by a time zone writes tomorrow's date today."""
    assert latest_day(NOW_MS) == "2026-11-29"
    require_come("2026-11-29", "it", NOW_MS)
    with pytest.raises(UserError, match="it is of 2026-11-30"):
        require_come("2026-11-30", "it", NOW_MS)
