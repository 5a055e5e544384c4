"""Publishing decisions about the books: how many at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.ledger.decisions import TOPIC_ROLE, WaitingDecision
from producers.ledger_events import (
    PUBLISHED_BYTES_MAX,
    PUBLISHED_TOGETHER_MAX,
    together,
    topic_ranges,
)
from topics.catalogue import TopicSettings, build_catalogue


def event(number: int, size: int) -> WaitingDecision:
    return WaitingDecision(number, str(number), size)


def test_a_transaction_holds_so_many_decisions_and_no_more_bytes() -> None:
    """In order, none left out; one that is larger than all may be goes alone."""
    small = [event(n, 10) for n in range(PUBLISHED_TOGETHER_MAX + 1)]
    assert [len(each) for each in together(small)] == [PUBLISHED_TOGETHER_MAX, 1]
    third = PUBLISHED_BYTES_MAX // 3
    large = [event(n, size) for n, size in enumerate((third, third, third, third,
                                                      PUBLISHED_BYTES_MAX + 1, 10))]  # fmt: skip
    parts = list(together(large))
    assert [len(each) for each in parts] == [3, 1, 1, 1]
    assert [each.sequence for part in parts for each in part] == [e.sequence for e in large]
    assert list(together([])) == []


@pytest.mark.parametrize("prefix", ["", "eu-", "ledger-events", "x.ledger-events."])
def test_no_other_topic_is_taken_for_that_of_the_decisions(prefix: str) -> None:
    """A ledger that is looked at alone knows it by how its name ends, whatever the prefix."""
    catalogue = build_catalogue(TopicSettings(prefix=prefix))
    found = [spec.name for spec in catalogue.topics.values() if spec.name.endswith(TOPIC_ROLE)]
    assert found == [catalogue.name("ledger-events")]


class _ConsumerDuringAnElection:
    """A partition whose first two answers are of a broker that does not lead it (any more)."""

    def __init__(self, _settings: object) -> None:
        self._refusals = [KafkaError._DESTROY_BROKER, KafkaError.NOT_LEADER_FOR_PARTITION]

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions={0: None})})

    def get_watermark_offsets(self, _place: TopicPartition, timeout: float) -> tuple[int, int]:
        if self._refusals:
            raise KafkaException(KafkaError(self._refusals.pop(0)))
        return 3, 7

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_a_ledger_that_starts_during_an_election_waits_for_the_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Brokers were rolled while a ledger worker started: it called the cluster away, twice, and
    its supervisor gave up."""
    monkeypatch.setattr("producers.ledger_events.Consumer", _ConsumerDuringAnElection)
    assert topic_ranges("127.0.0.1:1", "ledger-events") == {0: (3, 7)}
