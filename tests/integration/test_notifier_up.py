"""Merchant webhooks beside the whole flow: an order in, a signed message out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.receiver import SECRET, Receiver
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.mark.long
def test_up_tells_a_merchant_that_its_order_was_captured(tmp_path: Path) -> None:
    """`paystream up` with a file of endpoints runs the stage; `webhooks log` shows the delivery,
    `verify` finds nothing wrong."""
    file = tmp_path / "endpoints.toml"
    cli = Cli(
        tmp_path / "cli",
        {
            "PAYSTREAM_MERCHANT_ENDPOINTS": str(file),
            "PAYSTREAM_CALLBACK_ALLOW_HTTP": "true",
            "PAYSTREAM_CALLBACK_ALLOW_PRIVATE": "true",
        },
    )
    file.write_text('[endpoints.main]\nmerchant = "shop"\nurl = "nonsense"\nsecrets = []\n')
    refused = cli.run("up", "--metrics-port", "0", "--partitions", "2")
    assert (refused.code, "'main'" in refused.err) == (2, True), refused
    with Receiver().listening() as receiver:
        file.write_text(
            f'[endpoints.main]\nmerchant = "shop"\nurl = "{receiver.url}"\nsecrets = ["{SECRET}"]\n'
        )
        with cli.start("up", "--metrics-port", "0", "--partitions", "2") as up:
            up.wait_for("In another terminal")
            done = cli.run(
                *("order", "submit", "--merchant", "shop", "--order-id", "1001"),
                *("--amount", "12.50", "--currency", "GBP", "--token", "tok_ok"),
            )
            assert done.code == 0, done
            wait_until(lambda: receiver.heard, 90, "the merchant is told")
            (told,) = receiver.heard
            assert (told.said["type"], told.refusal) == ("payment.captured", None)
            assert (told.data["order_id"], told.data["amount_minor"]) == ("1001", 1250)
            log = cli.run("webhooks", "log", "--order", "1001")
            assert "try 1 delivered, status 204" in log.out, log
            assert cli.run("verify", "--wait", "60").code == 0
            up.interrupt()
            assert up.ended(90) == 0, up.said
    cli.wait_until_nothing_runs(5.0)
