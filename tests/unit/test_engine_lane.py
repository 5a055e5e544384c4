"""What a lane calls an end that was not plain: the committed offsets decide, nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.runtime import lane as lane_module
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.lane import UNSEEN_ENDS_MAX, Lane, Undefended
from pipeline.runtime.work import Outcome, Work

WORK = Work([("out", 0, b"k", b"v", None)], {("orders", 0): 5, ("results", 0): 3}, "metadata")


class ToldProducer:
    """Tells its logger how each EndTxn was answered, as librdkafka's debug=eos does."""

    def __init__(self, logger: Any, commit: list[str], abort: list[str]) -> None:
        self._logger, self._commit, self._abort = logger, commit, abort
        self.refuse_offsets = False

    def init_transactions(self, _timeout_s: float) -> None: ...

    def begin_transaction(self) -> None: ...

    def produce(self, *_: Any, **__: Any) -> None: ...

    def send_offsets_to_transaction(self, *_: Any) -> None:
        if self.refuse_offsets:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, txn_requires_abort=True))

    def poll(self, _timeout_s: float) -> None: ...

    def commit_transaction(self, _timeout_s: float) -> None:
        self._answer(self._commit)
        if self._abort:
            raise KafkaException(
                KafkaError(KafkaError.INVALID_PRODUCER_ID_MAPPING, txn_requires_abort=True)
            )

    def abort_transaction(self, _timeout_s: float) -> None:
        self._answer(self._abort)

    def _answer(self, answers: list[str]) -> None:
        for answer in answers:
            self._logger.log(7, "%s %s %s", "ENDTXN", "client", f"EndTxn returned {answer} in")


@pytest.mark.parametrize(
    ("committed", "outcome"),
    [
        ({("orders", 0): 5, ("results", 0): 3}, Outcome.COMMITTED),
        ({("orders", 0): 4, ("results", 0): 2}, Outcome.ABORTED),
        ({("orders", 0): 5, ("results", 0): 2}, Outcome.ABORTED),
        ({}, Outcome.ABORTED),
    ],
)
@pytest.mark.parametrize(
    ("commit", "abort"),
    [
        (["_TRANSPORT", "NO_ERROR"], []),
        (["_TRANSPORT"], ["NO_ERROR"]),
        (["INVALID_PRODUCER_ID_MAPPING"], ["NO_ERROR"]),
        ([], ["NO_ERROR"]),
    ],
    ids=[
        "retried",
        "aborted after a lost answer",
        "aborted after a refusal",
        "aborted after a commit whose answer the client did not log",
    ],
)
def test_an_end_that_was_not_plain_is_what_the_committed_offsets_say(
    committed: dict[tuple[str, int], int], outcome: Outcome, commit: list[str], abort: list[str]
) -> None:
    """Called committed when it was not, its orders are lost; called aborted when it was not, they
    are asked for again. Either way the producer is another one afterwards."""
    made: list[ToldProducer] = []

    def make(_config: object, *, logger: Any) -> ToldProducer:
        made.append(ToldProducer(logger, commit, abort))
        return made[-1]

    lane = Lane({}, stage="payments", committed_offsets=lambda _: committed, make_producer=make)
    lane.open()
    assert lane.run(WORK) is outcome
    assert len(made) == 2


def test_an_end_that_was_not_plain_is_an_abort_where_no_offset_moved() -> None:
    """The offsets were there before it, so they do not tell. What it wrote is harmless when it is
    written twice, and must not be lost."""
    made: list[ToldProducer] = []

    def make(_config: object, *, logger: Any) -> ToldProducer:
        made.append(ToldProducer(logger, ["_TRANSPORT", "NO_ERROR"], []))
        return made[-1]

    committed = dict(WORK.offsets)
    lane = Lane({}, stage="gateway", committed_offsets=lambda _: committed, make_producer=make)
    lane.open()
    work = Work(WORK.outputs, WORK.offsets, WORK.group_metadata, moves=False)
    assert lane.run(work) is Outcome.ABORTED
    assert len(made) == 2


def test_a_transaction_aborted_before_its_end_costs_the_producer() -> None:
    """What the abort overtook (its offsets, not yet arrived) is of an epoch that has passed."""
    lane, made = lane_of_told_producers()
    made[0].refuse_offsets = True
    assert lane.run(WORK) is Outcome.ABORTED
    assert lane.run(WORK) is Outcome.COMMITTED
    assert len(made) == 2


@pytest.mark.parametrize(("plain_s_max", "producers"), [(-1.0, 2), (60.0, 1)])
def test_offsets_that_may_have_been_sent_twice_cost_the_producer(
    monkeypatch: pytest.MonkeyPatch, plain_s_max: float, producers: int
) -> None:
    """The transaction is committed all the same, and only the next begin is another producer's."""
    monkeypatch.setattr(lane_module, "OFFSETS_PLAIN_S_MAX", plain_s_max)
    lane, made = lane_of_told_producers()
    assert lane.run(WORK) is Outcome.COMMITTED
    assert len(made) == 1
    assert lane.run(WORK) is Outcome.COMMITTED
    assert len(made) == producers


def lane_of_told_producers() -> tuple[Lane, list[ToldProducer]]:
    made: list[ToldProducer] = []

    def make(_config: object, *, logger: Any) -> ToldProducer:
        made.append(ToldProducer(logger, ["NO_ERROR"], []))
        return made[-1]

    lane = Lane({}, stage="payments", committed_offsets=lambda _: {}, make_producer=make)
    lane.open()
    return lane, made


def test_an_abort_of_what_nobody_asked_to_commit_is_an_abort() -> None:
    """A worker that lost its partitions is refused by the group. Its successor has moved the
    offsets on: read as the end of its own transaction they would put an aborted state into its
    cache, which is there still when the partitions come back."""
    made: list[ToldProducer] = []

    def make(_config: object, *, logger: Any) -> ToldProducer:
        made.append(ToldProducer(logger, [], ["_TRANSPORT", "NO_ERROR"]))
        made[-1].refuse_offsets = len(made) == 1
        return made[-1]

    moved_on = {("orders", 0): 9, ("results", 0): 9}
    lane = Lane({}, stage="payments", committed_offsets=lambda _: moved_on, make_producer=make)
    lane.open()
    assert lane.run(WORK) is Outcome.ABORTED
    assert lane.ambiguous_ends == 1


def test_offsets_say_nothing_once_a_successor_may_have_moved_them() -> None:
    """The answer to the commit was lost, and by the time of asking the group knows another owner:
    whose commit moved the offsets cannot be told, so the worker ends and restores."""
    made: list[ToldProducer] = []

    def make(_config: object, *, logger: Any) -> ToldProducer:
        made.append(ToldProducer(logger, ["_TRANSPORT", "NO_ERROR"], []))
        made[-1].refuse_offsets = len(made) == 2
        return made[-1]

    moved_on = {("orders", 0): 9, ("results", 0): 9}
    lane = Lane({}, stage="payments", committed_offsets=lambda _: moved_on, make_producer=make)
    lane.open()
    with pytest.raises(LaneFatal, match="successor"):
        lane.run(WORK)


def test_a_lane_does_not_run_on_where_the_ends_of_transactions_are_not_seen() -> None:
    """By a client whose log reads differently. Undefended, a lost answer would tear a transaction
    unseen: an order charged, and its payment not in the table."""
    lane = Lane(
        {}, stage="payments", committed_offsets=lambda _: {},
        make_producer=lambda _config, *, logger: ToldProducer(logger, [], []),
    )  # fmt: skip
    lane.open()
    for _ in range(UNSEEN_ENDS_MAX - 1):
        assert lane.run(WORK) is Outcome.ABORTED
    with pytest.raises(Undefended, match="use the librdkafka this version was tested with"):
        lane.run(WORK)
