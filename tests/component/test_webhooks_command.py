"""``paystream webhooks resend``: what is asked for again, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from consumers.notifier.callback import Callback
from consumers.notifier.database import open_callbacks
from consumers.notifier.store import CallbackStore
from pipeline.cli import app
from pipeline.errors import UserError
from tests.support.cli_runner import CliRunner
from tests.support.receiver import SECRET

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CallbackStore]:
    """Two events for `here`, of two days; the first one for `gone` as well, which is no more."""
    url = f"sqlite:///{tmp_path / 'callbacks.sqlite'}"
    file = tmp_path / "endpoints.toml"
    file.write_text(
        '[endpoints.here]\nmerchant = "shop"\nurl = "https://shop.example/h"\n'
        f'secrets = ["{SECRET}"]\n'
    )
    monkeypatch.setenv("PAYSTREAM_CALLBACKS_URL", url)
    monkeypatch.setenv("PAYSTREAM_MERCHANT_ENDPOINTS", str(file))
    engine = open_callbacks(url)
    store = CallbackStore(engine)
    told = [("here", "ev-1", 0), ("here", "ev-2", DAY_MS), ("gone", "ev-1", 0)]
    store.take([callback(*each) for each in told], "cluster", "topic", {0: 1}, NOW_MS)
    yield store
    engine.dispose()


def callback(endpoint: str, event: str, after_ms: int) -> Callback:
    return Callback(
        endpoint=endpoint, event_id=event, merchant_id="shop", order_id=event, payment_id=event,
        sequence=1, type="captured", lane=0, occurred_at_ms=NOW_MS + after_ms, body=b"{}",
    )  # fmt: skip


def resend(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", "resend", *arguments], catch_exceptions=False)


def asked(store: CallbackStore) -> list[tuple[str, str]]:
    return sorted((row["endpoint"], row["event_id"]) for row in store.find() if row["resends"])


def test_what_went_to_an_endpoint_that_is_gone_is_left_out_by_name(store: CallbackStore) -> None:
    """It would wait for ever, and nobody would know why."""
    done = resend("--merchant", "shop")
    assert (done.exit_code, done.stdout) == (0, "2 callbacks will be delivered again\n")
    assert "left out" in done.stderr
    assert "endpoints.toml: 1 to gone" in done.stderr
    assert asked(store) == [("here", "ev-1"), ("here", "ev-2")]


def test_an_endpoint_that_is_gone_is_refused_by_name(store: CallbackStore) -> None:
    """Where nothing else was chosen, nothing is done."""
    for dry in ([], ["--dry-run"]):
        with pytest.raises(UserError, match=r"not in .*endpoints.toml: 1 to gone\. Put"):
            resend("ev-1", "--endpoint", "gone", *dry)
    assert asked(store) == []


def test_an_event_that_other_options_leave_out_is_not_called_old(store: CallbackStore) -> None:
    """The sentence says which of the two it is."""
    for left_out in (["--since", "2026-09-22"], ["--given-up"], ["--merchant", "other"]):
        with pytest.raises(
            UserError, match=r"the other options leave out every callback of .*ev-1"
        ):
            resend("ev-1", *left_out)
    with pytest.raises(UserError, match="over 30 days old"):
        resend("ev-9", "--since", "2026-09-22")
    assert resend("ev-2", "--since", "2026-09-22").exit_code == 0
    assert asked(store) == [("here", "ev-2")]


def test_an_event_that_is_named_twice_is_sent_once(store: CallbackStore) -> None:
    assert resend("ev-2", "ev-2").stdout == "1 callbacks will be delivered again\n"
    assert [row["outcome"] for row in store.deliveries_of(["ev-2"])["here", "ev-2"]] == [
        "resend_asked"
    ]
