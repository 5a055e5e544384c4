"""Every fault meets every operation at every gateway, and each comes to the one right end.

A row is a payment of its own: one fault, one operation that meets it, one gateway. All rows run
side by side in one flow over real servers; then each is looked at by itself, in the table of
payments, in the settlements and in the gateways' own books.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from pipeline.audit.report import Report
from pipeline.audit.verify import worth_waiting
from pipeline.domain.model import GatewayNotification, Order, Payment, PaymentCommand
from pipeline.domain.shown import shown_statuses
from pipeline.embedded.ports import free_ports
from pipeline.gateways.simulator import (
    FaultPlan,
    SimulatorHandle,
    start_simulator,
    stop_simulator,
)
from pipeline.local import simulated
from tests.support.engine_flow import EngineFlow
from tests.support.whole_flow import WholeFlow, orders

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

AMOUNT = 1_000
# Of a capture and of a refund: parts, so that an operation that is done twice would find room.
PART = 300
SETTLE_S = 120.0
# Of a breaker that sees no trouble in what these tests do on purpose.
UNTOUCHED = {"calls_min": 1_000, "hanging_min": 1_000, "unreached_min": 1_000}

# The table ----------------------------------------------------------------------------------------

OPERATIONS: Final = ("charge", "authorize", "capture", "void", "refund")
WITH_KEYS: Final = ("simulator", "northbank", "pacific")
# Served by the gateway without keys first, then by one with them.
MOVING: Final = "legacy-then-simulator"

DONE, NOT_DONE, TAKEN_BACK = "done", "not done", "taken back"


class Ends(NamedTuple):
    """What a fault comes to: at gateways with keys, and at the one without (None: no such row)."""

    with_keys: str
    without: str | None


# By the test token that forces it. Where there are keys, what may have been lost is sent again
# under its key. Where there are none it is not: it is asked about, and what proves not to have been
# done is given up, or charged elsewhere.
FAULTS: Final[Mapping[str, Ends]] = {
    "reset_before": Ends(DONE, NOT_DONE),
    "reset_after": Ends(DONE, DONE),
    "hang_before": Ends(DONE, NOT_DONE),
    "hang_after": Ends(DONE, DONE),
    "rate_limited_once": Ends(DONE, DONE),
    "500_before": Ends(DONE, NOT_DONE),
    "500_after": Ends(DONE, DONE),
    "in_progress_once": Ends(DONE, NOT_DONE),
    "malformed": Ends(DONE, DONE),
    # The answer is lost, and for a while "not found" is not the truth.
    "not_found_grace": Ends(DONE, DONE),
    "decline_do_not_honor": Ends(NOT_DONE, NOT_DONE),
    "pending_success": Ends(DONE, DONE),
    "pending_failure": Ends(NOT_DONE, NOT_DONE),
    # Every answer is lost and every inquiry fails: only the webhook can tell.
    "always_unknown": Ends(DONE, None),
    "notice_bad_signature": Ends(DONE, None),
    "notice_duplicate": Ends(DONE, None),
    "notice_before_answer": Ends(DONE, None),
}
# Its notices carry its own ids only; what was never answered has none that we know.
NO_ROW: Final = frozenset({("always_unknown", "pacific")})
# A refund that had succeeded fails. The one without notices never tells, and pacific may tell of
# the failure before it has told of the success.
COMES_BACK: Final = "fails_later"
# A gateway worker that was not run for seconds, on a busy machine, leaves and is started again, or
# loses its partitions: what lies in them then, or is read again, is not sent to the gateway without
# keys, since it may have been. It is asked about, and if it was not done its operation has failed.
# So it is where a call met a fault that refuses it and the refusal came too late.
READ_AGAIN: Final = "possibly_sent"
TIMED_OUT: Final = "timeout"
GIVEN_UP: Final = "gateway_not_idempotent"
# Of a gateway that nobody can connect to for a while.
REFUSED: Final = "connection_refused"
AWAY: Final = "away"

Money = tuple[tuple[str, int], ...]


class Expected(NamedTuple):
    """``books`` are the gateways' entries of the payment, ``settlements`` ours; kinds and sums."""

    status: str
    shown: tuple[str, ...]
    books: Money
    settlements: Money


EXPECTED: Final[Mapping[tuple[str, str], Expected]] = {
    ("charge", DONE): Expected(
        "captured", ("captured",), (("charge", AMOUNT),), (("capture", AMOUNT),)
    ),
    ("authorize", DONE): Expected("authorized", ("authorized",), (("authorization", AMOUNT),), ()),
    ("capture", DONE): Expected(
        "captured",
        ("partially_captured",),
        (("authorization", AMOUNT), ("capture", PART)),
        (("capture", PART),),
    ),
    ("void", DONE): Expected(
        "cancelled", ("cancelled",), (("authorization", AMOUNT), ("void", AMOUNT)), ()
    ),
    ("refund", DONE): Expected(
        "captured",
        ("captured", "partially_refunded"),
        (("charge", AMOUNT), ("refund", PART)),
        (("capture", AMOUNT), ("refund", -PART)),
    ),
    ("charge", NOT_DONE): Expected("failed", ("failed",), (), ()),
    ("authorize", NOT_DONE): Expected("failed", ("failed",), (), ()),
    ("capture", NOT_DONE): Expected(
        "authorized", ("authorized",), (("authorization", AMOUNT),), ()
    ),
    ("void", NOT_DONE): Expected("authorized", ("authorized",), (("authorization", AMOUNT),), ()),
    ("refund", NOT_DONE): Expected(
        "captured", ("captured",), (("charge", AMOUNT),), (("capture", AMOUNT),)
    ),
    ("refund", TAKEN_BACK): Expected(
        "captured",
        ("captured",),
        (("charge", AMOUNT), ("refund", PART), ("refund_failed", PART)),
        (("capture", AMOUNT), ("refund", -PART), ("refund_failed", PART)),
    ),
}


@dataclass(frozen=True)
class Row:
    """One payment. ``attempts``: how many the main operation took, each with a key of its own."""

    fault: str
    operation: str
    gateway: str
    end: str
    attempts: int = 1

    def __str__(self) -> str:
        return f"{self.fault}-{self.operation}-{self.gateway}"

    @property
    def later(self) -> bool:
        """Whether the fault meets what is asked for once the main operation is done."""
        return self.operation not in ("charge", "authorize")

    @property
    def merchant_id(self) -> str:
        return f"at-{self.gateway}"

    @property
    def order_id(self) -> str:
        return f"{self.fault}-{self.operation}"

    @property
    def expected(self) -> Expected:
        return EXPECTED[self.operation, self.end]

    @property
    def token(self) -> str:
        if self.fault not in FAULTS and self.fault != COMES_BACK:
            return "tok_ok"
        return f"tok_{self.operation}_{self.fault}" if self.later else f"tok_{self.fault}"

    def order(self) -> Order:
        return Order(
            merchant_id=self.merchant_id,
            order_id=self.order_id,
            amount_minor=AMOUNT,
            currency="GBP",
            instrument_token=self.token,
            capture_method="automatic" if self.operation in ("charge", "refund") else "manual",
            business_date="2026-11-01",
            submitted_at_ms=int(time.time() * 1000),
        )

    def command(self) -> PaymentCommand:
        return PaymentCommand(
            merchant_id=self.merchant_id,
            order_id=self.order_id,
            command_id=f"{self.operation}-1",
            type="cancel" if self.operation == "void" else self.operation,
            submitted_at_ms=int(time.time() * 1000),
            amount_minor=None if self.operation == "void" else PART,
            actor="test",
        )


def _rows() -> Iterator[Row]:
    for fault, ends in FAULTS.items():
        for operation in OPERATIONS:
            for gateway in WITH_KEYS:
                if (fault, gateway) in NO_ROW:
                    continue
                yield Row(fault, operation, gateway, ends.with_keys)
            if ends.without is not None:
                yield Row(fault, operation, "legacy", ends.without)
        if ends == Ends(DONE, NOT_DONE):
            # Proven not to have happened at the first gateway: charged once, at the second.
            for operation in ("charge", "authorize"):
                yield Row(fault, operation, MOVING, DONE, attempts=2)
    for operation in OPERATIONS:
        yield Row(REFUSED, operation, AWAY, DONE)
    for gateway in ("simulator", "northbank"):
        yield Row(COMES_BACK, "refund", gateway, TAKEN_BACK)


ROWS: Final = tuple(_rows())

# The flow -----------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What there is when nothing moves any more, by merchant and order."""

    report: Report
    payments: dict[tuple[str, str], Payment] = field(default_factory=dict)
    settlements: dict[tuple[str, str], list[tuple[str, int]]] = field(default_factory=dict)
    notices: dict[tuple[str, str], list[GatewayNotification]] = field(default_factory=dict)
    books: dict[tuple[str, str], list[tuple[str, int]]] = field(default_factory=dict)
    # The operations that were not sent, by kind, for having been read before, maybe.
    read_again: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    # Those that were not answered in time: for their fault, or by a machine that did other things.
    timed_out: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    # What each gateway has injected, by its name.
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    workers_log: str = ""


@pytest.fixture(scope="module")
def seen(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """All rows, run side by side to their ends."""
    folder: Path = tmp_path_factory.mktemp("fault-table")
    prefix = f"t{uuid4().hex[:8]}."
    port = free_ports(1)[0]
    secret = f"whsec_{base64.b64encode(uuid4().bytes + uuid4().bytes).decode()}"
    plan = FaultPlan(pending_ms=800, token_grace_ms=1_200, notice_retry_ms=200)
    with ExitStack() as stack:
        handles: dict[str, SimulatorHandle] = {}
        for name in ("legacy", *WITH_KEYS, AWAY):
            handles[name] = start_simulator(
                folder / f"{name}.sqlite",
                faults=plan,
                gateway="simulator" if name == AWAY else name,
                notice_url=f"http://127.0.0.1:{port}/webhooks/{name}",
                notice_secrets=[secret],
            )
            stack.callback(stop_simulator, handles[name])
        # A gateway that troubles nearly every call is left alone by its breaker, which has tests of
        # its own; here each call is to meet its own fault.
        routes = folder / "routes.json"
        rules = {name: {"breaker": UNTOUCHED} for name in handles}
        routes.write_text(json.dumps({"gateways": rules}))
        flow = WholeFlow(
            kafka,
            prefix,
            folder,
            workers={"payments": 1, "gateway": 1, "ledger": 1, "webhooks": 1},
            settings_given={
                "gateways": _entries(handles, secret),
                "webhook_port": port,
                "routes_file": str(routes),
                "send_within_ms": 2_000,
            },
        )
        stack.enter_context(flow)
        reader = EngineFlow(kafka, prefix, folder, partitions=flow.partitions)
        return _run(flow, reader, handles)


def _entries(handles: Mapping[str, SimulatorHandle], secret: str) -> dict[str, Any]:
    named = {name: each for name, each in handles.items() if name != AWAY}
    entries = simulated(named, secret)
    entries[AWAY] = {**entries["simulator"], "url": handles[AWAY].url}
    # As long as each says not found of what it has done, and a little longer.
    graces = {"simulator": 100, AWAY: 100, "northbank": 700, "pacific": 1_200, "legacy": 2_200}
    for name, entry in entries.items():
        entry["grace_ms"] = graces[name]
        entry["merchants"] = [f"at-{name}"]
    for name in ("legacy", "simulator"):
        entries[name]["merchants"].append(f"at-{MOVING}")
    return entries


def _run(flow: WholeFlow, reader: EngineFlow, handles: Mapping[str, SimulatorHandle]) -> Seen:
    away = handles[AWAY].admin_url
    refused = [row for row in ROWS if row.fault == REFUSED]

    def captured() -> bool:
        return any(p.status == "captured" for p in reader.nouns("payments"))

    # A worker that takes a partition does not send what already waits there for the gateway without
    # keys, since another one may have: so it has to have taken them all before the first row comes.
    flow.publish([Row("nothing", "charge", "simulator", DONE).order()])
    flow.keep_until(captured, SETTLE_S, "the first payment is captured")
    flow.publish([row.order() for row in ROWS if row.later or row not in refused])
    later = [row for row in ROWS if row.later]

    wanted = {(row.merchant_id, row.order_id) for row in later}

    def parents_done() -> bool:
        return wanted <= {
            (p.merchant_id, p.order_id)
            for p in reader.nouns("payments")
            if p.status in ("authorized", "captured") or p.reason == GIVEN_UP
        }

    flow.keep_until(parents_done, SETTLE_S, "what is captured, voided or refunded is there")

    _send("POST", f"{away}/v1/admin/outage", {"mode": "refuse"})
    flow.ask(*(row.command() for row in later))
    flow.publish([row.order() for row in refused if not row.later])

    def all_refused() -> bool:
        met = {r.order_id for r in reader.nouns("gateway-results") if r.code == REFUSED}
        return met == {row.order_id for row in refused}

    flow.keep_until(all_refused, SETTLE_S, "each operation was refused a connection")
    _send("POST", f"{away}/v1/admin/outage", {"mode": "none"})

    # A row that does not come to its end is named by its own test, and holds up no other.
    until_s = time.monotonic() + SETTLE_S
    while worth_waiting(report := flow.verify()) and time.monotonic() < until_s:
        for _ in range(5):
            flow.supervisor.tick()
            time.sleep(0.1)
    seen = Seen(report)
    seen.payments = {(p.merchant_id, p.order_id): p for p in reader.nouns("payments")}
    settlements, notices, books = defaultdict(list), defaultdict(list), defaultdict(list)
    read_again, timed_out = defaultdict(set), defaultdict(set)
    for each in reader.nouns("gateway-results"):
        if each.code == READ_AGAIN:
            read_again[each.merchant_id, each.order_id].add(each.kind)
        elif each.code == TIMED_OUT:
            timed_out[each.merchant_id, each.order_id].add(each.kind)
    for each in reader.nouns("settlements"):
        settlements[each.merchant_id, each.order_id].append((each.kind, each.amount_minor))
    for each in reader.nouns("gateway-notifications"):
        notices[each.merchant_id, each.order_id].append(each)
    for name, handle in handles.items():
        for entry in _get(f"{handle.admin_url}/v1/books?limit=5000")["entries"]:
            books[entry["merchant_id"], entry["order_id"]].append(
                (entry["kind"], entry["amount_minor"])
            )
        seen.faults[name] = _get(f"{handle.admin_url}/v1/faults")["faults"]
    seen.settlements, seen.notices, seen.books = settlements, notices, books
    seen.read_again, seen.timed_out = read_again, timed_out
    seen.workers_log = (flow.folder / "workers.log").read_text(errors="replace")
    return seen


# What is looked at --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_comes_to_its_one_end(seen: Seen, row: Row) -> None:
    """The payment's status, what a person is shown, the gateways' books and our settlements."""
    key = (row.merchant_id, row.order_id)
    payment = seen.payments[key]
    found = Expected(
        payment.status,
        shown_statuses(payment),
        tuple(sorted(seen.books.get(key, []))),
        tuple(sorted(seen.settlements.get(key, []))),
    )
    attempts = [a for a in payment.attempts if a.operation_id == row.order_id]
    unsent: set[str] = set()
    if row.gateway == "legacy":
        unsent = seen.read_again.get(key, set()) | seen.timed_out.get(key, set())
    if found != row.expected and unsent:
        given_up = [a for a in payment.attempts if a.state == "failed" and a.kind in unsent]
        assert [a.code for a in given_up] == ["not_found"], "proven, and nothing else is given up"
        first = given_up[0].operation_id == row.order_id
        failed = "charge" if first else row.operation
        assert found == EXPECTED[failed, NOT_DONE], payment
        assert not first or payment.reason == GIVEN_UP
        return
    assert found == row.expected, payment
    assert len(attempts) == row.attempts


def test_every_row_met_its_fault(seen: Seen) -> None:
    """The gateways count what they inject: each row's fault once, nothing else, and each notice
    with a wrong signature was turned away at the door. Only what was not sent to the gateway
    without keys, since it may have been before, need not have met its fault."""
    injected = {
        "rate_limited_once": "rate_limited",
        "in_progress_once": "in_progress",
        "not_found_grace": "reset_after",
    }
    wanted: dict[str, Counter[str]] = defaultdict(Counter)
    unsent: Counter[str] = Counter()
    for row in ROWS:
        if row.fault in FAULTS and not row.fault.startswith(("decline", "pending", "always")):
            for gateway in ("legacy", "simulator") if row.gateway == MOVING else (row.gateway,):
                kind = injected.get(row.fault, row.fault)
                wanted[gateway][kind] += 1
                if gateway == "legacy":
                    unsent[kind] += (row.merchant_id, row.order_id) in seen.read_again
    for gateway in (*WITH_KEYS, "legacy"):
        met = seen.faults[gateway]
        for kind, rows in wanted[gateway].items():
            # Where every answer is lost, and where an operation that is pending first has two
            # notices, it is met more than once.
            often = kind == "reset_after" or kind.startswith("notice")
            least = rows - unsent[kind] if gateway == "legacy" else rows
            most = float("inf") if often else rows
            assert least <= met.get(kind, 0) <= most, (gateway, kind, met, unsent)
        refusals = seen.workers_log.count(f"webhook of {gateway} not taken: signature_wrong")
        assert refusals >= wanted[gateway]["notice_bad_signature"]


def test_the_audit_finds_nothing(seen: Seen) -> None:
    """Over the whole log, the ledger and the books of all gateways."""
    assert seen.report.exit_code == 0, seen.report.findings
    assert seen.report.summary["not_judged"] == []


@pytest.mark.long
def test_a_frozen_worker_that_wakes_after_failover_charges_nobody_twice(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """One of two gateway workers is stopped in a crowd before a gateway in trouble, past the time
    until which anything may be sent. The other takes over, and all are charged at the second
    gateway. Then the first is well again and the worker wakes: it charges none of them there.

    More comes than the first gateway may be asked, so a call waits for its turn in the worker when
    it is stopped. Both the bound of that wait and the time until which it may be sent keep it from
    being made; the latter alone is held by ``test_rule_06_frozen_gateway``."""
    plan = FaultPlan(rates={"500_before": 1.0}, faulted_calls_max=10_000)
    routes = tmp_path / "routes.json"
    routes.write_text(json.dumps({"gateways": {"first": {"burst": 2, "breaker": UNTOUCHED}}}))
    sent = [replace(order, order_id=f"f-{n}") for n, order in enumerate(orders(30))]
    late = [replace(order, order_id=f"late-{n}") for n, order in enumerate(orders(4))]
    frozen: int | None = None
    with ExitStack() as stack:
        first = start_simulator(tmp_path / "first.sqlite", faults=plan)
        stack.callback(stop_simulator, first)
        second = start_simulator(tmp_path / "second.sqlite", faults="none")
        stack.callback(stop_simulator, second)
        flow = WholeFlow(
            kafka,
            topic_prefix,
            tmp_path,
            workers={"payments": 1, "gateway": 2, "ledger": 1},
            settings_given={
                "gateways": {
                    "first": {"url": first.url, "priority": 1, "rate_per_s": 8.0},
                    "second": {"url": second.url, "priority": 2},
                },
                "routes_file": str(routes),
                "send_within_ms": 3_000,
            },
        )
        stack.enter_context(flow)
        reader = EngineFlow(kafka, topic_prefix, tmp_path, partitions=flow.partitions)

        def shares() -> list[int]:
            group = flow.settings.catalogue().group("gateway")
            admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
            about = admin.describe_consumer_groups([group], request_timeout=10)[group].result()
            return [len(member.assignment.topic_partitions) for member in about.members]

        def all_captured(wanted: list[Order]) -> bool:
            captured = {p.order_id for p in reader.nouns("payments") if p.status == "captured"}
            return {order.order_id for order in wanted} <= captured

        flow.keep_until(lambda: shares() == [2, 2], SETTLE_S, "each worker has its share")
        flow.publish(sent)
        time.sleep(0.8)  # more has come than the gateway may be asked in that time
        # In the order of the specifications: the payments worker, then these two.
        frozen = flow.supervisor.pids()[1]
        try:
            os.kill(frozen, signal.SIGSTOP)
            flow.keep_until(lambda: all_captured(sent), SETTLE_S, "all is charged elsewhere")
            _send("PUT", f"{first.admin_url}/v1/admin/faults", {})
        finally:
            os.kill(frozen, signal.SIGCONT)
        time.sleep(2)  # what the woken worker may still do has no event to wait for
        flow.publish(late)
        flow.keep_until(lambda: all_captured(late), SETTLE_S, "what came later is charged")
        report = flow.settle(SETTLE_S)
        charged = {
            name: {e["order_id"] for e in _get(f"{url}/v1/books?limit=5000")["entries"]}
            for name, url in (("first", first.admin_url), ("second", second.admin_url))
        }
    assert charged["second"] >= {order.order_id for order in sent}
    assert not charged["first"] & {order.order_id for order in sent}
    assert report.exit_code == 0, report.findings
    assert report.summary["payments"] == {"captured": len(sent) + len(late)}


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def _send(method: str, url: str, body: Mapping[str, Any]) -> None:
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    urllib.request.urlopen(request, timeout=30).close()
