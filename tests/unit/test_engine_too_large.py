"""A record that no topic takes: its input is dead-lettered by name, and everything else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.runtime.fetching import BATCH_BYTES
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.lane import Lane
from pipeline.runtime.work import Outcome, Work
from tests.support.engine_fakes import (
    Commits,
    InstantCalls,
    Member,
    gateway_with,
    key_of,
    order_keys,
    payments_with,
)
from tests.support.engine_flow import EngineFlow

TOO_LARGE = KafkaError.MSG_SIZE_TOO_LARGE


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)


class RefusingProducer:
    """Takes records up to ``client_max`` bytes; its broker takes batches up to ``broker_max``, into
    which the records go in their order, up to ``batch.size``."""

    def __init__(
        self, config: Any, logger: Any, client_max: int, broker_max: int, *, at_once: bool
    ) -> None:
        self._logger, self._client_max, self._broker_max = logger, client_max, broker_max
        self._batch_size = config["batch.size"]
        # The broker's answer is there before the next record is produced.
        self._at_once = at_once
        self._batches: list[list[tuple[int, Any]]] = []

    def init_transactions(self, _timeout_s: float) -> None: ...

    def begin_transaction(self) -> None:
        self._batches = []

    def _refused(self) -> list[Any]:
        return [
            on_delivery
            for batch in self._batches
            if sum(size for size, _ in batch) > self._broker_max
            for _, on_delivery in batch
        ]

    def produce(
        self, _topic: str, value: bytes, *_: Any, on_delivery: Any = None, **__: Any
    ) -> None:
        if self._at_once and self._refused():
            raise KafkaException(KafkaError(KafkaError._STATE))
        if len(value) > self._client_max:
            raise KafkaException(KafkaError(TOO_LARGE))
        last = self._batches[-1] if self._batches else []
        if not last or sum(size for size, _ in last) + len(value) > self._batch_size:
            last = []
            self._batches.append(last)
        last.append((len(value), on_delivery))

    def _say_why(self) -> None:
        if self._refused():
            raise KafkaException(KafkaError(TOO_LARGE, txn_requires_abort=True))

    def send_offsets_to_transaction(self, *_: Any) -> None:
        if self._at_once:
            self._say_why()

    def poll(self, _timeout_s: float) -> None: ...

    def commit_transaction(self, _timeout_s: float) -> None:
        self._say_why()
        self._logger.log(7, "%s %s %s", "ENDTXN", "client", "EndTxn returned NO_ERROR in")

    def abort_transaction(self, _timeout_s: float) -> None:
        for on_delivery in self._refused():
            if on_delivery is not None:
                on_delivery(KafkaError(TOO_LARGE), None)
        self._logger.log(7, "%s %s %s", "ENDTXN", "client", "EndTxn returned NO_ERROR in")


def refusing_lane(client_max: int, broker_max: int, *, at_once: bool) -> Lane:
    def make(config: Any, *, logger: Any) -> RefusingProducer:
        return RefusingProducer(config, logger, client_max, broker_max, at_once=at_once)

    config = {"batch.size": BATCH_BYTES}
    lane = Lane(config, stage="payments", committed_offsets=lambda _: {}, make_producer=make)
    lane.open()
    return lane


def work_of(sizes: list[int], tracked: dict[int, Any] | None = None) -> Work:
    outputs: list[Any] = [("out", 0, b"k", b"v" * size, None) for size in sizes]
    return Work(outputs, {("orders", 0): 5}, "metadata", tracked or {})


@pytest.mark.parametrize(
    ("client_max", "broker_max", "at_once"),
    [
        (BATCH_BYTES, 10**9, False),
        (10**9, BATCH_BYTES, False),
        (10**9, BATCH_BYTES, True),
    ],
    ids=["by the client", "by the broker at the end", "by the broker before the next record"],
)
def test_a_lane_aborts_what_holds_a_record_too_large_and_names_it(
    client_max: int, broker_max: int, at_once: bool
) -> None:
    """It is not the producer's end, and what comes next is committed."""
    lane = refusing_lane(client_max, broker_max, at_once=at_once)
    assert lane.run(work_of([1, BATCH_BYTES + 1, 1])) is Outcome.ABORTED
    assert lane.too_large == 1
    assert lane.run(work_of([1])) is Outcome.COMMITTED
    assert lane.too_large is None


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True], ids=["at the end", "before the next record"])
@pytest.mark.parametrize(
    ("broker_max", "aborts"), [(100_000, 1), (5_000, 2)], ids=["100 kB", "5 kB"]
)
def test_a_lane_writes_in_smaller_batches_where_a_topic_takes_no_large_ones(
    broker_max: int, aborts: int, at_once: bool
) -> None:
    """A limit that was lowered below the lane's own batches: no input is to blame, the last table
    record of a partition least of all, whose end is reported. Smaller batches go through."""
    lane = refusing_lane(10**9, broker_max, at_once=at_once)
    work = work_of([1_000] * 300, {299: lambda _offset: None})
    for _ in range(aborts):
        assert lane.run(work) is Outcome.ABORTED
        assert lane.too_large is None
    assert lane.run(work) is Outcome.COMMITTED
    # Nor does it go back to what was refused.
    assert lane.run(work) is Outcome.COMMITTED


def test_a_record_larger_than_a_lowered_limit_is_named_once_it_is_alone() -> None:
    """In batches of one record each."""
    lane = refusing_lane(10**9, 5_000, at_once=False)
    work = work_of([1_000, 6_000, 1_000])
    assert [lane.run(work) for _ in range(3)] == [Outcome.ABORTED] * 3
    assert lane.too_large == 1


def refuse(worker: Any, commits: Commits, topic: str, key: bytes) -> None:
    """The transaction under way is aborted for the size of this key's record of a topic."""
    outputs = commits.works[-1].outputs
    worker._lane.too_large = next(
        index for index, output in enumerate(outputs) if (output[0], output[2]) == (topic, key)
    )
    commits.end(Outcome.ABORTED)


def causes(work: Work, flow: EngineFlow) -> dict[bytes | None, str]:
    """The causes of the letters in a work, by their keys."""
    return {
        key: dict(headers or [])["dlq.cause"].decode()
        for topic, _, key, _, headers in work.outputs
        if topic == flow.topic("dead-letters")
    }


def test_an_order_whose_row_is_refused_is_a_letter_and_the_others_are_asked_for(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is for this once: the transaction behind it is as ever."""
    member, commits = Member(), Commits()
    for order_id in ("o1", "o2", "o3"):
        raw = flow.encode("order", flow.order(order_id))
        member.append(flow.topic("orders"), key_of(order_id), raw)
    worker = payments_with(flow, member, commits, monkeypatch)
    while not commits.works:
        worker._turn()
    refuse(worker, commits, flow.topic("payments"), key_of("o2"))
    while len(commits.works) < 2:
        worker._turn()
    again = commits.works[-1]
    assert causes(again, flow) == {key_of("o2"): "effect_too_large"}
    requests = flow.topic("payment-requests")
    assert order_keys([again], requests) == [key_of("o1"), key_of("o3")]
    assert again.offsets == {(flow.topic("orders"), 0): 3}
    worker._lane.too_large = None
    commits.end(Outcome.COMMITTED)
    worker._turn()
    assert not worker._too_large


def test_a_payment_too_large_to_say_so_is_left_as_it_is(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the row itself is too large, not even the word of the letter can be written. A letter
    that is refused ends the worker: leaving it out would lose the input."""
    member, commits = Member(), Commits()
    raw = flow.encode("order", flow.order("o1"))
    member.append(flow.topic("orders"), key_of("o1"), raw)
    worker = payments_with(flow, member, commits, monkeypatch)
    while not commits.works:
        worker._turn()
    commits.end(Outcome.COMMITTED)
    worker._turn()
    other = flow.encode("order", flow.order("o1", amount_minor=5))
    member.append(flow.topic("orders"), key_of("o1"), other)
    rows = flow.topic("payments")
    for number, told in ((2, True), (3, True), (4, False)):
        while len(commits.works) < number:
            worker._turn()
        work = commits.works[-1]
        assert (order_keys([work], rows) == [key_of("o1")]) is told
        refuse(worker, commits, rows if told else flow.topic("dead-letters"), key_of("o1"))
    assert causes(commits.works[-1], flow) == {key_of("o1"): "effect_too_large"}
    with pytest.raises(LaneFatal, match=r"dead letter of t.orders\[0\]@1"):
        worker._turn()


def test_a_request_whose_result_is_refused_is_a_letter_and_its_payment_asks(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent, so its outcome is unknown; it is not sent once more."""
    member, commits, calls = Member(), Commits(), InstantCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    for order_id in ("o1", "o2"):
        raw = flow.encode("payment-request", flow.request(flow.order(order_id)))
        member.append(flow.topic("payment-requests"), key_of(order_id), raw)
    while not commits.works:
        worker._turn(fetch=True)
    results = flow.topic("gateway-results")
    refuse(worker, commits, results, key_of("o1"))
    while len(commits.works) < 2:
        worker._turn(fetch=True)
    work = commits.works[-1]
    assert causes(work, flow) == {key_of("o1"): "effect_too_large"}
    decode = flow.codec.decoder("gateway-result")
    found = [decode(value or b"") for topic, _, _, value, _ in work.outputs if topic == results]
    assert [(r["order_id"], r["outcome"], r["code"]) for r in found] == [
        ("o1", "dead_lettered", "effect_too_large"),
        ("o2", "succeeded", None),
    ]
    assert len(calls.keys) == 3
