"""Batches that no worker has the memory for: one letter each, and every order around them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.verify import Sources, verify
from pipeline.batches.record_batch import CODECS
from pipeline.batches.unfolded import HEAVY_BYTES_MIN
from pipeline.config import load_settings
from pipeline.runtime import heavy_batches
from pipeline.runtime.heavy_batches import HeavyBatches
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import WorkerSpec
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of, headers_of
from tests.support.foreign_transaction import open_transaction_with
from tests.support.limited_worker import MEMORY_MIB
from tests.support.raw_record import GZIP, ZSTD, gzip_zeros, produce_raw, zeros, zeros_in_frames

pytestmark = [pytest.mark.integration, pytest.mark.long]

# More than these workers are given; no client is troubled by it.
HEAVY = gzip_zeros(20)


@pytest.fixture
def flow(kafka: str, topic_prefix: str, tmp_path: Path) -> EngineFlow:
    return EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy_batches, "bytes_max", lambda _deaths: HEAVY_BYTES_MIN)
    # So that what lies before one comes in several answers, and the client would be quicker.
    monkeypatch.setattr(heavy_batches, "RUN_BYTES", 2 * 1024)


@pytest.fixture
def no_time(little_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has died once, and whose look is through only between its turns."""
    opened = HeavyBatches.open
    monkeypatch.setattr(
        HeavyBatches, "open", lambda heavy, servers, _deaths: opened(heavy, servers, 1)
    )
    monkeypatch.setattr(heavy_batches, "LOOK_TIMEOUT_S", 0.0)
    monkeypatch.setattr(heavy_batches, "FETCH_BYTES", 16 * 1024)


def put(flow: EngineFlow, role: str, records: bytes) -> None:
    produce_raw(flow.bootstrap, flow.topic(role), records, GZIP)


def orders(flow: EngineFlow, first: int, count: int, **more: Any) -> tuple[int, int]:
    """So many of them in batches of the client's own, and where the last is."""
    for number in range(first, first + count - 1):
        order = flow.order(f"o{number}", **more)
        flow._producer.produce(
            flow.topic("orders"),
            flow.encode("order", order),
            b"shop:%b" % order.order_id.encode(),
            0,
        )
        if number % 100 == 0:
            flow._producer.flush(30)
    return flow.send_order(flow.order(f"o{first + count - 1}", **more))


def requested(flow: EngineFlow) -> list[str]:
    return [r.order_id for r in flow.nouns("payment-requests")]


def letters(flow: EngineFlow) -> list[dict[str, str]]:
    return [headers_of(letter) for letter in flow.messages("dead-letters")]


def limited(flow: EngineFlow, topic_prefix: str, *, memory_mib: int) -> Supervisor:
    """A payments worker in a process with so much memory, started again when it dies."""
    state_dir = flow.state_dir
    options = load_settings(
        bootstrap_servers=flow.bootstrap,
        state_dir=state_dir,
        partitions=1,
        topic_prefix=topic_prefix,
    ).worker_options() | {"log_file": str(state_dir / "worker.log")}
    return Supervisor(
        [WorkerSpec("payments", "n1", 0, flow.bootstrap, flow.settings, state_dir, options)],
        metrics_dir=state_dir,
        restart_pause_s_max=0.2,
        environment={MEMORY_MIB: str(memory_mib)},
        module="tests.support.limited_worker",
    )


def consumed(
    flow: EngineFlow, running: Supervisor, end: tuple[int, int], within_s: float = 90
) -> None:
    deadline = time.monotonic() + within_s
    while flow.committed("payments", "orders")[0] <= end[1]:
        running.tick()
        assert time.monotonic() < deadline, (running.exits, letters(flow))
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "codec"),
    [(gzip_zeros(300), GZIP), (zeros_in_frames(200, told=True), ZSTD)],
    ids=["gzip", "zstd in frames"],
)
def test_a_worker_dies_of_one_once_and_its_successor_passes_it(
    flow: EngineFlow, topic_prefix: str, batch: bytes, codec: int
) -> None:
    """A quarter of a megabyte at most that is 300 or 200 MiB to the client, for a worker that has
    450 in all. It died at each start before, and the stage stood."""
    first = flow.send_order(flow.order("first"))
    with limited(flow, topic_prefix, memory_mib=450) as running:
        consumed(flow, running, first)
        orders(flow, 0, 1_000)
        produce_raw(flow.bootstrap, flow.topic("orders"), batch, codec)
        consumed(flow, running, orders(flow, 1_000, 1_000))
        exits = running.exits["payments-0"]
    assert len(exits) == 1, exits
    assert exits[0] < 0, "as by the kernel's own hand"
    (letter,) = letters(flow)
    assert (letter["dlq.cause"], letter["dlq.offset"]) == ("unreadable_batch", "1001")
    assert letter["dlq.detail"] == (
        f"1 records at offsets 1001 to 1001 are more than 128 MiB decompressed ({CODECS[codec]})"
    )
    assert requested(flow) == ["first", *(f"o{n}" for n in range(2_000))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_gets_beyond_many_that_are_too_much_in_one_answer(
    flow: EngineFlow, topic_prefix: str
) -> None:
    """Each is 15 MiB, which every worker has the memory for. It died at each start before."""
    for _ in range(64):
        produce_raw(flow.bootstrap, flow.topic("orders"), zeros(15), ZSTD)
    last = flow.send_order(flow.order("after"))
    # A GiB, and the stacks of some forty threads: they count here, though nothing touches them.
    with limited(flow, topic_prefix, memory_mib=1_024 + 320) as running:
        # One or two letters a second, on a machine that does nothing else.
        consumed(flow, running, last, within_s=450)
        exits = running.exits.get("payments-0", [])
    assert len(exits) <= 5, exits
    assert {each["dlq.cause"] for each in letters(flow)} == {"unknown_schema_id"}
    assert requested(flow) == ["after"]


def test_what_lies_between_them_is_handled_in_its_order(
    flow: EngineFlow, little_memory: None
) -> None:
    """At the committed position, two in a row, and at the end of several answers' worth of
    orders."""
    put(flow, "orders", HEAVY)
    orders(flow, 0, 1_000)
    put(flow, "orders", HEAVY)
    put(flow, "orders", HEAVY)
    flow.send_order(flow.order("o1000"))
    put(flow, "orders", HEAVY)
    last = orders(flow, 1_001, 1_000)
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    assert requested(flow) == [f"o{n}" for n in range(2_001)]
    assert [int(each["dlq.offset"]) for each in letters(flow)] == [0, 1001, 1002, 1004]
    assert {each["dlq.cause"] for each in letters(flow)} == {"unreadable_batch"}
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    assert judged.broken == []


@pytest.mark.parametrize("heavy_ones", [0, 2])
def test_a_worker_goes_on_where_the_look_is_through_later(
    flow: EngineFlow, no_time: None, heavy_ones: int
) -> None:
    orders(flow, 0, 300)
    for _ in range(heavy_ones):
        put(flow, "orders", HEAVY)
    last = orders(flow, 300, 300)
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
        flow.wait_consumed(ends_of(flow.send_order(flow.order("o600"))), running=running)
    assert requested(flow) == [f"o{n}" for n in range(601)]
    assert {each["dlq.cause"] for each in letters(flow)} == (
        {"unreadable_batch"} if heavy_ones else set()
    )


def test_after_an_aborted_transaction_it_is_not_given_to_the_client_either(
    flow: EngineFlow, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is read again from the committed position, what lies before it as well."""
    orders(flow, 0, 1_000)
    put(flow, "orders", HEAVY)
    last = orders(flow, 1_000, 1_000)
    given: list[int] = []
    worker, stop = flow.payments_worker()
    rewind, consume, prepare = worker._rewind, worker._consume, worker._prepare

    def turned() -> bool:
        moved = consume()
        # Twice, once all is in hand, what the client brings as well.
        held = worker._admission.buffered(flow.topic("orders"))
        if len(given) < 2 and held > 1_500:
            given.append(worker._positions[flow.topic("orders"), 0])
            rewind()
        return moved

    monkeypatch.setattr(worker, "_consume", turned)
    monkeypatch.setattr(worker, "_prepare", lambda: prepare() if len(given) == 2 else None)
    running = RunningWorker(worker, stop)
    try:
        flow.wait_consumed(ends_of(last), running=running)
    finally:
        running.end()
    assert running.error is None
    assert given == [0, 0]
    assert requested(flow) == [f"o{n}" for n in range(2_000)]
    (letter,) = letters(flow)
    assert (letter["dlq.cause"], letter["dlq.offset"]) == ("unreadable_batch", "1000")


def test_one_of_a_transaction_that_was_aborted_is_passed_without_a_letter(
    flow: EngineFlow, little_memory: None
) -> None:
    """Nobody is handed it; one whose transaction is open holds nothing up before it."""
    producer = open_transaction_with(
        flow.bootstrap, flow.topic("orders"), f"{flow.prefix}foreign", HEAVY, GZIP
    )
    producer.abort_transaction(30)
    last = flow.send_order(flow.order("after"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    assert letters(flow) == []
    assert requested(flow) == ["after"]


def test_requests_around_one_are_called(flow: EngineFlow, little_memory: None) -> None:
    """In their order, as those of a partition are taken."""
    before = [flow.send_request(flow.order(f"o{n}")) for n in range(300)]
    put(flow, "payment-requests", HEAVY)
    last = [flow.send_request(flow.order(f"o{n}")) for n in range(300, 320)][-1]
    assert before[-1] == (0, 299)
    running = RunningWorker(*flow.gateway_worker())
    try:
        flow.wait_consumed(ends_of(last), running=running, stage="gateway", role="payment-requests")
    finally:
        running.end()
    assert running.error is None
    (letter,) = letters(flow)
    assert (letter["dlq.cause"], letter["dlq.stage"]) == ("unreadable_batch", "gateway")
    assert [r.order_id for r in flow.nouns("gateway-results")] == [f"o{n}" for n in range(320)]


def test_requests_are_called_where_the_look_is_through_later(
    flow: EngineFlow, no_time: None
) -> None:
    for number in range(40):
        flow.send_request(flow.order(f"o{number}"))
    put(flow, "payment-requests", HEAVY)
    last = [flow.send_request(flow.order(f"o{n}")) for n in range(40, 60)][-1]
    running = RunningWorker(*flow.gateway_worker())
    try:
        flow.wait_consumed(ends_of(last), running=running, stage="gateway", role="payment-requests")
    finally:
        running.end()
    assert running.error is None
    assert [r.order_id for r in flow.nouns("gateway-results")] == [f"o{n}" for n in range(60)]
