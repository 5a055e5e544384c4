"""Rule 4: an end of a transaction that was not plain costs the producer, never the money.

The lane of these tests reaches its broker through a proxy that loses EndTxn or its answers,
answers in the broker's place and keeps copies of the requests.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition

from pipeline.chaos.faults import Rule, answer, delay, late, lose_answer, lose_request
from pipeline.chaos.wire import (
    INVALID_PRODUCER_EPOCH,
    INVALID_PRODUCER_ID_MAPPING,
    NO_ERROR,
    PRODUCER_FENCED,
    Api,
)
from pipeline.domain.keys import record_key
from pipeline.runtime import lane as lane_module
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.end_txn_watch import EndTxnWatch
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.lane import UNSEEN_ENDS_MAX, Undefended
from pipeline.runtime.redrive.letter_log import LetterLog
from pipeline.runtime.redrive.plan import Limits, Markers, Plan, plan_redrive
from pipeline.runtime.redrive.redriver import REDRIVE_ACTION, Act, Redriver
from pipeline.runtime.work import Outcome
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of, headers_of, until
from tests.support.lane_over_topics import LaneOverTopics
from tests.support.proxied import ProxiedKafka, proxied_kafka
from tests.support.topics import create_topic, log_ends

pytestmark = pytest.mark.integration

SWALLOWED = 8
# Asked of the member that the worker polls, it took 18 s at the least.
RESOLVED_S = 15.0


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    with proxied_kafka(tmp_path_factory.mktemp("proxied")) as started:
        yield started


def test_eight_lost_answers_cost_eight_producers_and_nothing_else(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """Of eight transactions whose EndTxn answers are lost each is there once, whole and in order,
    and each time the producer is built anew."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        before = len(proxied.proxy.injected)
        for number in range(SWALLOWED):
            proxied.proxy.inject(Rule(Api.END_TXN, lose_answer()))
            assert topics.lane.run(topics.work(number)) is Outcome.COMMITTED
            assert topics.lane.rebuilds == number + 1
        assert len(proxied.proxy.injected) - before == SWALLOWED
        assert topics.lane.run(topics.work(SWALLOWED)) is Outcome.COMMITTED
        assert topics.lane.rebuilds == SWALLOWED, "a plain end costs no producer"
        wanted = [b"%d.%d" % (n, part) for n in range(SWALLOWED + 1) for part in range(3)]
        assert topics.values() == wanted
    finally:
        topics.close()


@pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])
def test_a_late_copy_of_an_end_cannot_commit_what_is_to_be_aborted(
    proxied: ProxiedKafka,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    defended: bool,
) -> None:
    """A late EndTxn of a transaction whose end was ambiguous is refused by the broker; without the
    rebuild it commits the next transaction, which was to be aborted (so the attack is real)."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        if not defended:
            monkeypatch.setattr(EndTxnWatch, "ended_plainly", property(lambda _: True))
        before = len(proxied.proxy.injected)
        proxied.proxy.inject(Rule(Api.END_TXN, lose_answer()))
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        copy = proxied.proxy.injected[before]

        producer = topics.lane._producer
        producer.begin_transaction()
        producer.produce(topics.sink, b"to be aborted", b"k", 0)
        producer.flush(10)
        answered = proxied.proxy.send_again(copy)
        if defended:
            assert answered == INVALID_PRODUCER_EPOCH
            producer.abort_transaction(10)
            assert topics.values() == [b"0.0", b"0.1", b"0.2"]
        else:
            assert answered == NO_ERROR
            with pytest.raises(KafkaException):
                producer.abort_transaction(10)
            assert topics.values()[-1] == b"to be aborted", "the attack has lost its point"
    finally:
        topics.close()


def test_a_copy_that_nothing_sent_again_is_not_noticed(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """What is not promised: a network that repeats an EndTxn whose answer came. The client has
    nothing to see, and the broker takes the copy for the end of what is under way by then."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        proxied.proxy.inject(Rule(Api.END_TXN, delay(0.0)))
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        assert topics.lane.ambiguous_ends == 0
        producer = topics.lane._producer
        producer.begin_transaction()
        producer.produce(topics.sink, b"under way", b"k", 0)
        producer.flush(10)
        assert proxied.proxy.send_again(proxied.proxy.injected[-1]) == NO_ERROR
        assert topics.values()[-1] == b"under way"
    finally:
        topics.close()


def test_what_a_late_request_opens_costs_an_idle_lane_and_nothing_else(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """What is not promised either: partitions that are added late, when the transaction has ended,
    are a transaction that nobody has begun. The broker ends it in time, and its producer."""
    topics = LaneOverTopics(
        proxied.direct,
        proxied.proxied,
        topic_prefix,
        overrides={"transaction.timeout.ms": 1_500, "socket.timeout.ms": 1_500},
    )
    try:
        proxied.proxy.inject(Rule(Api.ADD_PARTITIONS_TO_TXN, lose_answer()))
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        copy = proxied.proxy.injected[-1]
        # Refused while the transaction's markers are being written.
        until(lambda: proxied.proxy.send_again(copy) == NO_ERROR, "the copy is taken")
        fenced = (INVALID_PRODUCER_EPOCH, PRODUCER_FENCED)
        until(lambda: proxied.proxy.send_again(copy) in fenced, "the broker ends it")
        with pytest.raises(LaneFatal, match="_FENCED"):
            topics.lane.run(topics.work(1))
        topics.open_lane()
        assert topics.committed() == 1
        assert topics.lane.run(topics.work(1)) is Outcome.COMMITTED
        assert topics.values() == [b"%d.%d" % (n, part) for n in range(2) for part in range(3)]
    finally:
        topics.close()


@pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])
def test_late_offsets_cannot_take_the_group_back(
    proxied: ProxiedKafka, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """A TxnOffsetCommit that its client gave up and sent again arrives in the middle of the next
    transaction; without a new producer that one then commits the older offset, and whoever starts
    there does its inputs twice. The client says nowhere that it sent two: only the time tells."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        if not defended:
            monkeypatch.setattr(lane_module, "OFFSETS_PLAIN_S_MAX", 60.0)
        late_offsets = late(Api.TXN_OFFSET_COMMIT, nth=2)
        injured = proxied.proxy.inject(Rule(Api.TXN_OFFSET_COMMIT, late_offsets))
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        assert topics.lane.run(topics.work(1)) is Outcome.COMMITTED
        assert injured.matched == 1
        refused = proxied.proxy.injected[-1].copy_answer != NO_ERROR
        assert (topics.committed(), refused) == ((2, True) if defended else (1, False))
    finally:
        topics.close()


def test_late_offsets_of_an_aborted_transaction_skip_nothing(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """A record is refused, so the transaction is aborted and a smaller one follows: in its middle
    the first one's offsets arrive, and they are another epoch's."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    small = f"{topic_prefix}small"
    create_topic(proxied.direct, small, config={"max.message.bytes": "1000"})
    try:
        # Sending them again asks nobody to add offsets: the next to do so is the next transaction.
        overtaken = late(Api.ADD_OFFSETS_TO_TXN)
        injured = proxied.proxy.inject(Rule(Api.TXN_OFFSET_COMMIT, overtaken))
        large = topics.work(4)
        large.outputs.append((small, 0, b"k", os.urandom(5_000), None))
        assert topics.lane.run(large) is Outcome.ABORTED
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        assert injured.matched == 1
        assert proxied.proxy.injected[-1].copy_answer not in (None, NO_ERROR)
        assert topics.committed() == 1
    finally:
        topics.close()


def test_offsets_that_an_abort_overtook_are_taken_into_the_next_transaction(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """Why the lane gives up the producer of an aborted transaction: with the same one, inputs that
    nobody has handled count as done."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    producer = topics.lane._producer
    try:
        overtaken = late(Api.TXN_OFFSET_COMMIT, nth=2)
        proxied.proxy.inject(Rule(Api.TXN_OFFSET_COMMIT, overtaken))
        for offset, end in ((5, producer.abort_transaction), (1, producer.commit_transaction)):
            producer.begin_transaction()
            places = [TopicPartition(topics.source, 0, offset)]
            producer.send_offsets_to_transaction(places, topics.metadata(), 10)
            end(10)
        assert proxied.proxy.injected[-1].copy_answer == NO_ERROR
        assert topics.committed() == 5
    finally:
        topics.close()


def test_a_redrive_whose_answers_are_lost_puts_each_letter_back_once(
    proxied: ProxiedKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """Every end is ambiguous: the producer is built anew each time, and the markers say that the
    transaction was committed, so none is done again and the next one cannot be torn."""
    flow = flow_with_letters(proxied, topic_prefix, tmp_path)
    with LetterLog(proxied.direct, flow.catalogue, flow.codec) as log:
        markers, letters = Markers(), log.letters()
        limits = Limits(inputs=log.partitions, requests=flow.topic("payment-requests"))
        plan = plan_redrive(letters, letters, markers, limits)
        before = len(proxied.proxy.injected)
        with Redriver(
            proxied.proxied, flow.catalogue, flow.codec, log, markers, limits
        ) as redriver:
            made = []
            build = redriver._build
            redriver._build = lambda: (made.append(1), build())  # type: ignore[method-assign]
            for letter in plan.todo:
                proxied.proxy.inject(Rule(Api.END_TXN, lose_answer()))
                done = redriver.run(Plan([letter]), Act("ops", "mended"), action=REDRIVE_ACTION)
                assert done.letters == 1
        assert len(proxied.proxy.injected) - before == len(made) == 3
    copies = [m for m in flow.messages("orders") if "redrive.letter" in headers_of(m)]
    assert [m.key() for m in copies] == [record_key("shop", str(n)) for n in range(3)]
    assert len(flow.messages("dead-letter-markers")) == len(flow.messages("audit")) == 3


def test_a_redrive_whose_commit_failed_without_a_sign_costs_the_producer(
    proxied: ProxiedKafka, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client does not always log the answer to an end that had failed by itself meanwhile: once
    a commit was asked for, an abort alone is no plain end."""
    flow = flow_with_letters(proxied, topic_prefix, tmp_path)
    with LetterLog(proxied.direct, flow.catalogue, flow.codec) as log:
        markers, letters = Markers(), log.letters()
        limits = Limits(inputs=log.partitions, requests=flow.topic("payment-requests"))
        plan = plan_redrive(letters, letters, markers, limits)
        with Redriver(
            proxied.proxied, flow.catalogue, flow.codec, log, markers, limits
        ) as redriver:
            made = []
            build = redriver._build
            redriver._build = lambda: (made.append(1), build())  # type: ignore[method-assign]
            abort = redriver._abort

            def deaf_until_aborted(*args: Any, **more: Any) -> Any:
                redriver._watch.begin()
                return abort(*args, **more)

            monkeypatch.setattr(redriver, "_abort", deaf_until_aborted)
            refused = answer(INVALID_PRODUCER_ID_MAPPING, forward=False)
            proxied.proxy.inject(Rule(Api.END_TXN, refused))
            done = redriver.run(plan, Act("ops", "mended"), action=REDRIVE_ACTION)
    assert done.letters == 3
    assert made == [1]
    copies = [m for m in flow.messages("orders") if "redrive.letter" in headers_of(m)]
    assert len(copies) == len(flow.messages("dead-letter-markers")) == 3


def flow_with_letters(proxied: ProxiedKafka, prefix: str, folder: Path) -> EngineFlow:
    """A flow with three dead letters of orders nobody could read."""
    flow = EngineFlow(proxied.direct, prefix, folder).provisioned()
    for number in range(3):
        key = record_key("shop", str(number))
        at = flow.send("orders", key, b"junk", partition=0)
        source = InputRecord(flow.topic("orders"), *at, 1_000, key, b"junk")
        for _, partition, _, value, headers in dead_letter(
            source, topic="", stage="payments", cause="truncated"
        ):
            flow.send("dead-letters", key, value, partition=partition, headers=headers)
    return flow


def test_an_end_that_never_reached_the_broker_is_called_aborted(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """The commit is refused on its way and then aborted: by the committed offsets nothing of it
    happened, and the next transaction is another producer's."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        proxied.proxy.inject(Rule(Api.END_TXN, answer(INVALID_PRODUCER_ID_MAPPING, forward=False)))
        assert topics.lane.run(topics.work(0)) is Outcome.ABORTED
        assert topics.lane.rebuilds == 1
        assert topics.values() == []
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        assert topics.values() == [b"0.0", b"0.1", b"0.2"]
    finally:
        topics.close()


def test_an_abort_after_a_commit_that_was_decided_is_called_committed(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """The broker has committed, the client was told otherwise and its abort seems to succeed: what
    counts is the committed offsets, or the batch would be done twice."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        proxied.proxy.inject(Rule(Api.END_TXN, answer(INVALID_PRODUCER_ID_MAPPING, forward=True)))
        proxied.proxy.inject(Rule(Api.END_TXN, answer(NO_ERROR, forward=False)))
        assert topics.lane.run(topics.work(0)) is Outcome.COMMITTED
        assert topics.lane.rebuilds == 1
        assert topics.values() == [b"0.0", b"0.1", b"0.2"]
    finally:
        topics.close()


def test_an_abort_that_the_broker_refuses_ends_the_lane(
    proxied: ProxiedKafka, topic_prefix: str
) -> None:
    """The same, with the broker's own answer to the abort: it is no longer possible, and the lane
    leaves instead of calling the transaction aborted."""
    topics = LaneOverTopics(proxied.direct, proxied.proxied, topic_prefix)
    try:
        proxied.proxy.inject(Rule(Api.END_TXN, answer(INVALID_PRODUCER_ID_MAPPING, forward=True)))
        with pytest.raises(LaneFatal, match="INVALID_TXN_STATE"):
            topics.lane.run(topics.work(0))
        assert topics.values() == [b"0.0", b"0.1", b"0.2"]
    finally:
        topics.close()


class _Deaf:
    """A logger that loses the lines about ends, as a client that words them otherwise would."""

    def __init__(self, watch: EndTxnWatch) -> None:
        self._watch = watch

    def log(self, level: int, message: str, *args: object) -> None:
        if level > logging.DEBUG:
            self._watch.log(level, message, *args)


def test_a_lane_that_cannot_read_the_ends_refuses_to_run(kafka: str, topic_prefix: str) -> None:
    """Without the client's line about each EndTxn the lane leaves within three transactions, and
    those were rebuilt after, so none ran undefended."""
    made: list[object] = []

    def deaf_producer(config: dict[str, Any], logger: EndTxnWatch) -> Producer:
        made.append(config)
        return Producer(config, logger=_Deaf(logger))

    topics = LaneOverTopics(kafka, kafka, topic_prefix, make_producer=deaf_producer)
    try:
        for number in range(UNSEEN_ENDS_MAX - 1):
            assert topics.lane.run(topics.work(number)) is Outcome.COMMITTED
        # One more for each time that a busy broker did not let it begin at once.
        assert len(made) >= UNSEEN_ENDS_MAX
        with pytest.raises(Undefended, match="debug=eos"):
            topics.lane.run(topics.work(UNSEEN_ENDS_MAX - 1))
    finally:
        topics.close()


def test_orders_are_requested_once_while_answers_are_lost(
    proxied: ProxiedKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """A payments worker whose EndTxn answers are lost eight times asks for each order's charge
    once, and its table agrees with the log."""
    flow = EngineFlow(proxied.direct, topic_prefix, tmp_path).provisioned()
    overrides = {"bootstrap.servers": proxied.proxied}
    before = len(proxied.proxy.injected)
    with flow.running_payments(producer_overrides=overrides) as running:
        rebuilds = running.worker._metrics.rebuilds.labels("payments")
        for number in range(SWALLOWED):
            proxied.proxy.inject(Rule(Api.END_TXN, lose_answer()))
            at = flow.send_order(flow.order(f"o{number}"))
            flow.wait_consumed(ends_of(at), running=running)
            # What became of it is asked while the worker's own consumer is being polled.
            resolved = partial(_reached, rebuilds, number + 1)
            until(resolved, "the end is resolved", RESOLVED_S)
    assert len(proxied.proxy.injected) - before == SWALLOWED
    requested = sorted(request.order_id for request in flow.nouns("payment-requests"))
    assert requested == [f"o{n}" for n in range(SWALLOWED)]
    assert {p.sequence for p in flow.payments().values()} == {1}


def test_orders_are_requested_once_while_ends_are_refused(
    proxied: ProxiedKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """Each order's first transaction is ambiguous and was not committed: the worker reads the
    order again and asks for its charge once."""
    flow = EngineFlow(proxied.direct, topic_prefix, tmp_path).provisioned()
    overrides = {"bootstrap.servers": proxied.proxied}
    count = 3
    with flow.running_payments(producer_overrides=overrides) as running:
        ended = running.worker._metrics.transactions
        for number in range(count):
            proxied.proxy.inject(
                Rule(Api.END_TXN, answer(INVALID_PRODUCER_ID_MAPPING, forward=False))
            )
            at = flow.send_order(flow.order(f"o{number}"))
            flow.wait_consumed(ends_of(at), running=running)
            aborted = ended.labels("payments", "aborted")
            until(partial(_reached, aborted, number + 1), "it was called aborted", RESOLVED_S)
    assert len(flow.messages("payment-requests", "read_uncommitted")) == 2 * count
    requested = sorted(request.order_id for request in flow.nouns("payment-requests"))
    assert requested == [f"o{n}" for n in range(count)]
    assert {p.sequence for p in flow.payments().values()} == {1}


def test_an_order_is_requested_once_though_its_end_was_lost_until_the_time_out(
    proxied: ProxiedKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """No copy of the EndTxn arrives before the broker aborts the transaction and fences its
    producer: the worker leaves, and its successor asks for the charge once."""
    flow = EngineFlow(proxied.direct, topic_prefix, tmp_path).provisioned()
    overrides = {
        "bootstrap.servers": proxied.proxied,
        "transaction.timeout.ms": 1_500,
        "socket.timeout.ms": 1_500,
    }
    at = flow.send_order(flow.order("o1"))
    lost = proxied.proxy.inject(Rule(Api.END_TXN, lose_request(), times=None))
    try:
        running = RunningWorker(*flow.payments_worker(producer_overrides=overrides))
        until(lambda: lost.matched > 0, "the end is lost")
        until(lambda: _aborted(flow), "the broker has aborted the transaction")
    finally:
        proxied.proxy.heal()
    assert isinstance(running.ended(), LaneFatal)
    assert flow.messages("payment-requests") == []
    assert flow.committed("payments", "orders")[at[0]] == at[1]
    with flow.running_payments(producer_overrides=overrides) as running:
        flow.wait_consumed(ends_of(at), running=running)
    assert [request.order_id for request in flow.nouns("payment-requests")] == ["o1"]
    assert flow.payments()["o1"].sequence == 1


def _aborted(flow: EngineFlow) -> bool:
    """Whether a committed reader gets past the one transaction: its end is in the log."""
    return any(log_ends(flow.bootstrap, flow.topic("payment-requests")).values())


def _reached(counter: Any, count: int) -> bool:
    return bool(counter._value.get() == count)
