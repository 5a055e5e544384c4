"""The audit's copies of the ledger and the gateways' books, and what is said when they are away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine, create_engine, text
from typer import Typer

from pipeline.audit import derivation
from pipeline.audit.gateway_copy import GatewayReader
from pipeline.audit.ledger_copy import LedgerReader, PostingSeen, WaitingSeen
from pipeline.audit.report import Example, Findings, Report
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.audit.verify import worth_waiting
from pipeline.commands.audit import trace_command
from pipeline.domain import ids, keys
from pipeline.ledger.tables import metadata
from tests.support.cli_runner import CliRunner


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    """A ledger's tables without its guards, so that a test can break them."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    engine = create_engine(url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in (
            "INSERT INTO accounts VALUES (1, 'gateway:sim'), (2, 'merchant:shop')",
            "INSERT INTO journal_entries VALUES (7, 'settlement:s1', 's1', 'capture', 'shop', 'o1',"
            " 'p1', 'o1', 'sim', 'ch_1', '2027-01-15', 'settlements', 3, 41, 1, 2, 2, 0, '', '')",
            "INSERT INTO postings VALUES (7, 1, 1, 'GBP', 500), (7, 2, 2, 'GBP', -500)",
            "INSERT INTO postings VALUES (9, 1, 1, 'EUR', 3)",
            "INSERT INTO balances VALUES (1, 'GBP', 500, 0), (2, 'GBP', 0, 500)",
            "INSERT INTO consumer_offsets VALUES ('settlements', 3, 'c', 't', 42, 2, 0, '')",
            "INSERT INTO ledger_decisions VALUES (1, 'd1', 'entry', 'anna', '', 1, '{}', 0, 5, ''),"
            " (2, 'd2', 'entry', 'anna', '', 1, '{}', NULL, NULL, ''),"
            " (3, 'd3', 'payout_terms', 'bert', '', 1, '{}', NULL, NULL, '')",
        ):
            connection.execute(text(statement))
    yield url, engine
    engine.dispose()


def test_the_ledger_is_copied_with_orphan_postings_too(ledger: tuple[str, Engine]) -> None:
    """Entries, balances, offsets and what is decided and not booked, as they are; postings of no
    entry do not vanish."""
    reader = LedgerReader(ledger[0])
    try:
        copy = reader.read()
        found = reader.entries_of(["s1", "s2"])
    finally:
        reader.close()
    entry, orphan = copy.entries
    assert (entry.entry_id, entry.settlement_id) == ("settlement:s1", "s1")
    assert (entry.source_topic, entry.source_partition, entry.source_offset) == (
        "settlements",
        3,
        41,
    )
    assert entry.postings == (
        PostingSeen("gateway:sim", "GBP", 500),
        PostingSeen("merchant:shop", "GBP", -500),
    )
    assert orphan.settlement_id == ""
    assert copy.balances == {
        ("gateway:sim", "GBP"): (500, 0),
        ("merchant:shop", "GBP"): (0, 500),
    }
    assert copy.offsets == {("settlements", 3): 42}
    assert copy.waiting == [
        WaitingSeen("d2", 2, "entry", "anna"), WaitingSeen("d3", 3, "payout_terms", "bert"),
    ]  # fmt: skip
    assert [(e["entry_id"], len(e["postings"])) for e in found] == [("settlement:s1", 2)]


def test_no_ledger_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    """A wrong path is said so, and does not leave an empty ledger behind that looks whole."""
    path = tmp_path / "none.sqlite"
    with pytest.raises(AuditUnavailable, match="There is no ledger"):
        LedgerReader(f"sqlite:///{path}")
    assert not path.exists()
    path.write_text("no database at all, but long enough to look like one to the eye" * 20)
    with pytest.raises(AuditUnavailable, match="cannot be read"):
        LedgerReader(f"sqlite:///{path}").read()


class Books(BaseHTTPRequestHandler):
    """GET /v1/books over a list of entries."""

    entries: list[dict[str, Any]]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        after, limit = int(query["after"][0]), 2
        page = [e for e in self.entries if e["seq"] > after]
        body = json.dumps(
            {
                "entries": page[:limit],
                "next_after": page[:limit][-1]["seq"] if page else after,
                "has_more": len(page) > limit,
            }
        ).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def books() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    entries: list[dict[str, Any]] = []
    handler = type("Handler", (Books,), {"entries": entries})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", entries
    server.shutdown()
    thread.join()
    server.server_close()


def _charge(seq: int, order_id: str) -> dict[str, Any]:
    return {
        "seq": seq,
        "kind": "charge",
        "id": f"ch_{seq}",
        "reference": f"r{seq}",
        "amount_minor": 10 * seq,
        "currency": "GBP",
        "merchant_id": "shop",
        "order_id": order_id,
        "created_at_ms": 1,
    }


def test_books_are_paged_and_read_on(books: tuple[str, list[dict[str, Any]]]) -> None:
    """Every page is read; what comes after the log counts as recent until the next look."""
    url, entries = books
    entries += [_charge(n, f"o{n % 2}") for n in range(1, 6)]
    entries.append({**_charge(6, "o1"), "kind": "refund", "charge_id": "ch_1"})
    reader = GatewayReader([url])
    reader.read_before_log()
    entries.append(_charge(7, "o7"))
    reader.read_after_log()
    assert reader.copy.charge_count == 6
    assert reader.copy.charged_minor == {"GBP": 10 * (1 + 2 + 3 + 4 + 5 + 7)}
    assert (reader.copy.refund_count, reader.copy.refunded_minor) == (1, {"GBP": 60})
    assert reader.copy.owed_minor == {"GBP": 10 * (1 + 2 + 3 + 4 + 5 + 7 - 6)}
    assert [(m.kind, m.charge_id) for m in reader.copy.movements["shop:o1"]] == [("refund", "ch_1")]
    assert [c.id for c in reader.copy.charges["shop:o1"]] == ["ch_1", "ch_3", "ch_5"]
    assert [c.recent for c in reader.copy.charges["shop:o7"]] == [True]
    reader.read_before_log()
    assert [c.recent for c in reader.copy.charges["shop:o7"]] == [False]
    assert reader.copy.charge_count == 6


def test_books_that_are_away_are_one_sentence(free_address: str) -> None:
    """A gateway that does not answer is named with what to do."""
    with pytest.raises(AuditUnavailable, match="--no-gateway"):
        GatewayReader([f"http://{free_address}"]).read_before_log()
    with pytest.raises(AuditUnavailable, match="no gateway address"):
        GatewayReader([free_address])


@pytest.fixture
def free_address() -> Iterator[str]:
    """An address that refuses: bound, and not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_an_order_without_its_merchant_is_refused() -> None:
    """`trace 1001` says how an order is named."""
    app = Typer()
    app.command()(trace_command)
    result = CliRunner().invoke(app, ["1001"])
    assert result.exit_code == 2
    assert "shop:1001" in result.stderr


def test_waiting_is_for_what_time_alone_mends() -> None:
    """Something broken stays broken, and a payment that waits for a person waits for long."""
    place = Example("t", 0, 0, "k", "")

    def report(*names: str, broken: bool = False) -> Report:
        findings = Findings()
        for name in names:
            findings.pending(name, place)
        if broken:
            findings.broken("order_lost", place)
        return Report(findings.sorted())

    assert worth_waiting(report("order_without_outcome"))
    assert worth_waiting(report("order_without_outcome", "waits_for_a_person"))
    assert not worth_waiting(report("waits_for_a_person"))
    assert not worth_waiting(report("waits_for_a_person", "waits_for_the_customer"))
    assert not worth_waiting(report("order_without_outcome", broken=True))
    assert not worth_waiting(report())


def test_partitions_and_ids_are_derived_the_same_twice() -> None:
    """The audit's own derivations agree with the flow's, and with the Java client's hashes."""
    # From the Java client's own tests (UtilsTest.testMurmur2).
    for data, expected in ((b"21", -973932308), (b"foobar", -790332482), (b"", 275646681)):
        assert derivation.murmur2(data) == expected & 0xFFFFFFFF
    for n in range(300):
        key = f"shop-{n}:order.{n * n}"
        assert derivation.home_partition(key.encode(), 12) == keys.partition_of(key.encode(), 12)
        payment = derivation.payment_id(key)
        assert payment == ids.payment_id(*key.split(":"))
        assert derivation.event_id(payment, n) == ids.event_id(payment, n)
        assert derivation.settlement_id(payment, "op", "capture") == ids.settlement_id(
            payment, "op", "capture"
        )
        assert derivation.idempotency_key(payment, "op", "g", n) == ids.idempotency_key(
            payment, "op", "g", n
        )


def test_what_decides_about_a_payment_is_read_and_ordered() -> None:
    """An input of the workers that is added to the catalogue cannot go unread by verify, which
    would then take payments for settled that are not, nor unsorted by trace."""
    from pipeline.audit.cut import KEYED_OTHERWISE, judged_roles, layers
    from pipeline.audit.trace import _WITHIN_A_TRANSACTION
    from topics.catalogue import build_catalogue

    catalogue = build_catalogue()
    judged = judged_roles(catalogue)
    for stage in ("payments", "gateway", "ledger"):
        assert {spec.role for spec in catalogue.inputs(stage)} <= judged
    read = [role for layer in layers(catalogue) for role in layer]
    assert len(read) == len(set(read))
    # A marker is keyed by its letter, not by an order.
    keyed_by_order = judged - KEYED_OTHERWISE
    assert {catalogue[role].schema for role in keyed_by_order} == set(_WITHIN_A_TRANSACTION)
