"""What `paystream ledger rebuild` says of the comparison, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from consumers import ledger_rebuild
from consumers.ledger_rebuild import ChainComparison, Rebuilt
from pipeline.cli import app
from pipeline.ledger.database import open_ledger

TOPIC = "settlements"


@pytest.mark.parametrize(
    ("compared", "exit_code", "said"),
    [
        ([(5, True), (2, True)], 0, "compared 7 entries with the live ledger: the SAME"),
        ([(5, True), (2, False)], 1, "compared 7 entries with the live ledger: DIFFERENT"),
        ([(0, True)], 0, "compared nothing with the live ledger: no entry of it is sealed yet"),
        ([], 0, "compared nothing with the live ledger: no entry of it is sealed yet"),
    ],
)
def test_only_what_was_compared_is_called_the_same(
    compared: list[tuple[int, bool]],
    exit_code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = f"sqlite:///{tmp_path / 'live.db'}"
    open_ledger(live).dispose()
    found = [
        ChainComparison(TOPIC, n, position, same) for n, (position, same) in enumerate(compared)
    ]
    monkeypatch.setattr(ledger_rebuild, "rebuild", lambda *_: Rebuilt(0, 0, 0, ()))
    monkeypatch.setattr(ledger_rebuild, "compare", lambda *_: found)
    done = CliRunner().invoke(
        app,
        ["ledger", "rebuild", "--into", f"sqlite:///{tmp_path / 'new.db'}", "--ledger-url", live],
    )
    assert (done.exit_code, done.output.splitlines()[-1]) == (exit_code, said), done.output
