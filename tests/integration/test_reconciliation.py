"""Reconciliation on a real broker: reports and statements in, the same books out of a rebuild."""

from __future__ import annotations

import csv
import json
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from consumers.ledger_rebuild import compare, rebuild
from consumers.reconciliation import Reconciler
from pipeline.cli import app
from pipeline.domain.clearing import clearing_key
from pipeline.domain.ids import idempotency_key
from pipeline.domain.model import Settlement
from pipeline.domain.payout_terms import terms_body
from pipeline.domain.reconciliation_rules import ReconciliationRules
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.gateways.reports import read_report
from pipeline.gateways.reports.terms import rules_of
from pipeline.gateways.simulator.bank import Payout, statement
from pipeline.gateways.simulator.report_formats import plain_report
from pipeline.gateways.simulator.reports import Report, ReportRow
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.payouts import decide_payout_terms
from pipeline.ledger.queries import balances, drifted_balances
from pipeline.ledger.reconciliation.breaks import list_breaks
from pipeline.ledger.reconciliation.clearing import counts as counted
from pipeline.ledger.reconciliation.tables import prepare
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from schemas.codec import default_codec
from tests.integration.test_ledger_decisions import SCHEDULE, environment, sales, urls
from tests.integration.test_ledger_sink import PARTITIONS, WAIT_S, Flow
from tests.support.cli import Cli
from tests.support.endless_books import endless, wait_until_asked
from tests.support.payouts import document
from tests.support.reconciliation import row_of
from tests.support.topics import create_topic, read_all
from tests.support.waiting import wait_until
from tests.support.whole_flow import WholeFlow, orders
from topics.provisioning import provision

pytestmark = pytest.mark.integration
__all__ = ["environment", "urls"]

DAY, NEXT = "2023-11-16", "2023-11-17"
PRICED = {"settled_at_ms": 1_700_100_000_000, "payment_method": "card"}


@pytest.fixture
def flow(kafka: str, topic_prefix: str) -> Flow:
    made = Flow(kafka, topic_prefix)
    for role in ("ledger-events", "clearings", "reconciliation-breaks"):
        spec = made.catalogue[role]
        create_topic(kafka, spec.name, spec.partitions, config=spec.config)
    return made


def row(number: int, settled: Settlement, **changed: Any) -> ReportRow:
    """What the gateway says of a settlement; it takes 1 %."""
    reference = idempotency_key(settled.payment_id, settled.operation_id, settled.gateway, 1)
    kind = "charge" if settled.kind == "capture" else settled.kind
    made = ReportRow(
        number, kind, settled.gateway_reference, settled.gateway_reference, reference,
        settled.merchant_id, settled.order_id, settled.amount_minor,
        max(0, settled.amount_minor // 100), settled.currency, settled.settled_at_ms, "po_1",
    )  # fmt: skip
    return replace(made, **changed)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--ledger-url", url], catch_exceptions=False)


def kept(engine: Engine) -> dict[str, int]:
    with reading(engine) as connection:
        assert drifted_balances(connection) == []
        return {b.account: b.balance_minor for b in balances(connection) if b.balance_minor}


@pytest.mark.usefixtures("environment")
def test_reports_and_the_bank_close_the_books_and_a_rebuild_has_the_same(
    flow: Flow, urls: tuple[str, str], tmp_path: Path
) -> None:
    """Imported twice, run twice, each row and line once; what differs is named; hashes agree."""
    url, again_url = urls
    schedule = tmp_path / "fees.toml"
    schedule.write_text(SCHEDULE)
    engine = open_ledger(url)
    with flow.running(engine) as counts:
        assert run(url, "ledger", "fees", "apply", str(schedule), "--reason", "x",
                   "--from", "2023-01-01").exit_code == 0  # fmt: skip
        sold = sales(0, 30, DAY, **PRICED)
        back = sales(0, 5, DAY, kind="refund", amount_minor=-417, operation_id="r1",
                     **PRICED)  # fmt: skip
        flow.publish(*sold, *back)
        wait_until(lambda: counts.booked == 35, WAIT_S, "all are booked")

    rows = [row(n, each) for n, each in enumerate(sold, 1)]
    rows += [
        row(30 + n, each, id=f"re_{n}", charge_id=each.gateway_reference)
        for n, each in enumerate(back, 1)
    ]
    # The refunds' settlements name another reference: they are not what the report tells of.
    rows[29] = replace(rows[29], gross_minor=1249)
    report = tmp_path / "report.csv"
    report.write_text(plain_report(Report(DAY, tuple(rows)), "UTC"))
    told = run(url, "reconcile", "import", str(report), "--gateway", "simulator")
    assert "35 rows, 35 of them new" in told.output
    told = run(url, "reconcile", "import", str(report))
    assert "35 rows, 0 of them new" in told.output
    assert len(read_all(flow.kafka, flow.catalogue.name("clearings"))) == 35
    report.write_text(plain_report(Report(DAY, (replace(rows[0], fee_minor=1),)), "UTC"))
    with pytest.raises(UserError, match="another fee_minor"):
        run(url, "reconcile", "import", str(report))

    report.write_text(plain_report(Report(DAY, ()), "UTC"))
    told = run(url, "reconcile", "import", str(report))
    assert told.output == f"{report}: 0 rows, 0 of them new\n"

    # What is no row holds nobody up, nor one that no database could keep.
    odd = row_of(1, sold[0], file_id="odd", amount_minor=-(2**63))
    poison = Producer({"bootstrap.servers": flow.kafka})
    poison.produce(flow.catalogue.name("clearings"), value=b"poison", key=b"k")
    poison.produce(
        flow.catalogue.name("clearings"), default_codec().encoder("clearing")(to_record(odd)),
        clearing_key(odd.gateway, odd.file_id, odd.row_number),
    )  # fmt: skip
    poison.flush(30)
    told = run(url, "reconcile", "run", "--as-of", "2023-11-21")
    assert told.exit_code == 1
    # 29 rows; their 13 of fees were accrued as 11.
    assert "29 cleared (29 entries)" in told.output, told.output
    again = run(url, "reconcile", "run", "--as-of", "2023-11-21", "--json")
    said = json.loads(again.output)
    assert (said["cleared"], said["opened"], said["ended"]) == (0, 0, 0)
    assert {each["kind"]: each["count"] for each in said["open"]} == {
        "amount_differs": 1, "batch_unpaid": 1, "clearing_refused": 2, "fee_differs": 29,
        "missing_at_gateway": 5, "missing_here": 5,
    }  # fmt: skip

    paid = sum(r.gross_minor - r.fee_minor for r in rows)
    bank = tmp_path / "bank.xml"
    payouts = [Payout("po_1", "GBP", paid - 1, NEXT)]
    bank.write_bytes(statement("acct", "Simulator", DAY, payouts, 0))
    told = run(url, "reconcile", "bank", str(bank))
    assert told.output == f"{bank}: no statement, since nothing was ever booked there\n"
    bank.write_bytes(statement("acct", "Simulator", NEXT, payouts, 0))
    assert "1 lines, booked\n" in run(url, "reconcile", "bank", str(bank)).output
    assert "1 lines, booked before" in run(url, "reconcile", "bank", str(bank)).output
    later = "2099-01-01"
    bank.write_bytes(statement("acct", "Simulator", later, [Payout("po_9", "GBP", 1, later)], 0))
    with pytest.raises(UserError, match="is of 2099-01-01, which is yet to come"):
        run(url, "reconcile", "bank", str(bank))
    run(url, "reconcile", "run", "--as-of", "2023-11-22")
    assert kept(engine)["bank:acct"] == paid - 1
    with reading(engine) as connection:
        (differs,) = list_breaks(connection, kind="batch_differs")
        assert list_breaks(connection, kind="batch_unpaid") == []
    assert differs.at_risk_minor == 1
    done = run(url, "reconcile", "resolve", differs.break_id, "--as", "accepted", "--reason",
               "a penny", "--by", "anna")  # fmt: skip
    assert done.exit_code == 0, done.output
    shown = run(url, "reconcile", "breaks", "--state", "resolved").output
    assert "accepted by anna: a penny" in shown

    newest = {}
    for message in read_all(flow.kafka, flow.catalogue.name("reconciliation-breaks")):
        said = default_codec().decoder("reconciliation-break")(message.value() or b"")
        newest[said["break_id"]] = said
    assert (newest[differs.break_id]["state"], newest[differs.break_id]["version"]) == (
        "resolved", 2,
    )  # fmt: skip
    assert sum(each["state"] == "open" for each in newest.values()) == 42

    while seal(engine):
        pass
    with reading(engine) as connection:
        assert verify_books(connection).damages == ()
    done = run(url, "ledger", "rebuild", "--into", again_url)
    assert done.exit_code == 0, done.output
    assert f"compared {35 + 29 + 1} entries with the live ledger: the SAME" in done.output
    rebuilt = open_ledger(again_url)
    assert kept(rebuilt) == kept(engine)
    # The rebuilt ledger goes on: nothing is cleared or opened a second time.
    ran = json.loads(run(again_url, "reconcile", "run", "--as-of", "2023-11-22", "--json").output)
    assert (ran["taken_in"], ran["cleared"]) == (35, 0)
    assert kept(rebuilt) == kept(engine)
    page, table = tmp_path / "page.html", tmp_path / "breaks.csv"
    done = run(url, "reconcile", "report", "--html", str(page), "--csv", str(table))
    assert done.exit_code == 0, done.output
    assert "<td>simulator</td><td>2023-11-16</td><td>GBP</td>" in page.read_text()
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 44
    # A close says what is open, of days that come later too, and is made all the same.
    done = run(url, "ledger", "close", "2023-10", "--reason", "month end")
    assert (done.exit_code, "that are open: 42, see" in done.stderr) == (0, True), done.output
    rebuilt.dispose()
    engine.dispose()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "table"),
    [
        (("reconcile", "run", "--as-of", "2023-11-21"), "bank_lines"),
        (("verify", "--no-gateway"), "balances"),
    ],
)
def test_ctrl_c_ends_a_look_at_large_books_and_the_next_one_is_whole(
    flow: Flow, tmp_path: Path, words: tuple[str, ...], table: str
) -> None:
    """While one query of it runs: nothing is decided, no file is left, and the same command does
    all of it."""
    file = tmp_path / "ledger.db"
    engine = open_ledger(f"sqlite:///{file}")
    provision(flow.kafka, flow.catalogue)
    sold = sales(0, 10, DAY)
    with flow.running(engine) as counts:
        flow.publish(*sold)
        wait_until(lambda: counts.booked == 10, WAIT_S, "all are booked")
    prepare(engine)
    rows = tuple(row(n, each) for n, each in enumerate(sold, 1))
    report = tmp_path / "report.csv"
    report.write_text(plain_report(Report(DAY, rows), "UTC"))
    engine.dispose()
    cli = Cli(
        tmp_path / "cli",
        {
            "PAYSTREAM_BOOTSTRAP_SERVERS": flow.kafka,
            "PAYSTREAM_TOPIC_PREFIX": flow.prefix,
            "PAYSTREAM_PARTITIONS": str(PARTITIONS),
            "PAYSTREAM_LEDGER_URL": f"sqlite:///{file}",
        },
    )
    assert cli.run("reconcile", "import", str(report), "--gateway", "simulator").code == 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with endless(file, table), cli.start(*words) as terminal:
            wait_until_asked(file, terminal.process)
            terminal.process.send_signal(signal.SIGINT)
            # Two seconds, as a busy machine has them; without being heard it takes for ever.
            assert terminal.ended(timeout_s=20.0) == 130, terminal.said
    finally:
        signal.signal(signal.SIGINT, before)
    assert cli.temporary_files() == []
    with reading(engine) as connection:
        assert counted(connection) == (10, 0)
        assert verify_books(connection).damages == ()
    done = cli.run(*words)
    # A batch that no bank has paid; settlements of no payment.
    assert done.code == 1, done.err
    if words[0] == "reconcile":
        assert "10 cleared (10 entries)" in done.out
    engine.dispose()


@pytest.mark.parametrize("step", ["published", "decided", "booked", "told", "breaks_published"])
def test_a_run_that_was_interrupted_is_taken_further_once(
    flow: Flow, tmp_path: Path, step: str
) -> None:
    """Dead after any step: the next import and run end in the same books and breaks."""

    class Crash(Exception):
        pass

    engine = open_ledger(f"sqlite:///{tmp_path / 'live.db'}")
    known, unknown = sales(1, 10, DAY), sales(50, 2, DAY)
    with flow.running(engine) as counts:
        flow.publish(*known)
        wait_until(lambda: counts.booked == 10, WAIT_S, "all are booked")
    rows = tuple(row(n, each) for n, each in enumerate((*known[1:], *unknown), 1))
    report = read_report(plain_report(Report(DAY, rows), "UTC"), gateway="simulator",
                         adapter="simulator")  # fmt: skip

    def reconciler(on_step: Callable[[str], None] = lambda _: None) -> Reconciler:
        rules: ReconciliationRules = rules_of({"simulator": "simulator"}, {})
        return Reconciler(flow.kafka, flow.catalogue, default_codec(), engine, rules,
                          now_ms=lambda: 1_700_600_000_000, on_step=on_step)  # fmt: skip

    def die(name: str) -> None:
        if name == step:
            raise Crash

    def import_and_run(doomed: Reconciler) -> None:
        doomed.import_report(report)
        doomed.run()

    with pytest.raises(Crash):
        import_and_run(reconciler(die))
    whole = reconciler()
    assert whole.import_report(report) in (0, len(rows))
    whole.run()
    whole.run()
    with reading(engine) as connection:
        cleared = connection.execute(
            text("SELECT count(*), count(DISTINCT entry_id) FROM journal_entries "
                 "WHERE kind = 'clearing'")
        ).one()  # fmt: skip
        kinds = sorted(b.kind for b in list_breaks(connection))
        rows_kept = connection.execute(text("SELECT count(*) FROM clearing_rows")).scalar_one()
    assert tuple(cleared) == (9, 9)
    assert kinds == ["batch_unpaid", "missing_at_gateway", "missing_here", "missing_here"]
    assert rows_kept == 11
    words = read_all(flow.kafka, flow.catalogue.name("gateway-notifications"))
    assert {len(words), 2} <= {2, 4}
    again = open_ledger(f"sqlite:///{tmp_path / 'again.db'}")
    rebuild(flow.kafka, flow.catalogue, default_codec(), again)
    while seal(engine):
        pass
    assert all(each.same for each in compare(engine, again))
    again.dispose()
    engine.dispose()


def test_what_the_ledger_has_not_of_the_topic_is_a_break(flow: Flow, tmp_path: Path) -> None:
    """The internal control: a settlement that was refused is not in the books, and is named."""
    engine = open_ledger(f"sqlite:///{tmp_path / 'live.db'}")
    prepare(engine)
    with flow.running(engine) as counts:
        flow.publish(*sales(1, 3, DAY))
        # The same id with other content goes to the dead letters.
        flow.publish(*sales(2, 1, DAY, amount_minor=999))
        wait_until(lambda: len(counts.causes) == 1, WAIT_S, "one is refused")
        wait_until(lambda: counts.booked == 3, WAIT_S, "the others are booked")
    rules = rules_of({"simulator": "simulator"}, {})
    reconciler = Reconciler(flow.kafka, flow.catalogue, default_codec(), engine, rules,
                            now_ms=lambda: 1_700_000_100_000)  # fmt: skip
    ran = reconciler.run()
    assert ran.opened == 1
    with reading(engine) as connection:
        (found,) = list_breaks(connection)
    assert (found.kind, found.order_id) == ("ledger_differs", "o2")
    assert found.settlement_place.startswith(flow.topic)
    engine.dispose()


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_an_unknown_payment_is_resolved_by_the_report(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway never answers and charges all the same: the report says so, the payment is
    captured, booked, cleared and paid, and the audit finds nothing."""
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        monkeypatch.setenv("PAYSTREAM_BOOTSTRAP_SERVERS", kafka)
        monkeypatch.setenv("PAYSTREAM_TOPIC_PREFIX", topic_prefix)
        monkeypatch.setenv("PAYSTREAM_PARTITIONS", str(flow.partitions))
        monkeypatch.setenv("PAYSTREAM_GATEWAY_URL", flow.simulator.url)
        url = flow.settings.books_url()
        good, silent = orders(3), orders(1, token="tok_always_unknown", merchant="quiet")
        flow.publish([*good, *silent])
        flow.keep_until(
            lambda: (p := flow.payments()).get("quiet:o-0") is not None
            and p["quiet:o-0"].status == "outcome_unknown"
            and sum(x.status == "captured" for x in p.values()) == 3,
            120, "three are captured and one is not known",
        )  # fmt: skip
        day = time.strftime("%Y-%m-%d", time.gmtime())
        body = json.dumps({"date": day, "late_every": 0}).encode()
        request = urllib.request.Request(f"{flow.simulator.url}/v1/admin/reports", body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            (batch,) = json.load(answer)["batches"]
        assert run(url, "reconcile", "import", "--date", day).exit_code == 0
        flow.keep_until(lambda: "3 cleared" in run(url, "reconcile", "run").output
                        or captured(flow) == 4, 120, "the report's word is out")  # fmt: skip
        flow.keep_until(lambda: captured(flow) == 4, 120, "the payment knows by the report")
        flow.settle(120)
        told = run(url, "reconcile", "run")
        assert "1 cleared" in told.output, told.output
        told = run(url, "reconcile", "bank", "--date", batch["value_date"])
        assert "1 lines, booked" in told.output
        last = run(url, "reconcile", "run")
        assert (last.exit_code, "  none" in last.output) == (0, True), last.output
        engine = open_ledger(url)
        found = kept(engine)
        engine.dispose()
        report = flow.settle(120)
    assert report.exit_code == 0, report.findings
    assert "gateway_receivable:simulator" not in found
    assert found["merchant_available:quiet"] == -100
    assert found["bank:sim-simulator"] == batch["amount_minor"]


# A flow, an audit of it and a rebuild.
@pytest.mark.long
@pytest.mark.timeout(420)
def test_sales_that_are_settled_in_another_currency_go_through_everything(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four sales the gateway's own report tells two in euro: one is converted, of the other its
    person does by hand what the command says. The bank pays both currencies. Audit, seals and
    control find nothing but a decision that was not published, until it is; and a rebuild through
    the broker has the same entries and hashes."""
    with WholeFlow(kafka, topic_prefix, tmp_path) as flow:
        for name, value in (("BOOTSTRAP_SERVERS", kafka), ("TOPIC_PREFIX", topic_prefix),
                            ("PARTITIONS", str(flow.partitions)),
                            ("GATEWAY_URL", flow.simulator.url)):  # fmt: skip
            monkeypatch.setenv(f"PAYSTREAM_{name}", value)
        url = flow.settings.books_url()
        flow.publish(orders(4))
        flow.keep_until(lambda: captured(flow) == 4, 120, "all are captured")
        flow.settle(120)

        def done(*arguments: str, code: int = 0) -> str:
            told = run(url, *arguments)
            assert told.exit_code == code, told.output
            return told.output

        day = time.strftime("%Y-%m-%d", time.gmtime())
        body = json.dumps({"date": day, "late_every": 0}).encode()
        urllib.request.urlopen(f"{flow.simulator.url}/v1/admin/reports", body, timeout=30).close()
        with urllib.request.urlopen(f"{flow.simulator.url}/v1/reports/{day}", timeout=30) as answer:
            rows = list(csv.DictReader(answer.read().decode().splitlines()))
        # Told as 1.20 of each pound; the fee as well.
        for each in rows[:2]:
            fee, gross = (int(each[name]) * 6 // 5 for name in ("fee_minor", "gross_minor"))
            each |= {"currency": "EUR", "gross_minor": str(gross), "fee_minor": str(fee),
                     "net_minor": str(gross - fee)}  # fmt: skip
        report = tmp_path / "report.csv"
        with report.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        assert "4 rows, 4 of them new" in done("reconcile", "import", str(report), "--gateway",
                                               "simulator")  # fmt: skip
        assert "2 cleared" in done("reconcile", "run", code=1)
        one, two = json.loads(done("reconcile", "breaks", "--json"))
        assert {one["kind"], two["kind"]} == {"currency_differs"}
        done("reconcile", "resolve", one["break_id"], "--as", "converted", "--reason", "in euro")
        told = done("reconcile", "resolve", two["break_id"], "--as", "corrected", "--reason", "x")
        assert f"{two['merchant_id']}:{two['order_id']} stays pending" in told
        # As it says: by what the bank pays for it, and by what is pending of it.
        (sold,) = (r for r in rows if r["order_id"] == two["order_id"])
        sold_minor = 100 + int(two["order_id"].removeprefix("o-"))
        pounds, euro = (f"{int(minor) / 100:.2f}" for minor in (sold_minor, sold["net_minor"]))
        by_hand = ("--date", day, "--reason", "euro")
        done("ledger", "convert", "gateway_receivable:simulator", "--sold", f"{pounds}:GBP",
             "--bought", f"{euro}:EUR", *by_hand)  # fmt: skip
        done("ledger", "post", f"merchant_payable:shop={pounds}:GBP",
             f"merchant_available:shop=-{pounds}:GBP", *by_hand)  # fmt: skip
        paid = {
            currency: sum(int(r["net_minor"]) for r in rows if r["currency"] == currency)
            for currency in ("EUR", "GBP")
        }
        money = [Payout(rows[0]["payout"], each, minor, day) for each, minor in paid.items()]
        file = tmp_path / "statement.xml"
        file.write_bytes(statement("sim-simulator", "SIMULATOR", day, money, 0))
        assert "1 lines, booked" in done("reconcile", "bank", str(file))
        assert "  none" in done("reconcile", "run")
        assert "WHOLE: every guarantee holds" in done("verify", "--wait", "60")
        engine, again_url = open_ledger(url), f"sqlite:///{tmp_path / 'again.db'}"
        # As a command leaves it that is killed before it has published what it decided.
        with engine.begin() as connection:
            decide_payout_terms(connection, body=terms_body(document(), 1), effective_from_ms=1,
                                actor="anna", reason="terms", now_ms=1)  # fmt: skip
        assert "decision_not_booked x1: " in done("verify", code=2)
        done("ledger", "publish")
        assert "WHOLE: every guarantee holds" in done("verify")
        assert "WHOLE" in done("ledger", "verify")
        assert "the SAME" in done("ledger", "rebuild", "--into", again_url)
        assert "WHOLE" in run(again_url, "ledger", "verify").output
        again = open_ledger(again_url)
        assert all(each.same for each in compare(engine, again))
        with reading(engine) as live, reading(again) as anew:
            assert verify_books(live).heads == verify_books(anew).heads
            assert drifted_balances(live) == drifted_balances(anew) == []
            found = balances(live)
            assert found == balances(anew)
        again.dispose()
        engine.dispose()
    (other,) = (r for r in rows if r["order_id"] == one["order_id"])
    told_minor, fee_minor = int(other["gross_minor"]), int(other["fee_minor"])
    # Nothing is owed by the gateway any more, in no currency; 1.00 to 1.03 are the merchant's.
    assert {(b.account, b.currency): b.balance_minor for b in found if b.balance_minor} == {
        ("merchant_available:shop", "GBP"): -(1_00 + 1_01 + 1_02 + 1_03),
        ("bank:sim-simulator", "GBP"): paid["GBP"], ("bank:sim-simulator", "EUR"): paid["EUR"],
        ("gateway_cost:simulator", "GBP"): sum(int(r["fee_minor"]) for r in rows[2:]),
        ("gateway_cost:simulator", "EUR"): fee_minor,
        ("currency_position:GBP", "GBP"): 200 + sum(int(r["order_id"][2:]) for r in rows[:2]),
        ("currency_position:EUR", "EUR"): -told_minor - int(sold["net_minor"]),
    }  # fmt: skip


def captured(flow: WholeFlow) -> int:
    return sum(each.status == "captured" for each in flow.payments().values())
