"""``paystream transactions`` where there is nobody to ask."""

from __future__ import annotations

import pytest

from pipeline.cli import app
from pipeline.errors import UserError
from tests.support.cli_runner import CliRunner


@pytest.mark.parametrize("command", ["list", "end"])
@pytest.mark.slow
def test_a_missing_broker_is_named_by_its_address(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is tried is the sentence, not the wait for it.
    monkeypatch.setattr("pipeline.runtime.cluster.METADATA_TIMEOUT_S", 0.3)
    said = (
        CliRunner()
        .invoke(app, ["transactions", command, "--bootstrap-servers", "127.0.0.1:1"])
        .exception
    )
    assert isinstance(said, UserError)
    assert str(said).startswith("no Kafka broker answers at 127.0.0.1:1")
