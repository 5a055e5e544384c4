"""The two loops turned by hand: what a worker has read, prepared, handed over and given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from pipeline.domain.answer import GatewayAnswer
from pipeline.errors import UserError
from pipeline.runtime import gateway_worker, table_worker
from pipeline.runtime.calls import Call
from pipeline.runtime.client_calls import ClientCalls
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.commit_thread import CommitThread
from pipeline.runtime.gateway_stage import GatewayStage, GatewayTerms
from pipeline.runtime.gateway_worker import GatewayWorker
from pipeline.runtime.held_requests import HeldRequests
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.surroundings import REAL
from pipeline.runtime.table_worker import FETCH_RECORDS_MAX
from pipeline.runtime.work import Outcome, Work
from schemas.errors import RegistryUnavailable
from tests.support.engine_fakes import (
    Commits,
    InstantCalls,
    Member,
    gateway_with,
    inputs_of,
    key_of,
    order_keys,
    payments_with,
)
from tests.support.engine_flow import GATEWAY, EngineFlow


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)


def append_order(flow: EngineFlow, member: Member, order_id: str, age_ms: int = 0) -> None:
    order = flow.encode("order", flow.order(order_id))
    member.append(flow.topic("orders"), key_of(order_id), order, age_ms=age_ms)


def append_request(
    flow: EngineFlow, member: Member, order_id: str, partition: int = 0, age_ms: int = 0
) -> None:
    request = flow.encode("payment-request", flow.request(flow.order(order_id)))
    topic = flow.topic("payment-requests")
    member.append(topic, key_of(order_id), request, partition=partition, age_ms=age_ms)


# Where nothing lies ------------------------------------------------------------------------------


class KnowsEnds:
    """A standstill watch that knows up to where nothing lies that a reader is handed."""

    is_due = True

    def __init__(self, *ends: dict[tuple[str, int], int]) -> None:
        self.ends = list(ends)

    def take(self, *_: object) -> list[Any]:
        return []

    def take_empty(self, _positions: object) -> dict[tuple[str, int], int]:
        return self.ends.pop(0) if self.ends else {}

    empty_now = take_empty


def test_a_payments_worker_commits_where_nothing_lies_once(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a transaction's marker: with what there is to commit, else by itself. A flow that is
    idle comes to rest."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, restore_slices=1)
    orders, results = (flow.topic("orders"), 0), (flow.topic("gateway-results"), 0)
    worker._turn()
    worker._standstill = KnowsEnds({results: 2})
    for _ in range(3):
        worker._turn()
    assert [(work.offsets, work.moves, work.outputs) for work in commits.works] == [
        ({results: 2}, True, [])
    ]
    commits.end(Outcome.COMMITTED)
    worker._turn()
    append_order(flow, member, "o1")
    worker._standstill.ends = [{results: 3}]
    worker._turn()
    assert [work.offsets for work in commits.works[1:]] == [{orders: 1, results: 3}]
    commits.end(Outcome.COMMITTED)
    for _ in range(3):
        worker._turn()
    assert len(commits.works) == 2
    assert worker._positions[results] == 3


def test_a_payments_worker_is_not_taken_back_by_what_was_found_before(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has handled more of the partition since."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, restore_slices=1)
    orders = flow.topic("orders"), 0
    worker._turn()
    for order_id in ("o1", "o2"):
        append_order(flow, member, order_id)
    worker._turn()
    worker._standstill = KnowsEnds({orders: 1})
    worker._turn()
    commits.end(Outcome.COMMITTED)
    due = flow.encode("payment-due", flow.due(flow.order("o1")))
    tier = next(lane for lane in flow.stage().lanes if lane.delay_ms is not None)
    member.append(tier.topic, key_of("o1"), due, age_ms=tier.delay_ms or 0)
    for _ in range(3):
        worker._turn()
    assert [work.offsets for work in commits.works] == [{orders: 2}, {(tier.topic, 0): 1}]


def test_a_payments_worker_reads_again_where_such_a_transaction_fails(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, restore_slices=1)
    results = flow.topic("gateway-results"), 0
    worker._turn()
    worker._standstill = KnowsEnds({results: 2})
    worker._turn()
    commits.end(Outcome.ABORTED)
    worker._turn()
    assert worker._positions[results] == 0
    worker._turn()
    assert len(commits.works) == 1


def test_a_payments_worker_that_leaves_commits_where_nothing_lies(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, commits = Member(), EndsAtOnce()
    worker = payments_with(flow, member, commits, monkeypatch, restore_slices=1)
    worker._turn()
    worker._standstill = KnowsEnds({(flow.topic("gateway-results"), 0): 2})
    worker._drain()
    assert [work.offsets for work in commits.works] == [{(flow.topic("gateway-results"), 0): 2}]


class EndsAtOnce(Commits):
    """Each transaction is committed as soon as it is handed over."""

    def submit(self, work: Work) -> None:
        super().submit(work)
        self.end(Outcome.COMMITTED)


def test_a_gateway_worker_commits_where_nothing_lies_once(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its results, else by itself; a failure of that drops no call."""
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    requests = flow.topic("payment-requests"), 0
    worker._standstill = KnowsEnds({requests: 1})
    worker._turn(fetch=True)
    worker._turn(fetch=True)
    prefix = worker._prefixes[0]
    commits.end(Outcome.ABORTED)
    worker._turn(fetch=True)
    assert worker._prefixes[0] is prefix
    worker._standstill.ends = [{requests: 1}]
    worker._turn(fetch=True)
    commits.end(Outcome.COMMITTED)
    for _ in range(3):
        worker._turn(fetch=True)
    assert [(work.offsets, work.moves) for work in commits.works] == [({requests: 1}, True)] * 2
    assert worker._positions == {0: 1}


def at_an_empty_end(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> tuple[GatewayWorker, Member, EndsAtOnce]:
    """A worker that has handled one request, and is told that nothing lies up to offset 2."""
    member, commits = Member(), EndsAtOnce()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    append_request(flow, member, "o1")
    while not commits.works:
        worker._turn(fetch=True)
    worker._standstill = KnowsEnds({(flow.topic("payment-requests"), 0): 2})
    return worker, member, commits


def test_a_gateway_worker_that_leaves_commits_where_nothing_lies(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _, commits = at_an_empty_end(flow, monkeypatch)
    requests = flow.topic("payment-requests"), 0
    worker._drain()
    assert [work.offsets for work in commits.works] == [{requests: 1}, {requests: 2}]


def test_a_partition_that_comes_back_is_read_on_from_where_nothing_lies(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from behind its last request: what lies there may be deleted by then."""
    worker, member, _ = at_an_empty_end(flow, monkeypatch)
    requests = flow.topic("payment-requests"), 0
    worker._turn(fetch=True)
    worker._turn(fetch=True)
    assert worker._positions == {0: 2}
    given = [TopicPartition(*requests)]
    member.committed[requests] = 2
    worker._on_revoke(member, given)
    worker._on_assign(member, given)
    assert member._positions[requests] == 2


# Given partitions --------------------------------------------------------------------------------


def test_the_tables_end_is_taken_after_the_committed_offsets(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round a transaction that commits in between has its offsets seen and its
    payments not: their orders would be asked for again."""
    member = Member()
    payments_with(flow, member, Commits(), monkeypatch)
    said = member.said
    last_asked = max(at for at, each in enumerate(said) if each == "committed offsets")
    assert last_asked < said.index("the table's end")


def test_inputs_are_not_read_before_the_last_slice_of_the_restoration(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over half a table an order that was handled before looks new."""
    member, commits = Member(), Commits()
    append_order(flow, member, "o1")
    worker = payments_with(flow, member, commits, monkeypatch, restore_slices=3)
    for _ in range(2):
        worker._turn()
        assert len(member.paused) == len(inputs_of(flow))
        assert worker._admission.buffered(flow.topic("orders")) == 0
    worker._turn()
    assert member.paused == set()
    worker._turn()
    assert [work.offsets for work in commits.works] == [{(flow.topic("orders"), 0): 1}]


@pytest.mark.parametrize("more", ["", "payment-retry-9"])
def test_unequal_partitions_of_co_owned_topics_are_refused(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """A worker that has an order's topic and not its results' would share the payment with
    another: it says so and reads nothing. So it is with a topic that it does not know, which the
    version before it read."""
    member = Member()
    worker = payments_with(flow, member, Commits(), monkeypatch)
    member.said.clear()
    inputs = inputs_of(flow)
    given = [TopicPartition(topic, 0) for topic in inputs]
    given.append(TopicPartition(more, 0) if more else TopicPartition(inputs[0], 1))
    with pytest.raises(UserError, match="unequal partitions of co-owned topics"):
        worker._on_assign(member, given)
    assert member.said == []


def test_requests_that_were_lost_to_another_are_not_paused(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what a worker has may be paused by it."""
    member = Member()
    worker = gateway_with(flow, member, Commits(), InstantCalls(), monkeypatch)
    member.rebalance.append(lambda: worker._on_lost(member, []))
    for _ in range(2):
        worker._turn(fetch=True)
    assert member.paused == set()


# Handed over -------------------------------------------------------------------------------------


def test_a_turn_commits_payments_with_the_metadata_of_the_batchs_beginning(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that waited for the transaction before it keeps the generation it was begun in."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    worker._turn()
    append_order(flow, member, "o1")
    commits.busy = True
    worker._turn()
    assert commits.works == []
    assert worker._batch is not None
    member.generation = 2
    commits.busy = False
    worker._turn()
    (work,) = commits.works
    assert work.group_metadata == "generation 1"


def test_a_turn_commits_results_with_the_metadata_of_the_assignment(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that waited for the transaction before them keep the generation of their requests."""
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    append_request(flow, member, "o1")
    commits.busy = True
    worker._turn(fetch=True)
    assert commits.works == []
    member.generation = 2
    commits.busy = False
    worker._turn(fetch=True)
    (work,) = commits.works
    assert work.group_metadata == "generation 1"


def test_a_worker_that_stood_still_reads_on_only_where_keys_are_known(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen for longer than its session it may have been expelled, and what it reads when it wakes
    its successor has sent: a gateway without keys would charge it a second time."""
    clock = {"s": 0.0}
    outside = replace(REAL, monotonic_s=lambda: clock["s"])
    member, calls = Member(), InstantCalls()
    worker = gateway_with(flow, member, Commits(), calls, monkeypatch, surroundings=outside)
    for frozen_s, order_id in ((6.0, "o1"), (60.0, "o2")):
        append_request(flow, member, order_id)
        clock["s"] += frozen_s
        worker._turn(fetch=True)
    assert len(calls.keys) == 2
    worker._stage.unrepeatable = True
    append_request(flow, member, "o3")
    clock["s"] += 6.0
    worker._turn(fetch=True)
    append_request(flow, member, "o4")
    clock["s"] += 7.0
    with pytest.raises(LaneFatal, match="stood still"):
        worker._turn(fetch=True)
    assert len(calls.keys) == 3


def test_what_an_elder_of_one_identity_takes_until_it_hears_is_sent_once(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two live workers with one node id and slot: the elder reads on until its next heartbeat. A
    gateway without keys was charged twice for what arrived in between."""
    member, calls, commits = Member(), InstantCalls(), Commits()
    without_keys = GatewayTerms(key_retention_ms=86_400_000, idempotent=False)
    elder_takes = ["o1", "o2"]

    def elder_reads_on(_seconds: float) -> None:
        while elder_takes:
            append_request(flow, member, elder_takes.pop(0))

    younger = gateway_with(
        flow, member, commits, calls, monkeypatch,
        stage=GatewayStage(flow.catalogue, flow.codec, terms={GATEWAY: without_keys}),
        surroundings=replace(REAL, sleep=elder_reads_on),
    )  # fmt: skip
    elder_reads_on(0)
    younger._turn(fetch=True)
    append_request(flow, member, "o3")
    younger._turn(fetch=True)
    assert len(calls.keys) == 1, "only what came after the elder had heard"
    results = [
        flow.codec.decoder("gateway-result")(value)["outcome"]
        for work in commits.works
        for topic, _, _, value, _ in work.outputs
        if topic == flow.topic("gateway-results")
    ]
    assert results == ["unknown", "unknown"]


class Unreached(InstantCalls):
    """No call reaches its gateway."""

    def start(self, calls: list[Call]) -> None:
        super().start(calls)
        for call in calls:
            call.answer = GatewayAnswer(outcome="not_sent", code="connection_refused")


def test_a_dead_workers_open_call_is_unknown_though_its_successor_reaches_nobody(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lay there at the assignment may have been sent; what is appended after was not."""
    member, commits = Member(), Commits()
    stage = GatewayStage(flow.catalogue, flow.codec, clock_skew_ms=0)
    worker = gateway_with(flow, member, commits, Unreached(), monkeypatch, stage=stage)
    append_request(flow, member, "o1", age_ms=10_000)
    append_request(flow, member, "o2", age_ms=-10_000)
    worker._turn(fetch=True)
    assert [
        flow.codec.decoder("gateway-result")(value)["outcome"]
        for topic, _, _, value, _ in commits.works[0].outputs
    ] == ["unknown", "not_sent"]


def test_a_batch_of_an_order_and_a_due_record_commits_both_offsets(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer's offset that stayed behind would be handled at each restart, and would fence
    nobody; every input of the batch is named."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    worker._turn()
    append_order(flow, member, "o1")
    for purpose in ("retry", "inquiry"):
        topic = flow.topic(f"payment-{purpose}-1")
        due = flow.encode("payment-due", flow.due(flow.order("o0"), purpose))
        member.append(topic, key_of("o0"), due, age_ms=3_600_000)
    result = flow.encode("gateway-result", flow.result(flow.order("o0")))
    member.append(flow.topic("gateway-results"), key_of("o0"), result)
    worker._turn()
    (work,) = commits.works
    written = ("orders", "payment-retry-1", "payment-inquiry-1", "gateway-results")
    assert work.offsets == {(flow.topic(role), 0): 1 for role in written}


# A transaction that failed -----------------------------------------------------------------------


def test_a_result_does_not_wait_for_the_orders_that_were_fetched_before_it(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the client's one queue it stands behind them all. What waits for it is a payment that
    would have left the worker's memory by then."""
    member, commits = Member(), Commits()
    each_turn = CommitPolicy(age_ms_max=0)
    worker = payments_with(
        flow, member, commits, monkeypatch, restore_slices=1, commit_policy=each_turn
    )
    worker._turn()
    append_order(flow, member, "first")
    worker._turn()
    commits.end(Outcome.COMMITTED)
    worker._turn()
    member.in_order_of_arrival = True
    for number in range(3 * FETCH_RECORDS_MAX):
        append_order(flow, member, f"o{number}", age_ms=1_000)
    result = flow.encode("gateway-result", flow.result(flow.order("first")))
    member.append(flow.topic("gateway-results"), key_of("first"), result)
    worker._turn()
    assert (flow.topic("gateway-results"), 0) in commits.works[-1].offsets


def filling_backlog(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> tuple[Any, Commits]:
    """A worker whose batches are old at once, with a result and two full turns of orders at
    hand."""
    member, commits = Member(), Commits()
    policy = CommitPolicy(records_max=2 * FETCH_RECORDS_MAX, age_ms_max=0)
    worker = payments_with(flow, member, commits, monkeypatch, commit_policy=policy, **more)
    worker._turn()
    for number in range(2 * FETCH_RECORDS_MAX):
        append_order(flow, member, f"o{number}")
    result = flow.encode("gateway-result", flow.result(flow.order("first")))
    member.append(flow.topic("gateway-results"), key_of("first"), result)
    return worker, commits


def test_a_backlog_that_fills_a_transaction_is_not_cut_by_its_age(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each partition that it writes to costs the broker a request and a marker, whatever is in
    it."""
    worker, commits = filling_backlog(flow, monkeypatch)
    worker._turn()
    assert not commits.works
    worker._turn()
    (work,) = commits.works
    assert sum(work.offsets.values()) == 2 * FETCH_RECORDS_MAX


def test_orders_behind_a_closed_gate_are_not_waited_for(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may stay there for as long as a gateway is away, and the result would with them."""
    worker, commits = filling_backlog(flow, monkeypatch, orders_allowed=lambda: False)
    worker._turn()
    (work,) = commits.works
    assert work.offsets == {(flow.topic("gateway-results"), 0): 1}


def test_payments_read_again_from_where_a_failed_transaction_began(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was buffered behind it is dropped too: kept, it would be handled before it, and its
    offsets would be committed over the failed ones."""
    member, commits = Member(), Commits()
    for n in range(4):
        append_order(flow, member, f"o{n}")
    worker = payments_with(
        flow, member, commits, monkeypatch, commit_policy=CommitPolicy(records_max=1)
    )
    worker._turn()
    worker._turn()
    assert worker._admission.buffered(flow.topic("orders")) == 3
    commits.end(Outcome.ABORTED)
    for _ in range(8):
        worker._turn()
        if commits.busy and commits.outcome is None and len(commits.works) > 1:
            commits.end(Outcome.COMMITTED)
    _, *again = commits.works
    assert [list(work.offsets.values()) for work in again] == [[1], [2], [3], [4]]
    assert order_keys(again, flow.topic("payment-requests")) == [key_of(f"o{n}") for n in range(4)]


def astray(flow: EngineFlow, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Commits]:
    """A payments worker with an order under way, in preparation another, and behind that one that
    is not the next by its offset."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    orders = flow.topic("orders")
    worker._turn()
    worker._offsets.open()
    worker._offsets.assign(worker._positions)
    for number in range(4):
        worker._turn()
        append_order(flow, member, f"o{number}")
        if number == 2:
            # Left out by the client.
            member._positions[orders, 0] = 3
    return worker, commits


def test_a_record_of_a_place_that_nobody_can_tell_is_read_again(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is prepared goes back with it, and what is committed does not."""
    worker, commits = astray(flow, monkeypatch)
    asked: list[int] = []

    def away(_consumer: object, _tp: object, offset: int) -> bool:
        asked.append(offset)
        raise TimeoutError

    monkeypatch.setattr(worker._offsets, "is_next", away)
    commits.end(Outcome.COMMITTED)
    worker._turn()
    assert asked == [3]
    for _ in range(6):
        if commits.busy:
            commits.end(Outcome.COMMITTED)
        worker._turn()
    assert asked == [3]
    assert order_keys(commits.works, flow.topic("payment-requests")) == [
        key_of(f"o{n}") for n in range(4)
    ]


def test_a_worker_leaves_where_nothing_explains_what_came(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is passed over or buried for it; the next start looks before it fetches."""
    worker, commits = astray(flow, monkeypatch)
    monkeypatch.setattr(worker._offsets, "is_next", lambda *_: False)
    commits.end(Outcome.COMMITTED)
    with pytest.raises(LaneFatal, match="what came is not what lies at 2"):
        worker._turn()
    assert order_keys(commits.works, flow.topic("payment-requests")) == [key_of("o0")]


def test_requests_are_read_again_from_where_a_failed_transaction_began(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are not in the log: the calls are made again under the same keys, and no commit
    moves past them before."""
    member, commits, calls = Member(), Commits(), InstantCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    topic = flow.topic("payment-requests")
    for n in range(3):
        append_request(flow, member, f"o{n}")
    worker._turn(fetch=True)
    (failed,) = commits.works
    append_request(flow, member, "o3")
    commits.end(Outcome.ABORTED)
    for _ in range(4):
        worker._turn(fetch=True)
    _, again = commits.works
    assert again.offsets == {(topic, 0): 4}
    results = flow.topic("gateway-results")
    assert order_keys([failed], results) == [key_of(f"o{n}") for n in range(3)]
    assert order_keys([again], results) == [key_of(f"o{n}") for n in range(4)]
    assert calls.keys[4:] == calls.keys[:4], "the same keys, so nobody is charged twice"
    assert worker._positions == {0: 0}, "moved by a commit that is known, and by nothing else"


# Given back --------------------------------------------------------------------------------------


class SlowLane:
    """A lane whose transaction is open until it may end, and says when it has ended."""

    def __init__(self, said: list[str]) -> None:
        self._said = said
        self.may_end = threading.Event()
        self.calls = ClientCalls(time.monotonic)

    def run(self, work: Work) -> Outcome:
        assert self.may_end.wait(10)
        for index, report in work.tracked.items():
            report(index)
        self._said.append("the transaction ended")
        return Outcome.COMMITTED


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["payments", "gateway"])
def test_a_revocation_waits_for_the_open_transaction(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The next owner reads committed offsets as soon as the partitions are given back: before the
    end is known it would do everything of that transaction again."""
    said: list[str] = []
    member = Member(said)
    lane = SlowLane(said)
    commits = CommitThread(lane)  # type: ignore[arg-type]
    worker: Any
    if stage == "payments":
        worker = payments_with(flow, member, commits, monkeypatch)
        worker._turn()
        append_order(flow, member, "o1")
        worker._turn()
        given_back = [TopicPartition(topic, 0) for topic in inputs_of(flow)]
    else:
        worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
        append_request(flow, member, "o1")
        worker._turn(fetch=True)
        given_back = [TopicPartition(flow.topic("payment-requests"), 0)]
    assert commits.busy
    said.clear()
    # Long enough after the revocation has begun for one that does not wait to be over.
    threading.Timer(0.05, lane.may_end.set).start()
    worker._on_revoke(member, given_back)
    assert said == ["the transaction ended", "gave back"]
    if stage == "payments":
        assert worker._table.get(0, key_of("o1")) is not None, "a known commit reaches the cache"
    commits.close()


def test_a_revocation_waits_for_the_answers_that_it_commits_itself(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered while a transaction was open goes into one more, of which the next owner
    has to see the end as well."""
    said: list[str] = []
    member, lane = Member(said), SlowLane(said)
    may_end = threading.Semaphore(0)
    lane.may_end = SimpleNamespace(wait=lambda s: may_end.acquire(timeout=s))  # type: ignore[assignment]
    commits = CommitThread(lane)  # type: ignore[arg-type]
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    for order_id in ("o1", "o2"):
        append_request(flow, member, order_id)
        worker._turn(fetch=True)
    said.clear()
    for after_s in (0.05, 0.1):
        threading.Timer(after_s, may_end.release).start()
    worker._on_revoke(member, [TopicPartition(flow.topic("payment-requests"), 0)])
    assert said == ["the transaction ended", "the transaction ended", "gave back"]
    commits.close()


# A rebalance of the gateway workers ---------------------------------------------------------------


def rebalance(worker: Any, member: Member, *, lost: bool = False) -> None:
    """The partition goes and comes back, as in every rebalance of its group."""
    given = [TopicPartition(worker._stage.topic, 0)]
    (worker._on_lost if lost else worker._on_revoke)(member, given)
    member.generation += 1
    worker._on_assign(member, given)


class OpenCalls(InstantCalls):
    """Calls that end when told."""

    open: bool = True

    def take_finished(self) -> list[Call]:
        return [] if self.open else super().take_finished()


def test_open_calls_outlive_a_rebalance_that_brings_their_partition_back(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rebalance takes all partitions for a moment. Made again, thousands of calls would meet
    their own gateways a second time; their answers are committed as of the new generation."""
    member, commits, calls = Member(), Commits(), OpenCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    for n in range(2):
        append_request(flow, member, f"o{n}")
    worker._turn(fetch=True)
    append_request(flow, member, "o2")
    member.rebalance.append(lambda: rebalance(worker, member))
    worker._turn(fetch=True)
    calls.open = False
    for _ in range(3):
        worker._turn(fetch=True)
        if commits.busy:
            commits.end(Outcome.COMMITTED)
    assert len(calls.keys) == len(set(calls.keys)) == 3, "each call is made once"
    assert [work.offsets for work in commits.works][-1] == {(worker._stage.topic, 0): 3}
    assert {work.group_metadata for work in commits.works} == {"generation 2"}
    results = flow.topic("gateway-results")
    assert order_keys(commits.works, results) == [key_of(f"o{n}") for n in range(3)]
    assert calls.kept_only[-1] == {0}, "what its questions heard as well"


def test_an_answer_that_comes_between_two_assignments_is_not_lost(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the next answer would hold it until another request comes."""
    member, commits, calls = Member(), Commits(), OpenCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    append_request(flow, member, "o0")
    worker._turn(fetch=True)
    given = [TopicPartition(worker._stage.topic, 0)]
    worker._on_revoke(member, given)
    calls.open = False
    worker._turn(fetch=True)
    assert commits.works == [], "nothing of a partition that is not ours"
    member.rebalance.append(lambda: worker._on_assign(member, given))
    for _ in range(2):
        worker._turn(fetch=True)
    assert [work.offsets for work in commits.works] == [{(worker._stage.topic, 0): 1}]


@pytest.mark.parametrize("why", ["another has committed", "lost"])
def test_a_partition_that_others_may_have_had_is_read_anew(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Results of before would be written a second time, or over records that were not read."""
    member, commits, calls = Member(), Commits(), OpenCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    for n in range(3):
        append_request(flow, member, f"o{n}")
    worker._turn(fetch=True)
    if why != "lost":
        member.committed[worker._stage.topic, 0] = 2
    member.rebalance.append(lambda: rebalance(worker, member, lost=why == "lost"))
    worker._turn(fetch=True)
    calls.open = False
    for _ in range(2):
        worker._turn(fetch=True)
    (work,) = commits.works
    assert work.offsets == {(worker._stage.topic, 0): 3}
    assert calls.kept_only[-1] == set(), "what was heard here is older than what others did"
    again = ["o2"] if why != "lost" else ["o0", "o1", "o2"]
    told = [flow.codec.decoder("gateway-result")(value or b"") for *_, value, _ in work.outputs]
    assert [(each["order_id"], each["heard"]) for each in told] == [
        *((order, None) for order in again),
        # The answers of before answer nothing, and are told as what was heard too late.
        *((order, "late_answer") for order in ("o0", "o1", "o2")),
    ]


def test_a_careful_worker_takes_first_what_it_may_have_died_of(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays careful, with one call open, until the suspect is done. Behind the backlog of
    another partition, which grows meanwhile, that was never."""
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    topic = worker._stage.topic
    given = [TopicPartition(topic, partition) for partition in range(3)]
    worker._on_assign(member, given)
    for _ in range(4):
        worker._guard.start()
    worker._guard.handling(topic, 2, 0)
    worker._guard.start()
    assert worker._guard.careful
    for partition in (0, 1, 2):
        append_request(flow, member, f"o{partition}", partition)
    worker._turn(fetch=True)
    assert member.paused == {(topic, 0), (topic, 1)}
    assert [work.offsets for work in commits.works] == [{(topic, 2): 1}]
    worker._guard.committed({(topic, 2): 1})
    worker._turn(fetch=True)
    assert member.paused == set()


class SingleCalls(InstantCalls):
    """Says when a call is begun while another one is open, and what is written down then."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.guard: Any = None

    def start(self, calls: list[Call]) -> None:
        assert len(calls) == 1
        assert not self._finished, "one call is open at a time"
        current = self.guard._state.current
        self.written.append(f"{current.partition}@{current.offset}")
        super().start(calls)


class SingleLongCalls(SingleCalls):
    """Each call stays open for three turns, in which more could be begun."""

    looks = 0

    def take_finished(self) -> list[Call]:
        self.looks += 1
        return super().take_finished() if self.looks % 3 == 0 else []


def careful_worker(
    flow: EngineFlow, member: Member, commits: Commits, calls: Any, monkeypatch: Any
) -> Any:
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    calls.guard = worker._guard
    for _ in range(4):
        worker._guard.start()
    assert worker._guard.careful
    return worker


def turn_until(worker: Any, commits: Commits, done: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if done():
            return
        worker._turn(fetch=True)
        if commits.busy and commits.outcome is None:
            commits.end(Outcome.COMMITTED)
    pytest.fail("it did not get there")


def test_a_careful_worker_has_one_record_open_and_fetches_many(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two open at a death the wrong one would be blamed, so each is written down before it is
    begun, alone. But to pause for each would cost a fetch for each: 100 requests need no pause."""
    member, commits, calls = Member(), Commits(), SingleLongCalls()
    worker = careful_worker(flow, member, commits, calls, monkeypatch)
    before = member.toggles
    for n in range(100):
        append_request(flow, member, f"o{n}")
    turn_until(worker, commits, lambda: worker._positions[0] == 100)
    assert member.toggles == before
    assert calls.written == [f"0@{n}" for n in range(100)]
    assert [list(work.offsets.values()) for work in commits.works] == [[n + 1] for n in range(100)]
    assert order_keys(commits.works, flow.topic("gateway-results")) == [
        key_of(f"o{n}") for n in range(100)
    ]


def test_a_careful_worker_stops_fetching_a_long_backlog_seldom(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is bounded, and goes down to half before it fetches again."""
    member, commits, calls = Member(), Commits(), SingleCalls()
    worker = careful_worker(flow, member, commits, calls, monkeypatch)
    monkeypatch.setattr(f"{GatewayWorker.__module__}.HELD_MAX", 20)
    before, most = member.toggles, 0
    for n in range(100):
        append_request(flow, member, f"o{n}")

    def done() -> bool:
        nonlocal most
        most = max(most, len(worker._held))
        return bool(worker._positions[0] == 100)

    turn_until(worker, commits, done)
    assert 10 < most <= 20
    assert member.toggles - before <= 2 * (100 // 10)


class SlowCalls(InstantCalls):
    """Slower than requests come: in every third turn a few end, in the order of their begin."""

    turns = 0

    def take_finished(self) -> list[Call]:
        self.turns += 1
        few = 5 if self.turns % 3 == 0 else 0
        ended, self._finished = self._finished[:few], self._finished[few:]
        return ended


@pytest.mark.slow
def test_requests_of_a_partition_do_not_wait_for_the_backlog_of_another(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client hands out what is there of partition 0 first, which is more than the worker may
    have open; a request of another partition is begun when its share of what is open allows."""
    member, commits, calls = Member(), Commits(), SlowCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    worker._tracked_max = 30
    topic = worker._stage.topic
    worker._on_assign(member, [TopicPartition(topic, partition) for partition in range(3)])
    for n in range(500):
        append_request(flow, member, f"o{n}")
    for n in range(20):
        append_request(flow, member, f"other{n}", partition=2)
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, worker._tracked)
        return bool(worker._positions[2] == 20)

    turn_until(worker, commits, done)
    assert worker._positions[0] < 200, "by far most of its backlog is still to come"
    assert most < 60, "what is open stays bounded"
    turn_until(worker, commits, lambda: worker._positions[0] == 500)


@pytest.mark.parametrize("why", ["rebalance", "aborted"])
def test_what_a_careful_worker_holds_is_read_again_by_whoever_comes_next(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Kept, it would be begun a second time behind what was read anew, or when it is another's."""
    member, commits, calls = Member(), Commits(), SingleCalls()
    worker = careful_worker(flow, member, commits, calls, monkeypatch)
    for n in range(5):
        append_request(flow, member, f"o{n}")
    turn_until(worker, commits, lambda: worker._positions[0] == 1)
    assert len(worker._held) > 0
    if why == "rebalance":
        # Another worker has had the partition, and has committed two more.
        member.committed[worker._stage.topic, 0] = 3
        member.rebalance.append(lambda: rebalance(worker, member))
        wanted = [1, 2, 4, 5]
    else:
        while not commits.busy:
            worker._turn(fetch=True)
        commits.end(Outcome.ABORTED)
        wanted = [1, 2, 2, 3, 4, 5]
    turn_until(worker, commits, lambda: worker._positions[0] == 5)
    assert [offset for work in commits.works for offset in work.offsets.values()] == wanted


def test_of_what_is_held_suspects_go_first_and_the_others_in_turn() -> None:
    """A partition that was fetched before does not stand between a suspect and its end."""
    held = HeldRequests()
    held.add(InputRecord("t", p, n, 0, None, None) for p in (0, 1, 2) for n in (7, 8))

    def out(*first: int) -> tuple[int, int]:
        (record,) = held.one(first)
        return record.partition, record.offset

    assert [out(2), out(2), out(2)] == [(2, 7), (2, 8), (0, 7)]
    assert [out(0, 1, 2) for _ in range(3)] == [(1, 7), (0, 8), (1, 8)]
    assert held.one({0}) == []


def test_a_worker_that_is_careful_no_more_begins_all_that_it_holds(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, before what it reads then."""
    member, commits, calls = Member(), Commits(), OpenCalls()
    worker = careful_worker(flow, member, commits, calls, monkeypatch)
    for n in range(5):
        append_request(flow, member, f"o{n}")
    for _ in range(3):
        worker._turn(fetch=True)
    assert len(calls.keys) == 1
    worker._guard._state.deaths = 0
    append_request(flow, member, "o5")
    worker._turn(fetch=True)
    assert [key.split(":")[1] for key in calls.keys] == [f"o{n}" for n in range(6)]
    assert len(worker._held) == 0


# A registry that is away -------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["payments", "gateway"])
def test_a_worker_that_is_told_to_stop_while_it_waits_for_offsets_takes_nothing(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """It goes on to drain, where it has nothing to wait for."""
    member, commits = Member(), Commits()
    worker: Any
    if stage == "payments":
        worker = payments_with(flow, member, commits, monkeypatch)
        given = [TopicPartition(topic, 0) for topic in inputs_of(flow)]
    else:
        worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
        given = [TopicPartition(flow.topic("payment-requests"), 0)]
    worker._on_revoke(member, given)
    worker._stop.set()
    member.said.clear()
    worker._on_assign(member, given)
    assert member.said == ["committed offsets"]
    worker._drain()
    assert not commits.busy


def test_a_worker_leaves_when_the_end_stays_unknown_while_a_registry_is_away(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not rewind over a transaction whose end it does not know: the commit that comes later
    would belong to nothing."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    worker._turn()
    append_order(flow, member, "o1")
    worker._turn()
    assert commits.busy

    def away(*_: object) -> None:
        raise RegistryUnavailable("no answer")

    monkeypatch.setattr(worker._stage, "handle", away)
    append_order(flow, member, "o2")
    with pytest.raises(LaneFatal, match="did not end"):
        worker._turn()
    assert worker._under_way is not None


def test_an_order_waits_for_a_registry_that_is_away(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither refused nor passed over: once a schema can be had it is asked for, once."""
    monkeypatch.setattr(table_worker, "REGISTRY_PAUSE_S", 0.0)
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    worker._turn()
    monkeypatch.setattr(worker._stage, "handle", AwayAtFirst(worker._stage.handle))
    append_order(flow, member, "o1")
    for _ in range(4):
        worker._turn()
    (work,) = commits.works
    assert work.offsets == {(flow.topic("orders"), 0): 1}
    assert order_keys([work], flow.topic("payment-requests")) == [key_of("o1")]
    assert order_keys([work], flow.topic("dead-letters")) == []


def test_a_request_waits_for_a_registry_that_is_away(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither refused nor passed over, and what came behind it is not committed before it."""
    monkeypatch.setattr(gateway_worker, "REGISTRY_PAUSE_S", 0.0)
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    monkeypatch.setattr(worker._stage, "plan", AwayAtFirst(worker._stage.plan))
    for n in range(2):
        append_request(flow, member, f"o{n}")
    for _ in range(4):
        worker._turn(fetch=True)
    (work,) = commits.works
    assert work.offsets == {(flow.topic("payment-requests"), 0): 2}
    assert order_keys([work], flow.topic("gateway-results")) == [key_of("o0"), key_of("o1")]
    assert order_keys([work], flow.topic("dead-letters")) == []


class AwayAtFirst:
    """What needs a schema that cannot be had when it is first asked for."""

    def __init__(self, does: Callable[..., Any]) -> None:
        self._does = does
        self._is_away = True

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._is_away:
            self._is_away = False
            raise RegistryUnavailable("no answer")
        return self._does(*arguments, **named)
