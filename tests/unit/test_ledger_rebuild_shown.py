"""What `paystream ledger rebuild` says of the comparison, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from consumers import ledger_rebuild
from consumers.ledger_rebuild import ChainComparison, Rebuilt
from pipeline.cli import app
from pipeline.errors import UserError
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


def test_a_ledger_that_is_lost_is_rebuilt_without_one_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what it is for: the books are made, and it does not end like a failure."""
    monkeypatch.setattr(ledger_rebuild, "rebuild", lambda *_: Rebuilt(438, 0, 0, ()))
    lost, new = (f"sqlite:///{tmp_path / name}" for name in ("lost.db", "new.db"))
    words = ["ledger", "rebuild", "--into", new, "--ledger-url", lost]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "compared nothing: there is no live ledger any more"
    assert not (tmp_path / "lost.db").exists()


def test_a_ledger_that_cannot_be_compared_with_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there and is no ledger, or a server that is away: not after the whole rebuild."""

    def made(*_: object) -> Rebuilt:
        raise AssertionError("it was rebuilt")

    monkeypatch.setattr(ledger_rebuild, "rebuild", made)
    (tmp_path / "odd.db").write_text("no database at all, but some file that is long enough")
    new, odd = tmp_path / "new.db", f"sqlite:///{tmp_path / 'odd.db'}"
    done = CliRunner().invoke(
        app, ["ledger", "rebuild", "--into", f"sqlite:///{new}", "--ledger-url", odd]
    )
    assert isinstance(done.exception, UserError)
    assert not new.exists()


def test_the_place_of_a_lost_ledger_is_left_to_its_workers(tmp_path: Path) -> None:
    """They may run, and whatever they write must not meet a rebuild; so it says who makes it."""
    url = f"sqlite:///{tmp_path / 'lost.db'}"
    done = CliRunner().invoke(app, ["ledger", "rebuild", "--into", url, "--ledger-url", url])
    assert isinstance(done.exception, UserError)
    assert "made anew by its own workers when they start" in str(done.exception)
