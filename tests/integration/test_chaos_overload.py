"""The short form of ``paystream chaos overload``: each scenario small, with every claim."""

from __future__ import annotations

import json

import pytest

from tests.support.cli import Cli

pytestmark = [pytest.mark.integration, pytest.mark.acceptance, pytest.mark.timeout(900)]

ENDED_WITHIN_S = 600.0


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("throttled-gateway", ["--gateway-rate", "30", "--overload", "8"]),
        ("paused-consumer", ["--pause", "10"]),
        ("large-records", ["--large", "10"]),
        ("dead-letters", ["--letters", "2000"]),
        ("hot-order", ["--hot", "300"]),
        ("restored-table", ["--payments", "20000"]),
        ("clock-jumps", []),
    ],
)
def test_a_small_overload_ends_whole(scenario: str, options: list[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Every claim of the scenario holds, and nothing stays behind."""
    cli = Cli(tmp_path)
    with cli.start(
        "chaos", "overload", scenario, "--rate", "50", "--json",
        "--dir", str(cli.temporary), *options,
    ) as run:  # fmt: skip
        assert run.ended(ENDED_WITHIN_S) == 0, run.said
    report = json.loads(run.said[run.said.index("{\n") :])
    assert report["holds"]
    assert report["outcomes"][0]["claims"]
    assert cli.temporary_files() == []
    cli.wait_until_nothing_runs(10)
