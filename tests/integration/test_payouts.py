"""Payouts on a real broker: decided, published with what stands then, booked, made anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from consumers.ledger_rebuild import compare
from pipeline.cli import app
from pipeline.domain.decisions import ENTRY, entry_body
from pipeline.domain.transfers import made_available
from pipeline.errors import UserError
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import decide
from pipeline.ledger.payouts import create_payouts, payout_book
from pipeline.ledger.queries import balances, drifted_balances
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from producers.ledger_events import LedgerEvents
from schemas.codec import default_codec
from tests.integration.test_ledger_decisions import environment, flow, sales, urls
from tests.integration.test_ledger_sink import WAIT_S, Flow
from tests.support.payouts import ROLLING, document, ms, row
from tests.support.topics import create_topic, read_all
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

__all__ = ["environment", "flow", "urls"]

DECODE = default_codec().decoder("payout")
DECODE_AUDIT = default_codec().decoder("audit-entry")


@pytest.fixture
def topics(flow: Flow, environment: None) -> Flow:
    for role in ("payouts", "audit"):
        spec = flow.catalogue[role]
        create_topic(flow.kafka, spec.name, spec.partitions, config=spec.config)
    return flow


@pytest.fixture
def terms(tmp_path: Path) -> str:
    file = tmp_path / "payouts.json"
    file.write_text(json.dumps(document(row(reserve=ROLLING), row("other"))))
    return str(file)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--ledger-url", url], catch_exceptions=False)


def done(url: str, *arguments: str) -> str:
    result = run(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def receive(engine: Engine, amount_minor: int, at: str, merchant: str = "shop") -> None:
    body = entry_body("receipt", merchant, at[:10], made_available(merchant, "GBP", amount_minor))
    with engine.begin() as connection:
        decide(connection, kind=ENTRY, body=body, actor="bank", reason="", now_ms=ms(at))


def told(topics: Flow, payout_id: str) -> list[tuple[int, str]]:
    """(version, state) of all that the topic holds of a payout, in its order."""
    found = []
    for message in read_all(topics.kafka, topics.catalogue.name("payouts")):
        payout = DECODE(message.value() or b"")
        assert message.key() == f"{payout['merchant_id']}:{payout['currency']}".encode()
        if payout["payout_id"] == payout_id:
            found.append((payout["version"], payout["state"]))
    return found


def audited(topics: Flow, payout_id: str) -> list[tuple[str, str]]:
    found = [
        DECODE_AUDIT(m.value() or b"")
        for m in read_all(topics.kafka, topics.catalogue.name("audit"))
    ]
    return [(e["actor"], e["action"]) for e in found if e["subject"] == f"payout/{payout_id}"]


def test_a_payouts_way_is_told_once_and_the_books_are_made_anew(
    topics: Flow, urls: tuple[str, str], terms: str, tmp_path: Path
) -> None:
    """From the terms to the bank and back, by commands; a rebuild ends in the same hashes."""
    url, again_url = urls
    engine = open_ledger(url)
    with topics.running(engine) as counts:
        topics.publish(*sales(0, 5, "2010-12-01"))
        wait_until(lambda: counts.booked == 5, WAIT_S, "sales are booked")
    done(url, "payouts", "terms", "apply", terms, "--reason", "terms", "--from", "2010-12-01")
    assert "terms 1 from 2010-12-01" in done(url, "payouts", "terms", "show")
    receive(engine, 1000_00, "2010-12-01T09:00")
    receive(engine, 20_00, "2010-12-01T09:00", "other")
    created = done(url, "payouts", "create", "--through", "2010-12-01", "--by", "anna")
    assert "shop 2010-12-01: GBP 900.00 (held 100.00), payout " in created
    assert "nothing was to be created" in done(
        url, "payouts", "create", "--through", "2010-12-01", "--by", "anna"
    )
    with reading(engine) as connection:
        by_merchant = {p.merchant_id: p.payout_id for p in payout_book(connection).payouts.values()}
    shop, other = by_merchant["shop"], by_merchant["other"]
    with pytest.raises(UserError, match="a second person approves it"):
        run(url, "payouts", "approve", other, shop, "--by", "anna")
    done(url, "payouts", "approve", shop, other, "--by", "bert")
    folder = tmp_path / "bank"
    assert "2 payouts are submitted" in done(
        url, "payouts", "submit", "GBP", "--output", str(folder)
    )
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {Path(name).suffix for name in first} == {".xml", ".csv"}
    assert "nothing new is approved" in done(
        url, "payouts", "submit", "GBP", "--output", str(folder)
    )
    done(url, "payouts", "paid", shop, "--date", "2010-12-02", "--reference", "B-1")
    done(url, "payouts", "unknown", other, "--reason", "not on the statement")
    with pytest.raises(UserError, match="is paid, not unknown"):
        run(url, "payouts", "resolve", shop, "--as", "paid", "--reason", "x")
    done(url, "payouts", "resolve", other, "--as", "returned", "--reason", "bank's letter")
    done(url, "payouts", "file", Path(next(iter(first))).stem, "--output", str(tmp_path / "again"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == first
    assert told(topics, shop) == [(1, "created"), (2, "approved"), (3, "submitted"), (4, "paid")]
    assert told(topics, other) == [
        (1, "created"), (2, "approved"), (3, "submitted"), (4, "unknown"), (5, "returned"),
    ]  # fmt: skip
    assert audited(topics, shop)[:2] == [("anna", "payout_created"), ("bert", "payout_approved")]
    assert audited(topics, other)[1] == ("anna", "payout_approval_refused")
    shown = done(url, "payouts", "show", shop)
    assert "approved   by bert" in shown
    assert "the bank's reference: B-1" in shown
    listed = json.loads(done(url, "payouts", "list", "--state", "returned", "--json"))
    assert [p["payout_id"] for p in listed["payouts"]] == [other]

    while seal(engine):
        pass
    assert "the SAME" in done(url, "ledger", "rebuild", "--into", again_url)
    again = open_ledger(again_url)
    with reading(engine) as one, reading(again) as two:
        assert verify_books(one).damages == verify_books(two).damages == ()
        assert verify_books(one).heads == verify_books(two).heads
        assert balances(one) == balances(two)
        assert drifted_balances(two) == []
        assert payout_book(one).payouts == payout_book(two).payouts
    assert all(each.same for each in compare(engine, again))
    # The rebuilt ledger publishes nothing again and goes on: what came back is paid.
    assert "nothing was to be created" in done(
        again_url, "payouts", "create", "--through", "2010-12-01"
    )
    assert len(told(topics, shop)) == 4
    again.dispose()
    engine.dispose()


# Some twenty commands.
@pytest.mark.long
def test_the_bank_pays_the_file_and_its_statements_say_what_came_of_it(
    topics: Flow, terms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated bank takes the message, debits both payouts on one day and sends one back on
    the next: its statements alone confirm the one and return the other, whose money is available
    again. Nothing is a break."""
    for role in ("clearings", "reconciliation-breaks"):
        spec = topics.catalogue[role]
        create_topic(topics.kafka, spec.name, spec.partitions, config=spec.config)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = open_ledger(url)
    done(url, "payouts", "terms", "apply", terms, "--reason", "terms", "--from", "2010-12-01")
    receive(engine, 1000_00, "2010-12-01T09:00")
    receive(engine, 20_00, "2010-12-01T09:00", "other")
    done(url, "payouts", "create", "--through", "2010-12-01", "--by", "anna")
    with reading(engine) as connection:
        ids = sorted(payout_book(connection).payouts)
    done(url, "payouts", "approve", *ids, "--by", "bert")
    done(url, "payouts", "submit", "GBP", "--output", str(tmp_path / "bank"))
    (file,) = (tmp_path / "bank").glob("*.xml")
    with simulator(tmp_path / "books.sqlite") as handle:
        monkeypatch.setenv("PAYSTREAM_GATEWAY_URL", handle.url)
        # What comes back follows from the seed and the payouts' ids, which are the same each time.
        with urlopen(
            f"{handle.url}/v1/bank/payments?return_every=9", file.read_bytes(), timeout=30
        ) as answer:
            taken = json.load(answer)
        (back,) = taken["returned"]
        for day, lines in ((taken["value_date"], 2), (taken["return_date"], 1)):
            for booked in ("booked\n", "booked before\n"):
                told = done(url, "reconcile", "bank", "--gateway", "simulator", "--date", day)
                assert told.endswith(f"{lines} lines, {booked}")
    assert "  none" in run(url, "reconcile", "run", "--no-control").output
    with reading(engine) as connection:
        states = {p.payout_id: p.state for p in payout_book(connection).payouts.values()}
        found = {b.account: b.balance_minor for b in balances(connection)}
        amounts = {p.payout_id: p for p in payout_book(connection).payouts.values()}
    (paid,) = set(ids) - {back}
    assert states == {paid: "paid", back: "returned"}
    assert found["bank:main-gbp"] == -amounts[paid].amount_minor
    owed = amounts[back]
    assert found[f"merchant_available:{owed.merchant_id}"] == -owed.amount_minor
    engine.dispose()


@contextmanager
def simulator(books: Path) -> Iterator[Any]:
    handle = start_simulator(books, faults="none")
    try:
        yield handle
    finally:
        stop_simulator(handle)


def decided(engine: Engine) -> str:
    """A payout that is created in the database, and published nowhere."""
    with engine.begin() as connection:
        made = create_payouts(
            connection, through=date(2010, 12, 1), actor="anna", now_ms=ms("2010-12-01T18:00")
        )
    return str(json.loads(made.events[0].body)["payout_id"])


@pytest.mark.parametrize("step", ["decided", "sent", "published"])
def test_a_command_that_died_is_taken_further_once(
    topics: Flow, terms: str, tmp_path: Path, step: str
) -> None:
    """Dead before the publication, within it, or after it: one decision, one record, one entry."""

    class Crash(Exception):
        pass

    def die(name: str) -> None:
        if name == step:
            raise Crash

    url = f"sqlite:///{tmp_path / 'live.db'}"
    engine = open_ledger(url)
    done(url, "payouts", "terms", "apply", terms, "--reason", "terms", "--from", "2010-12-01")
    receive(engine, 1000_00, "2010-12-01T09:00")
    done(url, "ledger", "publish")
    payout_id = decided(engine)
    log = LedgerEvents(topics.kafka, topics.catalogue, default_codec())
    with pytest.raises(Crash):
        log.publish(engine, die)
    assert "1 entries were made now" in done(url, "ledger", "publish")
    done(url, "ledger", "publish")
    assert told(topics, payout_id) == [(1, "created")]
    assert audited(topics, payout_id) == [("anna", "payout_created")]
    assert len(read_all(topics.kafka, topics.catalogue.name("ledger-events"))) == 3
    with reading(engine) as connection:
        kept = {b.account: b.balance_minor for b in balances(connection)}
    assert kept["payouts_in_transit:shop"] == -900_00
    engine.dispose()


def test_of_two_that_publish_at_once_one_does(topics: Flow, terms: str, tmp_path: Path) -> None:
    """The later one puts the earlier off, which is told so; nothing is there twice."""
    url = f"sqlite:///{tmp_path / 'live.db'}"
    engine = open_ledger(url)
    done(url, "payouts", "terms", "apply", terms, "--reason", "terms", "--from", "2010-12-01")
    receive(engine, 1000_00, "2010-12-01T09:00")
    done(url, "ledger", "publish")
    payout_id = decided(engine)

    def other(name: str) -> None:
        if name == "sent":
            LedgerEvents(topics.kafka, topics.catalogue, default_codec()).publish(engine)

    log = LedgerEvents(topics.kafka, topics.catalogue, default_codec())
    with pytest.raises(UserError, match="was not certainly published"):
        log.publish(engine, other)
    done(url, "ledger", "publish")
    assert told(topics, payout_id) == [(1, "created")]
    assert len(read_all(topics.kafka, topics.catalogue.name("ledger-events"))) == 3
    engine.dispose()
