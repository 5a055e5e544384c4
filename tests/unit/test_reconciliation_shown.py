"""Breaks for people: a page, a table, a terminal, the metrics; and a row's word to its payment."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from consumers.break_watch import BreakWatch
from pipeline.cli import app
from pipeline.commands import reconcile
from pipeline.commands.reconcile_text import age_days, break_lines, left_to_do, page, write_csv
from pipeline.domain.breaks import ReconciliationBreak
from pipeline.domain.ids import payment_id
from pipeline.domain.matching import ReportedSide
from pipeline.errors import UserError
from pipeline.gateways.reports.terms import rules_of
from pipeline.ledger.database import open_ledger
from pipeline.ledger.reconciliation.breaks import BreakSum, keep
from pipeline.ledger.reconciliation.tables import prepare
from pipeline.ledger.reconciliation.totals import DayTotal
from pipeline.observability.metrics import Metrics
from producers.clearings import words_of
from tests.support.cli_runner import CliRunner
from tests.support.reconciliation import reported_side

TODAY = date(2010, 12, 10)


def broken(**changed: Any) -> ReconciliationBreak:
    fields: dict[str, Any] = {
        "break_id": "b1", "kind": "missing_here", "gateway": "north", "subject": "north:f:3",
        "currency": "JPY", "at_risk_minor": 1250, "since": "2010-12-03",
        "detail": "a capture", "file_id": "f", "row_number": 3, "order_id": "o",
        "merchant_id": "m", "clearing_place": "clearings[1]@7", **changed,
    }  # fmt: skip
    return ReconciliationBreak(**fields)


def test_a_break_is_shown_with_its_age_its_risk_and_its_trail() -> None:
    """Amounts in the currency's own decimals, age in days from the day it is of."""
    shown = "\n".join(break_lines([broken()], TODAY))
    assert "1250 JPY" in shown
    assert "7d" in shown
    assert "m:o, report f row 3, clearings[1]@7" in shown
    assert age_days(broken(since="2011-01-01"), TODAY) == 0


def test_who_corrects_another_currency_is_told_what_is_left_to_do() -> None:
    """Its resolution books nothing, other than that of another amount. The break is in the report's
    currency; what is owed, and waited for, is in the other one."""
    said = "EUR 14.40 in the report, GBP 12.50 booked"
    corrected = {
        "state": "resolved", "resolution": "corrected", "currency": "EUR", "detail": said,
    }  # fmt: skip
    (told,) = left_to_do(broken(kind="currency_differs", **corrected))
    assert told.startswith(
        "nothing is booked by it: m:o stays pending, and north owes it as it is "
    )
    assert f"booked ({said}), until a row in that currency comes" in told
    assert "owes EUR" not in told
    assert "`paystream ledger convert gateway_receivable:north`" in told
    assert not [*left_to_do(broken(kind="amount_differs", **corrected))]
    converted = {**corrected, "resolution": "converted"}
    assert not [*left_to_do(broken(kind="currency_differs", **converted))]


class ResolvingAlone:
    """In the place of the reconciler: what it would do with a break it has the books open for."""

    def resolve(self, break_id: str, resolution: str, *, actor: str, reason: str) -> list[Any]:
        assert (break_id, actor, reason) == ("b1", "anna", "x")
        self.resolution = resolution
        return []

    def known(self, break_id: str) -> ReconciliationBreak:
        return broken(kind="currency_differs", state="resolved", resolution=self.resolution)


def test_a_break_is_resolved_over_books_that_are_opened_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is left to do is asked of the reconciler: there is no ledger here to open besides."""

    @contextmanager
    def reconciling(*_: object) -> Iterator[tuple[ResolvingAlone, None]]:
        yield ResolvingAlone(), None

    monkeypatch.setattr(reconcile, "reconciling", reconciling)
    told = CliRunner().invoke(
        app,
        ["reconcile", "resolve", "b1", "--as", "corrected", "--reason", "x", "--by", "anna",
         "--ledger-url", f"sqlite:///{tmp_path / 'none.db'}"],
        catch_exceptions=False,
    )  # fmt: skip
    assert told.output.startswith("break b1 is resolved: corrected\nnothing is booked by it: m:o ")


def test_a_page_shows_what_the_world_sent_as_text() -> None:
    """Markup in a bank's text is no markup of ours; totals stand by gateway and day."""
    total = DayTotal("north", "2010-12-03", "GBP", 3, 1250, 15, 2, 1000, 1234)
    found = [broken(detail="<script>alert(1)</script>"), broken(break_id="b2")]
    shown = page([total], found, TODAY, 1)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "and 1 more" in shown
    for cell in ("12.50", "0.15", "12.35", "2.50", "12.34", "0.01"):
        assert f">{cell}</td>" in shown, cell


def test_a_table_starts_no_formula() -> None:
    """A spreadsheet would run what a bank's text may begin with."""
    out = io.StringIO(newline="")
    assert write_csv([broken(detail="=1+1", reason="-x")], TODAY, out) == 1
    (row,) = csv.DictReader(io.StringIO(out.getvalue(), newline=""))
    assert (row["detail"], row["reason"], row["at_risk"]) == ("'=1+1", "'-x", "1250")


def test_breaks_that_have_ended_are_shown_as_none() -> None:
    """A gauge keeps its last value unless somebody sets it."""
    metrics = Metrics(CollectorRegistry())
    metrics.broken({("north", "missing_here", "GBP"): (2, 300)})
    metrics.broken({("sim", "duplicate", "GBP"): (1, 5)})
    text = generate_latest(metrics.registry).decode()
    labels = 'currency="GBP",gateway="north",kind="missing_here"'
    assert f"paystream_reconciliation_breaks{{{labels}}} 0.0" in text
    assert 'at_risk_minor{currency="GBP",gateway="sim",kind="duplicate"} 5.0' in text


def test_a_row_tells_its_payment_what_its_gateways_notice_would() -> None:
    """Of ours, with the order it names; a refund that came back has failed."""
    ours = payment_id("m", "o")
    ((word, rows),) = words_of([reported_side(payment_id=ours)], 7)
    assert [row.row_number for row in rows] == [1]
    assert (word.notification_id, word.outcome, word.kind, word.attempt, word.amount_minor) == (
        "report:g:f:1", "succeeded", "charge", 1, 100,
    )  # fmt: skip
    failed = reported_side(payment_id=ours, kind="refund_failed", operation_kind="refund")
    ((back, _),) = words_of([failed], 7)
    assert (back.outcome, back.kind) == ("failed", "refund")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"payment_id": payment_id("m", "x")}, id="another order's payment"),
        pytest.param({"operation_id": ""}, id="no operation"),
        pytest.param({"kind": "capture_failed"}, id="a capture that was taken back"),
        pytest.param({"merchant_id": ""}, id="no merchant"),
    ],
)
def test_a_row_that_names_no_payment_of_ours_tells_nobody(changed: dict[str, Any]) -> None:
    """It stays a break that a person looks at."""
    assert words_of([reported_side(**{"payment_id": payment_id("m", "o"), **changed})], 7) == []


def test_the_rows_of_a_dispute_tell_its_payment_together() -> None:
    """What was taken, what was given back and the fee, as one word about each dispute."""
    fields = {"payment_id": payment_id("m", "o"), "operation_id": "", "attempt": 0,
              "operation_kind": "", "gateway_reference": "dp_1"}  # fmt: skip
    taken = reported_side(1, **fields, kind="dispute", amount_minor=-100)
    fee = reported_side(2, **fields, kind="dispute_fee", amount_minor=-15)
    given = reported_side(3, **fields, kind="reversal", amount_minor=100)
    other = reported_side(4, **{**fields, "gateway_reference": "dp_2"}, kind="dispute",
                          amount_minor=-7)  # fmt: skip

    def said(*rows: ReportedSide) -> list[tuple[object, ...]]:
        words = [word for word, _ in words_of(rows, 7)]
        return [(w.dispute_id, w.dispute_state, w.amount_minor, w.fee_minor) for w in words]

    assert said(taken, fee, other) == [("dp_1", "opened", 100, 15), ("dp_2", "opened", 7, 0)]
    assert said(taken, given) == [("dp_1", "won", 100, 0)]
    assert said(given) == [("dp_1", "won", 100, 0)]
    assert said(fee) == [("dp_1", "inquiry", 0, 15)]
    ((word, rows),) = words_of([taken, fee], 7)
    assert (word.type, word.notification_id, len(rows)) == ("dispute", "report:g:f:1", 2)


def test_rules_are_the_contracts_own_where_nothing_else_is_said() -> None:
    """What a document leaves out stays; a gateway that is not configured is a mistake."""
    rules = rules_of({"n": "northbank"}, {"gateways": {"n": {"fee_tolerance_minor": 1}}})
    assert rules.of("n").time_zone == "Europe/London"
    assert rules.of("n").tolerance.fee_minor == 1
    assert rules.payer("NORTHBANK") == rules.payer("N") == "n"
    with pytest.raises(UserError, match="no gateway 'm'"):
        rules_of({"n": "northbank"}, {"gateways": {"m": {}}})


@pytest.fixture
def ledger(books_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PAYSTREAM_LEDGER_URL", books_url)
    return books_url


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["breaks"], "nothing was ever reconciled"),
        (["breaks", "--state", "ended"], "'ended' is no state"),
        (["breaks", "--kind", "odd"], "'odd' is no kind of break"),
        (["report"], "say what to write"),
        (["report", "--csv", "/tmp/x.csv"], "nothing was ever reconciled"),
        (["run", "--as-of", "tomorrow"], "'tomorrow' is no date"),
        (["import"], "name the files, or a day"),
        (["import", "x.csv", "--gateway", "nobody"], "one of simulator"),
        (["import", "/nowhere/x.csv"], "cannot be read"),
        (["bank", "/nowhere/x.xml"], "cannot be read"),
        (["import", "--date", "2010-12-01"], "cannot be downloaded"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_cannot_be_meant_is_said_in_a_sentence(words: list[str], said: str) -> None:
    """What was wrong, and what to do; nothing is begun."""
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, ["reconcile", *words], catch_exceptions=False)


@pytest.mark.usefixtures("ledger")
def test_rules_that_cannot_be_read_stop_a_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tolerance that was meant must not be left out in silence."""
    rules = tmp_path / "rules.toml"
    rules.write_text("[gateways.simulator]\nfee_tolerance = 1\n")
    monkeypatch.setenv("PAYSTREAM_RECONCILIATION_RULES", str(rules))
    with pytest.raises(UserError, match="no 'fee_tolerance'"):
        CliRunner().invoke(app, ["reconcile", "run"], catch_exceptions=False)
    monkeypatch.setenv("PAYSTREAM_RECONCILIATION_RULES", str(tmp_path / "nowhere.toml"))
    with pytest.raises(UserError, match="cannot be read"):
        CliRunner().invoke(app, ["reconcile", "run"], catch_exceptions=False)


def test_breaks_are_counted_for_the_metrics_once_there_are_tables(ledger: str) -> None:
    """A ledger on which reconciliation never ran has no breaks, and that is no trouble."""
    engine = open_ledger(ledger)
    told: list[Sequence[BreakSum]] = []
    watch = BreakWatch(engine, told.append)
    watch.look()
    prepare(engine)
    with engine.begin() as connection:
        keep(connection, [broken(), broken(break_id="b2")], 1, judged=())
    watch.look()
    assert told == [(), [BreakSum("north", "missing_here", "JPY", 2, 2500)]]
    watch.start()
    watch.stop()
    assert len(told) == 3
    engine.dispose()
