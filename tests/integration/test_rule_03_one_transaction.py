"""Rule 3: nothing decided on top of a transaction that failed survives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime import gateway_worker, table_worker
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.lane import Lane
from pipeline.runtime.work import Outcome, Work
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of, until

pytestmark = pytest.mark.integration


class FailingLane(Lane):
    """Aborts chosen transactions, each once ``when_ready`` says that the next one is prepared."""

    to_fail = 1
    failed = 0

    def run(self, work: Work) -> Outcome:
        cls = type(self)
        if cls.failed >= cls.to_fail:
            return super().run(work)
        cls.failed += 1
        self._watch.begin()
        self._producer.begin_transaction()
        self._produce(work)
        self._producer.flush(10)
        until(cls.when_ready, "the next batch is prepared")
        return self._abort(work, end_asked=False)

    @staticmethod
    def when_ready() -> bool:
        raise NotImplementedError


def test_what_was_prepared_on_a_failed_transaction_is_discarded(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N creates payments and fails; N+1, prepared meanwhile, saw them. Every order is asked for
    once, each conflict is counted once and after its payment, in the order of the log."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    held: dict[str, Any] = {}

    class Lane_(FailingLane):
        @staticmethod
        def when_ready() -> bool:
            if "conflicts" not in held:
                # Sent only now, so that they cannot be part of N.
                held["conflicts"] = [
                    flow.send_order(flow.order(f"o{n}", amount_minor=2_000)) for n in range(6)
                ]
            batch = held["worker"]._batch
            return batch is not None and all(
                batch.offsets.get((flow.topic("orders"), partition), 0) >= end
                for partition, end in ends_of(*held["conflicts"]).items()
            )

    monkeypatch.setattr(table_worker, "Lane", Lane_)
    worker, stop = flow.payments_worker()
    held["worker"] = worker
    firsts = [flow.send_order(flow.order(f"o{n}")) for n in range(6)]
    running = RunningWorker(worker, stop)
    try:
        until(lambda: "conflicts" in held, "the first transaction has failed")
        flow.wait_consumed(ends_of(*firsts, *held["conflicts"]), running=running)
    finally:
        running.end()
    assert running.error is None
    assert Lane_.failed == 1
    assert sorted(r.order_id for r in flow.nouns("payment-requests")) == [f"o{n}" for n in range(6)]
    assert len(flow.messages("dead-letters")) == 6
    written: dict[str, list[int]] = {}
    for payment in flow.nouns("payments"):
        written.setdefault(payment.order_id, []).append(payment.sequence)
    assert written == {f"o{n}": [1, 2] for n in range(6)}
    assert all(p.conflicts == 1 and p.amount_minor == 1_000 for p in flow.payments().values())
    attempted = len(flow.messages("payment-requests", "read_uncommitted"))
    assert attempted > 6, "the failed transaction was meant to reach the log"


def test_a_worker_that_was_paused_when_its_transaction_failed_goes_on(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffer was full, so it had paused its partitions; after the rewind nobody remembers the
    pause but the client, and every order has to come all the same."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    monkeypatch.setattr(table_worker, "BUFFER_RECORDS_MAX", 40)
    held: dict[str, Any] = {}

    class Lane_(FailingLane):
        @staticmethod
        def when_ready() -> bool:
            return bool(held["worker"]._admission._buffers[flow.topic("orders")].paused)

    monkeypatch.setattr(table_worker, "Lane", Lane_)
    worker, stop = flow.payments_worker(commit_policy=CommitPolicy(records_max=20))
    held["worker"] = worker
    ends = ends_of(*[flow.send_order(flow.order(f"o{n}")) for n in range(300)])
    running = RunningWorker(worker, stop)
    try:
        flow.wait_consumed(ends, running=running)
    finally:
        running.end()
    assert running.error is None
    assert Lane_.failed == 1
    assert len({r.order_id for r in flow.nouns("payment-requests")}) == 300
    assert len(flow.nouns("payment-requests")) == 300


def test_an_aborted_transaction_is_invisible_to_a_committed_reader(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the failed attempt is in the log, a reader of settled facts sees none of it, and the
    offsets have not moved."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    seen: dict[str, Any] = {}

    class Lane_(FailingLane):
        @staticmethod
        def when_ready() -> bool:
            return True

        def _abort(self, work: Work, *, end_asked: bool) -> Outcome:
            outcome = super()._abort(work, end_asked=end_asked)
            if not seen:
                seen["requests"] = flow.messages("payment-requests")
                seen["attempted"] = len(flow.messages("payment-requests", "read_uncommitted"))
                seen["offsets"] = flow.committed("payments", "orders")
            return outcome

    monkeypatch.setattr(table_worker, "Lane", Lane_)
    at = flow.send_order(flow.order("o1"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(at), running=running)
    assert seen == {"requests": [], "attempted": 1, "offsets": {0: 0, 1: 0}}
    assert len(flow.messages("payment-requests")) == 1


def test_results_of_a_failed_transaction_are_written_by_the_next(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway stage's results fail with their transaction: the requests are read and called
    again under the same keys, and the offsets move with the results and not before."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()
    orders = [flow.order(f"o{n}") for n in range(6)]
    for order in orders:
        flow.send_request(order)

    class Lane_(FailingLane):
        @staticmethod
        def when_ready() -> bool:
            return True

    monkeypatch.setattr(gateway_worker, "Lane", Lane_)
    running = RunningWorker(*flow.gateway_worker())
    try:
        until(lambda: Lane_.failed == 1, "a transaction has failed")
        # Committed behind the failed one: what is lost now would stay lost.
        late = flow.send_request(flow.order("late"))
        flow.wait_consumed(ends_of(late), running=running, stage="gateway", role="payment-requests")
    finally:
        running.end()
    assert running.error is None
    assert Lane_.failed == 1
    results = flow.nouns("gateway-results")
    wanted = sorted([order.order_id for order in orders] + ["late"])
    assert sorted(result.order_id for result in results) == wanted
    assert len(flow.messages("gateway-results", "read_uncommitted")) > len(wanted)
