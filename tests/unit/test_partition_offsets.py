"""What a broker is asked for when the end of a partition is."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, cast

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

from pipeline.runtime.partition_offsets import list_offsets

STABLE, END = 5, 7


class Found:
    def __init__(self, offset: int) -> None:
        self.offset = offset


class TransactionOpen:
    """A partition at whose end a transaction is open: the broker's two answers about it."""

    def list_offsets(
        self,
        asked: Mapping[TopicPartition, OffsetSpec],
        *,
        isolation_level: IsolationLevel,
        request_timeout: float,
    ) -> dict[TopicPartition, Future[ListOffsetsResultInfo]]:
        committed = isolation_level is IsolationLevel.READ_COMMITTED
        answers: dict[TopicPartition, Future[Any]] = {}
        for place in asked:
            answers[place] = Future()
            answers[place].set_result(Found(STABLE if committed else END))
        return answers


def test_an_end_lies_behind_a_transaction_that_is_open() -> None:
    """A table that is restored to the stable end lacks what a worker before wrote and is about to
    commit: it would judge an order by a payment that is older than the one in the topic."""
    admin = cast(AdminClient, TransactionOpen())
    found = list_offsets(admin, {TopicPartition("payments", 0): OffsetSpec.latest()}, timeout_s=1)
    assert found == {("payments", 0): END}
