"""A record that no topic takes: its input is dead-lettered by name, and everything else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.lane import REPORTED_BYTES, Lane
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
    """Takes records up to ``client_max`` bytes; its broker takes those up to ``broker_max``."""

    def __init__(self, logger: Any, client_max: int, broker_max: int, *, at_once: bool) -> None:
        self._logger, self._client_max, self._broker_max = logger, client_max, broker_max
        # The broker's answer is there before the next record is produced.
        self._at_once = at_once
        self._refused: list[Any] = []

    def init_transactions(self, _timeout_s: float) -> None: ...

    def begin_transaction(self) -> None: ...

    def produce(
        self, _topic: str, value: bytes, *_: Any, on_delivery: Any = None, **__: Any
    ) -> None:
        if self._at_once and self._refused:
            raise KafkaException(KafkaError(KafkaError._STATE))
        if len(value) > self._client_max:
            raise KafkaException(KafkaError(TOO_LARGE))
        if len(value) > self._broker_max:
            self._refused.append(on_delivery)

    def send_offsets_to_transaction(self, *_: Any) -> None: ...

    def poll(self, _timeout_s: float) -> None: ...

    def commit_transaction(self, _timeout_s: float) -> None:
        if self._refused:
            raise KafkaException(KafkaError(TOO_LARGE, txn_requires_abort=True))
        self._logger.log(7, "%s %s %s", "ENDTXN", "client", "EndTxn returned NO_ERROR in")

    def abort_transaction(self, _timeout_s: float) -> None:
        for on_delivery in self._refused:
            on_delivery(KafkaError(TOO_LARGE), None)
        self._logger.log(7, "%s %s %s", "ENDTXN", "client", "EndTxn returned NO_ERROR in")


@pytest.mark.parametrize(
    ("client_max", "broker_max", "at_once"),
    [
        (REPORTED_BYTES, 10**9, False),
        (10**9, REPORTED_BYTES, False),
        (10**9, REPORTED_BYTES, True),
    ],
    ids=["by the client", "by the broker at the end", "by the broker before the next record"],
)
def test_a_lane_aborts_what_holds_a_record_too_large_and_names_it(
    client_max: int, broker_max: int, at_once: bool
) -> None:
    """It is not the producer's end, and what comes next is committed."""

    def make(_config: object, *, logger: Any) -> RefusingProducer:
        return RefusingProducer(logger, client_max, broker_max, at_once=at_once)

    lane = Lane({}, stage="payments", committed_offsets=lambda _: {}, make_producer=make)
    lane.open()
    values = [b"v", b"v" * (REPORTED_BYTES + 1), b"v"]
    outputs: list[Any] = [("out", 0, b"k", value, None) for value in values]
    assert lane.run(Work(outputs, {("orders", 0): 5}, "metadata")) is Outcome.ABORTED
    assert lane.too_large == 1
    assert lane.run(Work(outputs[:1], {("orders", 0): 5}, "metadata")) is Outcome.COMMITTED
    assert lane.too_large is None


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
