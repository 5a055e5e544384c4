"""``paystream demo`` on a file of one's own, and when it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Cli

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def line(order_id: str, token: str, amount_minor: int = 1_250) -> str:
    return json.dumps(
        {
            "merchant_id": "shop",
            "order_id": order_id,
            "amount_minor": amount_minor,
            "currency": "GBP",
            "instrument_token": token,
        }
    )


@pytest.mark.long
def test_a_file_with_a_bad_line_settles_the_rest(cli: Cli) -> None:
    """The bad line is named by its number, the other orders reach their outcomes, exit code 0."""
    (cli.cwd / "orders.jsonl").write_text(
        "\n".join(
            [
                line("1", "tok_ok"),
                line("2", "tok_ok").replace("1250", "12.50"),
                line("3", "tok_decline_expired"),
                line("4", "tok_ok", 0),
                line("5", "tok_reset_after"),
            ]
        )
    )
    # What a production file says must not reach the demo's own broker.
    (cli.cwd / "paystream.toml").write_text(
        'replication_factor = 3\nmin_insync_replicas = 2\ntopic_prefix = "eu-"\n'
        'bootstrap_servers = "kafka-1:9092"\nmetrics_port = 1\n'
    )
    done = cli.run("demo", "--faults", "none", "--orders", "orders.jsonl")
    assert done.code == 0, (done.out, done.err)
    assert done.err.startswith("orders.jsonl:2: ")
    assert len(done.err.strip().splitlines()) == 1, done.err
    said = {
        parts[0]: parts[1]
        for parts in (text[10:].split("  ", 1) for text in done.out.splitlines())
        if len(parts) == 2
    }
    assert said["orders read"].split() == ["4,", "GBP", "37.50"]
    assert said["captured"].split() == ["2,", "GBP", "25.00"]
    assert said["failed"].split()[0] == "1,"
    assert said["no payment due"].split() == ["1"]
    assert said["gateway's own books"].strip().endswith("agree")
    assert "Every guarantee held" in done.out
    cli.wait_until_nothing_runs(5.0)
    assert cli.temporary_files() == []
    assert not cli.state_dir.exists()


@pytest.mark.parametrize(
    "moment", ["Starting Kafka", pytest.param("Published", marks=pytest.mark.long)]
)
def test_an_interrupted_demo_leaves_nothing(cli: Cli, moment: str) -> None:
    """Ctrl-C, even twice, ends it soon: no process, no folder, no traceback."""
    with cli.start("demo") as demo:
        demo.wait_for(moment)
        demo.interrupt()
        demo.interrupt()
        assert demo.ended(90.0) == 130, demo.said
        assert "Traceback" not in demo.said
        cli.wait_until_nothing_runs(5.0)
        assert cli.temporary_files() == []
