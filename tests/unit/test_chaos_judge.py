"""The verdict on a run: every finding has its name in the literature, and nothing is let off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.audit.report import GUARANTEES, Example, Finding, Severity
from pipeline.audit.report import Report as AuditReport
from pipeline.chaos.flow.anomalies import ANOMALIES, ANOMALY_OF, Anomalies
from pipeline.chaos.flow.broker_faults import java_hash
from pipeline.chaos.flow.coordinator_log import Decision
from pipeline.chaos.flow.judge import from_audit, from_balances, from_exits, from_logs, from_offsets
from pipeline.chaos.flow.log_bytes import truth_of
from pipeline.chaos.flow.logs_at_rest import OFFSETS_TOPIC, Logs
from pipeline.chaos.flow.report import Done, Report, lines, recovery_rows, write
from tests.support.kafka_log import NAME, PLACE, PRODUCER, data, marker, read

EXAMPLE = Example("orders", 0, 7, "shop:1", "")


def finding(name: str, severity: Severity = Severity.BROKEN) -> Finding:
    return Finding(name, severity, 1, EXAMPLE)


def test_every_finding_of_the_audit_is_evidence_of_an_anomaly() -> None:
    """A finding that is new gets its place, or this fails."""
    assert set(ANOMALY_OF) == set(GUARANTEES)
    assert set(ANOMALY_OF.values()) <= set(ANOMALIES)


def test_whatever_the_audit_finds_broken_is_an_anomaly() -> None:
    """Named waits included, should one of them be called broken."""
    for name in GUARANTEES:
        anomalies = Anomalies()
        from_audit(AuditReport([finding(name)]), anomalies)
        assert [what for what, found in anomalies.found.items() if found.count] == [
            ANOMALY_OF[name]
        ]


def test_at_rest_nothing_may_be_on_its_way_but_for_a_person() -> None:
    """An outcome that nobody could tell is a wait with a name; what hangs is an anomaly."""
    waits, hangs = Anomalies(), Anomalies()
    from_audit(
        AuditReport(
            [
                finding("waits_for_a_person", Severity.PENDING),
                finding("dead_letter_repeated", Severity.NOTE),
            ]
        ),
        waits,
    )
    from_audit(AuditReport([finding("open_transaction", Severity.PENDING)]), hangs)
    assert waits.whole
    assert hangs.found["LSO stuck"].count == 1


@pytest.mark.parametrize("place", [PLACE, (OFFSETS_TOPIC, 3)], ids=["a topic", "the offsets"])
@pytest.mark.parametrize(
    ("decided", "parts", "where"),
    [
        (1, [data(0), marker(1, commits=True)], None),
        # Nobody decided it: offsets that came after their transaction had ended.
        (1, [data(0), marker(1, commits=True), data(2)], 2),
        # Decided; a marker that came twice stands where its own would.
        (2, [data(0), marker(1, commits=True), marker(2, commits=True), data(3)], 3),
    ],
    ids=["ended", "nobody's", "decided"],
)
def test_a_record_whose_transaction_has_no_end_is_found(
    tmp_path: Path, place: tuple[str, int], decided: int, parts: list[bytes], where: int | None
) -> None:
    """In the groups' own topic as well, which no reader of records sees."""
    truths = {place: truth_of(read(tmp_path, *parts))}
    offsets = truths if place[0] == OFFSETS_TOPIC else {}
    one = Decision(NAME, PRODUCER, True, frozenset({place}))
    anomalies = Anomalies()
    from_logs(Logs([one] * decided, {} if offsets else truths, offsets, []), anomalies)
    found = {name: found.examples for name, found in anomalies.found.items() if found.count}
    end = f"{place[0]}[{place[1]}]@{where} belongs to a transaction that has no end"
    assert found == ({} if where is None else {"LSO stuck": [end]})


@pytest.mark.parametrize(
    ("offset", "waits", "found"),
    [
        (2, False, 0), (2, True, 0),
        (0, False, 1), (0, True, 0),
        (-1001, False, 1), (-1001, True, 0),
        (3, False, 1), (3, True, 1),
    ],
)  # fmt: skip
def test_a_group_is_nowhere_beyond_the_end(
    tmp_path: Path, offset: int, *, waits: bool, found: int
) -> None:
    """Nor before the last record, but in a topic of timers, whose records wait for their time."""
    truths = {PLACE: truth_of(read(tmp_path, data(0), marker(1, commits=True)))}
    anomalies = Anomalies()
    from_offsets("payments", {PLACE: offset}, {PLACE: waits}, truths, anomalies)
    assert anomalies.found["inconsistent offsets"].count == found


@pytest.mark.parametrize(
    ("sums", "anomaly"),
    [
        ({"charge": 100}, None),
        ({"charge": 200}, "charged more than once"),
        ({"charge": 200, "refund": 100}, None),
        ({"charge": 100, "refund": 130, "refund_failed": 30}, None),
        ({"charge": 100, "refund": 130}, "money created or destroyed"),
        ({"authorization": 100, "capture": 100, "void": 100}, None),
        ({"charge": 100, "charge_failed": 100}, None),
    ],
)
def test_what_stays_at_the_gateways_is_the_orders_amount_at_most(
    sums: dict[str, int], anomaly: str | None
) -> None:
    """A second charge that was given back is none; one that stands is one too many."""
    anomalies = Anomalies()
    amount_of: Callable[[str], int] = {"shop:1": 100}.__getitem__
    from_balances({"shop:1": sums}, amount_of, anomalies)
    found = [name for name, found in anomalies.found.items() if found.count]
    assert found == ([] if anomaly is None else [anomaly])


def test_a_worker_that_no_fault_ended_is_an_anomaly() -> None:
    """Killed, fenced, drained and told of a server that is away are ends that faults explain."""
    expected, wrong = Anomalies(), Anomalies()
    exits = {"n1 payments-0: -9": 2, "n1 ledger-0: 2": 1, "n2 gateway-0: 3": 4, "n1 a-0: 0": 1}
    from_exits(exits, [], expected)
    from_exits({"n1 payments-0: 70": 1, "n1 payments-0: 1": 2}, ["n1: no broker"], wrong)
    assert expected.whole
    assert wrong.found["crashed"].count == 4


def report_of(**given: object) -> Report:
    report = Report("paystream chaos run --seed 3", "today", 3, 3, 6, 60, 60, "4.3.1", "2.16.0")
    report.at_rest = True
    for name, value in given.items():
        setattr(report, name, value)
    return report


def test_the_exit_code_is_the_verdict() -> None:
    """0 whole, 1 broken, 2 never at rest: also when what was seen before rest looks broken."""
    broken = Anomalies()
    broken.add("lost", "orders[0]@7")
    assert report_of(anomalies=Anomalies().found).exit_code == 0
    assert report_of(anomalies=broken.found).exit_code == 1
    assert report_of(at_rest=False).exit_code == 2
    assert report_of(at_rest=False, anomalies=broken.found).exit_code == 2


def test_a_report_says_what_made_it_and_how_each_fault_was_felt(tmp_path: Path) -> None:
    """In the terminal and in both files; what did not happen is in the list and not in the sums."""
    broken = Anomalies()
    broken.add("torn transaction", "settlements[0]@7: committed against its word")
    report = report_of(
        anomalies=broken.found,
        faults=[
            Done(1, "kill-ledger", "n1 ledger", 10, 10, 2.5, 3.5),
            Done(2, "kill-ledger", "n2 ledger", 30, 30, 1.5, 2.0),
            Done(3, "kill-broker", "broker 1", 40, 50, None, 9.0),
            Done(4, "kill-broker", "", 60, 60, skipped="its moment did not come"),
        ],
    )
    rows = {row[0]: row[1:] for row in recovery_rows(report.happened)}
    assert rows["kill-ledger"] == ("2", "1.5", "2.5", "2.5", "2.0", "3.5", "3.5", "0")
    assert rows["kill-broker"][0] == rows["kill-broker"][-1] == "1"
    assert rows["all"][0] == "3"
    told = "\n".join(lines(report))
    document, data = write(report, tmp_path)
    for text in (told, document.read_text()):
        assert "paystream chaos run --seed 3" in text
        assert "settlements[0]@7: committed against its word" in text
    assert "its moment did not come" in document.read_text()
    said = json.loads(data.read_text())
    assert said["verdict"] == "broken"
    assert said["anomalies"]["torn transaction"]["count"] == 1


def test_a_report_says_one_of_something_in_the_singular() -> None:
    """One fault, one decision taken back: whoever reads it need not stumble."""
    report = report_of(
        anomalies=Anomalies().found,
        faults=[Done(1, "kill-ledger", "n1 ledger", 10, 10, 2.5, 3.5)],
        looked_at={"decisions taken back": 1, "records committed": 2_000},
        ends_injured=1,
    )
    told = "\n".join(lines(report))
    assert "1 fault of 1 kind, 1 request injured" in told
    assert "1 decision taken back, 2,000 records committed" in told


def test_ids_are_placed_as_java_does() -> None:
    """Kafka finds a coordinator's partition by the amount of ``String.hashCode``; the least one,
    which has none, counts as 0."""
    assert java_hash("") == 0
    assert java_hash("paystream//n1/payments/0") == 233942830
    assert java_hash("hello") == 99162322
    assert java_hash("polygenelubricants") == 0
