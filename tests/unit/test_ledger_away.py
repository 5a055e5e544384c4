"""A ledger worker that starts while its database is away waits for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline import worker
from pipeline.errors import UserError
from pipeline.ledger import database
from pipeline.ledger.database import LedgerAway, open_ledger
from tests.support.ports import free_port


class Counted:
    """Metrics that only count how often the database was away."""

    def __init__(self) -> None:
        self.ledger_unavailable = self
        self.count = 0

    def inc(self) -> None:
        self.count += 1


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LEDGER_PAUSE_S_MIN", 0.0)
    monkeypatch.setattr(worker, "LEDGER_PAUSE_S_MAX", 0.0)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_away_and_a_file_that_cannot_be_is_wrong(
    tmp_path: Path,
) -> None:
    """The one may come back by itself; a folder will not become a file."""
    with pytest.raises(LedgerAway, match="cannot be used"):
        open_ledger(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    with pytest.raises(UserError, match="cannot be used") as wrong:
        open_ledger(f"sqlite:///{tmp_path}")
    assert not isinstance(wrong.value, LedgerAway)


def test_a_worker_waits_until_its_database_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed while PostgreSQL was starting, said twice that it could not run, and the
    supervisor gave up all workers of the node."""
    answers: list[Any] = [LedgerAway("starting up"), LedgerAway("starting up"), "the engine"]

    def opened(_url: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(database, "open_ledger", opened)
    metrics = Counted()
    assert worker.ledger_when_there("url", threading.Event(), metrics) == "the engine"
    assert metrics.count == 2


def test_a_worker_that_waits_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what will not pass is told at once."""
    stop = threading.Event()
    stop.set()
    away = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    assert worker.ledger_when_there(away, stop, Counted()) is None
    with pytest.raises(UserError, match="not a database URL"):
        worker.ledger_when_there("nonsense", threading.Event(), Counted())
