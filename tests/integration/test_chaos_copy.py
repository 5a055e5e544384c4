"""The short form of ``paystream chaos copy``: in a group and alone, killed and asked to go."""

from __future__ import annotations

import json

import pytest

from tests.support.cli import Cli

pytestmark = [pytest.mark.integration, pytest.mark.acceptance, pytest.mark.timeout(900)]

ENDED_WITHIN_S = 600.0
# Beyond a batch's size, so that every bounce meets a transaction.
RATE_PER_S = "1000"


def test_messages_are_copied_once_while_clients_are_bounced(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """In order where there is one, as a reader at the end sees it and one that read meanwhile."""
    cli = Cli(tmp_path)
    with cli.start(
        "chaos", "copy", "hard_bounce/clients", "clean_bounce/clients/order/group",
        "--rate", RATE_PER_S, "--json", "--dir", str(cli.temporary),
    ) as run:  # fmt: skip
        assert run.ended(ENDED_WITHIN_S) == 0, run.said
    report = json.loads(run.said[run.said.index("{\n") :])
    assert report["holds"]
    assert len(report["results"]) == 5
    assert all(result["messages"] > 1_000 for result in report["results"])
    assert all(result["bounces"] >= 3 for result in report["results"])
    assert cli.temporary_files() == []
    cli.wait_until_nothing_runs(10)
