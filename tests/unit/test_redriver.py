"""Exactly once: a letter goes back together with its marker, whoever runs and however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from pipeline.domain.records import marker_from_record
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.redrive.letter import Joiner, Letter, Piece, Whole
from pipeline.runtime.redrive.letter_log import LetterLog
from pipeline.runtime.redrive.plan import Limits, Markers, plan_redrive
from pipeline.runtime.redrive.redriver import REDRIVE_ACTION, Act, Done, Redriver
from schemas.codec import default_codec
from topics.catalogue import build_catalogue

CATALOGUE, CODEC = build_catalogue(), default_codec()
ORDERS, RESULTS = CATALOGUE.name("orders"), CATALOGUE.name("gateway-results")
MARKERS, AUDIT = CATALOGUE.name("dead-letter-markers"), CATALOGUE.name("audit")
LIMITS = Limits(inputs={ORDERS: 4, RESULTS: 4}, requests=CATALOGUE.name("payment-requests"))
PARTITION = 1


class Broker:
    """What is committed, transaction by transaction. ``lost``: what becomes of those whose answer
    does not arrive, the next first; later ones are answered."""

    def __init__(self, *lost: bool) -> None:
        self.transactions: list[list[tuple[Any, ...]]] = []
        self.lost = list(lost)
        self.producers = 0

    def producer(self, _config: object, *, logger: Any) -> FakeProducer:
        self.producers += 1
        return FakeProducer(self, logger)

    def records(self, topic: str) -> list[tuple[Any, ...]]:
        return [each for one in self.transactions for each in one if each[0] == topic]


class FakeProducer:
    def __init__(self, broker: Broker, logger: Any) -> None:
        self._broker, self._logger = broker, logger
        self._open: list[tuple[Any, ...]] = []

    def init_transactions(self, _timeout_s: float) -> None: ...

    def begin_transaction(self) -> None:
        self._open = []

    def produce(
        self,
        topic: str,
        value: Any,
        key: Any,
        partition: int,
        *,
        on_delivery: Any,
        headers: Any = None,
    ) -> None:
        self._open.append((topic, partition, key, value))

    def flush(self, _timeout_s: float) -> None: ...

    def poll(self, _timeout_s: float) -> None: ...

    def commit_transaction(self, _timeout_s: float) -> None:
        is_lost = bool(self._broker.lost)
        if not is_lost or self._broker.lost.pop(0):
            self._broker.transactions.append(self._open)
        for answer in (["_TRANSPORT"] if is_lost else []) + ["NO_ERROR"]:
            self._logger.log(7, "%s %s %s", "ENDTXN", "client", f"EndTxn returned {answer} in")


class FakeLog:
    """The letters, and the markers as they are left of a compacted topic."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def wholes(self, letters: list[Letter]) -> Iterator[Whole]:
        return (Whole(letter, b"junk", []) for letter in letters)

    def refresh(self, markers: Markers) -> None:
        kept = {(each[1], each[2]): each[3] for each in self._broker.records(MARKERS)}
        for value in kept.values():
            markers.take(marker_from_record(CODEC.decoder("dead-letter-marker")(value)))


def letters() -> list[Letter]:
    """Two inputs that lay at one offset of two topics."""
    joiner = Joiner()
    for offset, topic in enumerate((ORDERS, RESULTS)):
        refused = InputRecord(topic, PARTITION, 7, 1_000, b"shop:1", b"junk", None)
        for _, partition, key, value, headers in dead_letter(
            refused, topic="dead-letters", stage="payments", cause="truncated"
        ):
            joiner.take(Piece(partition, offset, 5_000, key, value, tuple(headers or ())))
    return joiner.letters


def redriven(broker: Broker, markers: Markers) -> Done:
    """By a run that chose its letters by what it knew before it was the only one."""
    plan = plan_redrive(letters(), letters(), markers, LIMITS)
    log = cast(LetterLog, FakeLog(broker))
    made = Redriver(
        "none", CATALOGUE, CODEC, log, markers, LIMITS, clock_ms=lambda: 9_000,
        make_producer=broker.producer,
    )  # fmt: skip
    with made as redriver:
        return redriver.run(plan, Act("ann", "INC-1"), action=REDRIVE_ACTION)


def test_a_letter_goes_back_in_one_transaction_with_its_marker() -> None:
    """Its marker has the letter's own place for its key: by another one, the topic would keep one
    of the two, and the next run would send the other input once more."""
    broker = Broker()
    assert redriven(broker, Markers()).letters == 2
    (transaction,) = broker.transactions
    assert [each[0] for each in transaction] == [ORDERS, RESULTS, AUDIT, MARKERS, MARKERS]
    assert [each[1:3] for each in transaction[3:]] == [(PARTITION, b"1:0"), (PARTITION, b"1:1")]


def test_what_another_run_did_meanwhile_is_not_done_again() -> None:
    """Two people chose the same letters: the shop's order goes back once, not twice."""
    broker = Broker()
    redriven(broker, Markers())
    done = redriven(broker, Markers())
    assert (done.letters, done.already) == (0, 2)
    assert len(broker.records(ORDERS)) == len(broker.records(RESULTS)) == 1


@pytest.mark.parametrize("committed", [True, False])
def test_the_markers_tell_how_a_transaction_ended_whose_answer_was_lost(committed: bool) -> None:
    """Taken for committed when it was not, the letters would count as done and their inputs would
    be gone; for not committed when it was, they would go back twice."""
    broker = Broker(committed)
    assert redriven(broker, Markers()).letters == 2
    assert len(broker.records(ORDERS)) == len(broker.records(RESULTS)) == 1
    assert len(broker.records(MARKERS)) == 2
    assert broker.producers == 2, "a late copy of the end would end the next transaction"
