"""The demo on the real invoices that come with the project, with and without faults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOTAL = "GBP 153,652.88"


def demo(tmp_path: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the summary's lines by their label."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PAYSTREAM_TEST_S")
    }
    run = subprocess.run(
        [sys.executable, "-m", "pipeline", "demo", *options],
        env={**environment, "HOME": str(home), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = [line[10:] for line in run.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]
    rows = {line[:36].strip(): line[36:].strip() for line in lines}
    assert "orders read" in rows, run.stdout + run.stderr
    return run.returncode, rows


def minor(text: str) -> int:
    """The amount in a summary's line, in pence."""
    found = re.search(r"GBP (-?[\d,]+\.\d\d)", text)
    return int(found[1].replace(",", "").replace(".", "")) if found else 0


@pytest.fixture(autouse=True)
def shared_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty HOME for the demo, but the jars that the test run already has."""
    from pipeline.embedded.cache import cache_dir

    monkeypatch.setenv("PAYSTREAM_CACHE_DIR", str(cache_dir()))


def test_without_faults_every_payable_invoice_settles(tmp_path: Path) -> None:
    """337 invoices are captured for £153,652.88 and 45 have nothing due; of the cancelled lines 7
    are refunded (£136.10) and 77 are credits that are held (£3,053.48)."""
    code, rows = demo(tmp_path, "--faults", "none")
    assert code == 0, rows
    assert rows["orders read"] == f"382, {TOTAL}"
    assert rows["cancellations read"] == "36 with 84 lines, GBP -3,189.58"
    assert rows["captured"] == f"337, {TOTAL}"
    assert rows["refunded"] == "7, GBP 136.10"
    assert rows["credits held"] == "77, GBP 3,053.48"
    assert rows["settled (subscriber)"] == "421, GBP 150,463.30"
    assert rows["no payment due"] == "45"
    assert rows["journal entries"] == "421"
    assert rows["gateway_receivable:simulator"] == "GBP 153,516.78"
    assert rows["merchant_payable:online-retail"] == "GBP -150,463.30"
    assert rows["unapplied_credits:online-retail"] == "GBP -3,053.48"
    assert rows["debits less credits, GBP"] == "GBP 0.00"
    assert rows["gateway's own books"] == f"337 charges, {TOTAL}; 7 refunds, GBP 136.10: agree"
    nothing = ("refunds rejected", "rejected", "waiting", "dead letters")
    assert [rows[name] for name in nothing] == ["0"] * 4


def test_with_default_faults_every_penny_is_accounted_for(tmp_path: Path) -> None:
    """Captured, failed and waiting come to the same sum, every kind of fault was met, and nothing
    is charged twice."""
    code, rows = demo(tmp_path)
    assert code == 0, rows
    parts = [
        minor(rows[name]) for name in ("captured", "failed", "outcome_unknown") if name in rows
    ]
    assert sum(parts) == 15_365_288
    assert rows["no payment due"] == "45"
    count, amount = rows["captured"].split(", ", 1)
    assert rows["gateway's own books"].startswith(f"{count} charges, {amount}; ")
    assert rows["gateway's own books"].endswith(": agree")
    refunds = int(rows["refunded"].split(",")[0])
    assert rows["credits held"] == "77, GBP 3,053.48"
    # A refund of a payment that failed is refused by name.
    rejected = int(rows["refunds rejected"])
    assert refunds + rejected <= 7
    assert int(rows.get("payment_must_be_captured", "0")) == rejected
    assert int(rows["journal entries"]) == int(count) + refunds + 77
    faults = re.findall(r"(\w+) (\d+)", rows["faults injected"])
    assert {name for name, _ in faults} >= {
        "decline", "slow", "rate_limited", "500_before", "500_after", "reset_after", "hang_after",
    }  # fmt: skip
    assert all(int(times) > 0 for _, times in faults), faults
