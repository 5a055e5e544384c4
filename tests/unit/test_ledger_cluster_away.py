"""What is said of the ledger's topics when no broker answers."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from producers import ledger_events


@pytest.mark.slow
def test_a_cluster_that_is_away_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another than was meant."""
    monkeypatch.setattr(ledger_events, "METADATA_TIMEOUT_S", 0.3)
    with pytest.raises(UserError, match=r"the cluster at 127\.0\.0\.1:1 does not answer"):
        ledger_events.topic_ranges("127.0.0.1:1", "settlements")
