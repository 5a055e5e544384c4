"""After a death only what was under way is handled carefully; the record that kills is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.admission import InputLane
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.held_inputs import HELD_BYTES_MAX, HELD_MAX, HeldInputs
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.suspects import DEATHS_MAX, PIECE, PIECE_MAX, Suspects
from pipeline.runtime.work import Outcome
from tests.support.engine_fakes import Commits, Member, inputs_of, key_of, payments_with
from tests.support.engine_flow import EngineFlow

ORDERS, RESULTS = ("orders", 0), ("results", 0)
POISON = 700
LANES = (InputLane("results", "results"), InputLane("tier", "tier", delay_ms=1_000),
         InputLane("orders", "orders", gated=True))  # fmt: skip


def record(offset: int, tp: tuple[str, int] = ORDERS, at_ms: int = 0) -> InputRecord:
    return InputRecord(*tp, offset, at_ms, b"k", b"v")


def records(first: int, end: int, tp: tuple[str, int] = ORDERS) -> list[InputRecord]:
    return [record(offset, tp) for offset in range(first, end)]


def started(path: Path, orders: int = 0, results: int = 0) -> Suspects:
    """A process that starts on what the one before it left; where its partitions begin."""
    suspects = Suspects(path)
    suspects.start()
    suspects.assigned({ORDERS: orders, RESULTS: results})
    return suspects


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot" / "suspects.json"


def test_what_was_under_way_is_suspected_and_nothing_else(path: Path) -> None:
    """The batch in preparation and the one that commits; not what was committed before."""
    suspects = started(path)
    suspects.took(records(0, 50) + records(0, 3, RESULTS))
    suspects.committed({ORDERS: 50, RESULTS: 3})
    suspects.took(records(50, 80))
    suspects.took(records(80, 90))
    suspects = started(path, 50, 3)
    assert suspects
    assert (suspects.until(ORDERS), suspects.until(RESULTS)) == (90, 0)
    suspects.committed({ORDERS: 90})
    assert not suspects


def test_what_was_committed_although_the_process_died_is_no_suspect(path: Path) -> None:
    """The offsets say it."""
    suspects = started(path)
    suspects.took(records(0, 50) + records(0, 3, RESULTS))
    assert not started(path, 50, 3)


def test_an_orderly_end_suspects_nobody(path: Path) -> None:
    """A worker that leaves because the cluster is away, or is asked to stop."""
    suspects = started(path)
    suspects.took(records(0, 50))
    suspects.excused()
    assert not started(path)


def test_a_file_cut_off_by_a_crash_suspects_nobody(path: Path) -> None:
    """A damaged file costs the memory of it, not the start."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x00\x00\x00\x40[[")
    assert not started(path)


def lives(path: Path, dies_of: Callable[[InputRecord], bool]) -> tuple[int, list[int]]:
    """Process after process over 1,000 orders until one gets to the end: deaths, quarantined."""
    committed, deaths, quarantined = 0, 0, []
    while True:
        suspects = started(path, committed, 10_000)
        held = HeldInputs(LANES, suspects)
        waiting = [r for r in records(committed, 1_000) if not held.take(r)]
        dead = False
        while (committed < 1_000) and not dead:
            piece = held.next_piece(0, gate_open=True) if suspects else []
            if piece and suspects.is_condemned(piece[0]):
                quarantined.append(piece[0].offset)
            else:
                if not piece:
                    for _, behind in held.released():
                        waiting = [*behind, *waiting]
                    piece, waiting = waiting[:400], waiting[400:]
                suspects.took(piece)
                dead = any(dies_of(r) for r in piece)
            if not dead:
                committed = piece[-1].offset + 1
                suspects.committed({ORDERS: committed})
        if not dead:
            return deaths, quarantined
        deaths += 1
        assert deaths < 20


def test_a_record_that_kills_is_named_by_few_deaths_and_no_other(path: Path) -> None:
    """One death leaves a batch, the next a piece of it, three more the record alone."""
    deaths, quarantined = lives(path, lambda r: r.offset == POISON)
    assert quarantined == [POISON]
    assert deaths == 2 + DEATHS_MAX


def test_a_death_from_outside_quarantines_nobody(path: Path) -> None:
    """However often the process is killed, as long as it is not at one record each time."""
    killed = iter((5, 5, 300, 310, 311, 900, 900, 901))
    at = [next(killed)]

    def dies(r: InputRecord) -> bool:
        if r.offset != at[0]:
            return False
        at[0] = next(killed, -1)
        return True

    assert lives(path, dies) == (8, [])


def test_a_record_that_was_alone_by_chance_is_not_blamed_for_it(path: Path) -> None:
    """An idle flow has one record under way: only deaths of a suspect handled alone count."""
    for death in range(DEATHS_MAX + 1):
        suspects = started(path)
        assert not suspects.is_condemned(record(0)), death
        suspects.took([record(0)])
    assert started(path).is_condemned(record(0))


def test_records_that_were_each_the_only_one_of_their_partition_are_not_blamed(path: Path) -> None:
    """Nothing was alone: all of them may have been at it."""
    for _ in range(2 * DEATHS_MAX):
        suspects = started(path)
        suspects.took([record(0), record(0, RESULTS)])
    suspects = started(path)
    assert not suspects.is_condemned(record(0))
    assert not suspects.is_condemned(record(0, RESULTS))
    assert (suspects.until(ORDERS), suspects.until(RESULTS)) == (1, 1)


def test_a_death_beside_suspects_leaves_them_suspected(path: Path) -> None:
    """What has not had its turn yet is no better for a death of others."""
    started(path).took(records(0, 200))
    suspects = started(path)
    suspects.took(records(0, 10) + records(0, 5, RESULTS))
    suspects = started(path)
    assert (suspects.until(ORDERS), suspects.until(RESULTS)) == (200, 5)


def test_suspects_of_another_workers_partition_wait_for_it_to_come_back(path: Path) -> None:
    """And are gone when it comes back beyond them."""
    started(path).took(records(0, 10))
    suspects = Suspects(path)
    suspects.start()
    suspects.assigned({RESULTS: 0})
    assert not suspects
    suspects.assigned({RESULTS: 0, ORDERS: 10})
    assert not suspects
    suspects = Suspects(path)
    suspects.start()
    suspects.assigned({RESULTS: 0, ORDERS: 10})
    assert not suspects


# Held inputs -------------------------------------------------------------------------------------


def suspected(path: Path, *left: InputRecord) -> Suspects:
    started(path).took(left)
    return started(path)


def test_what_moved_away_does_not_keep_a_record_from_being_named(path: Path) -> None:
    """Of a partition that another worker has, nobody learns how far it came. It was taken for under
    way at each later death, so that nothing was ever alone, and the worker died for ever."""
    suspects = started(path)
    suspects.took(records(0, 100) + records(0, 100, RESULTS))
    deaths, piece = 0, records(0, 100)
    while not suspects.is_condemned(piece[0]) and deaths < 10:
        deaths += 1
        suspects.close()
        suspects = Suspects(path)
        suspects.start()
        suspects.assigned({ORDERS: 0})
        piece = records(0, suspects.until(ORDERS))[: suspects.piece(ORDERS)]
        suspects.took(piece)
    assert deaths == 3 + DEATHS_MAX


def test_what_moved_away_is_suspected_when_it_comes_back(path: Path) -> None:
    """Also after lives in which it did not, and unless it was committed meanwhile."""
    suspects = started(path)
    suspects.took(records(0, 100) + records(0, 100, RESULTS))
    for _ in range(2):
        suspects.close()
        suspects = Suspects(path)
        suspects.start()
        suspects.assigned({ORDERS: 100})
    suspects.assigned({ORDERS: 100, RESULTS: 40})
    assert (suspects.until(ORDERS), suspects.until(RESULTS)) == (0, 100)
    suspects.close()
    assert started(path, 100, 100).until(RESULTS) == 0


def test_a_death_before_anything_is_assigned_changes_nothing(path: Path) -> None:
    """A start that is killed while it joins says nothing of any record."""
    suspects = started(path)
    suspects.took([record(0)])
    for _ in range(3):
        suspects.close()
        suspects = Suspects(path)
        suspects.start()
    suspects.assigned({ORDERS: 0, RESULTS: 0})
    suspects.took([record(0)])
    suspects.close()
    again = started(path)
    assert again._suspects[ORDERS].deaths == 1


def test_what_an_abort_dropped_is_not_blamed_for_a_death(path: Path) -> None:
    """It is read again; until then it is not under way."""
    suspects = started(path)
    suspects.took([record(0)])
    suspects.forgot()
    suspects.close()
    assert not started(path)


def test_a_partition_is_paused_by_bytes_as_well_and_read_on(path: Path) -> None:
    """4,000 records of a megabyte are more memory than a worker has."""
    large = [
        InputRecord(*ORDERS, offset, 0, b"k", bytes(HELD_BYTES_MAX // 4)) for offset in range(6)
    ]
    suspects = suspected(path, *large, record(0, RESULTS))
    held = HeldInputs(LANES, suspects)
    for r in large[:4]:
        held.take(r)
        paused = held.overfull()
    assert paused == [ORDERS]
    assert held.is_paused(ORDERS)
    assert held.roomy() == []
    piece = held.next_piece(0, gate_open=True)
    assert [r.offset for r in piece] == [0, 1, 2, 3]
    assert held.roomy() == [ORDERS]
    assert not held.is_paused(ORDERS)


def test_what_lies_behind_a_suspect_waits_with_it_and_others_do_not(path: Path) -> None:
    """The order of a partition is kept; another partition is not held up."""
    suspects = suspected(path, record(0), record(1))
    held = HeldInputs(LANES, suspects)
    assert [held.take(r) for r in records(0, 4)] == [True] * 4
    assert held.take(record(0, ("tier", 0))) is False
    assert held.take(record(0, ("orders", 1))) is False
    assert [r.offset for r in held.next_piece(0, gate_open=True)] == [0]
    suspects.committed({ORDERS: 1})
    assert list(held.released()) == []
    assert [r.offset for r in held.next_piece(0, gate_open=True)] == [1]
    assert held.next_piece(0, gate_open=True) == []
    suspects.committed({ORDERS: 2})
    ((tp, behind),) = held.released()
    assert (tp, [r.offset for r in behind]) == (ORDERS, [2, 3])
    assert not held


def test_a_suspect_that_is_gone_from_the_log_holds_nobody_up(path: Path) -> None:
    """Deleted by retention meanwhile: what comes next is no suspect."""
    suspects = suspected(path, *records(0, 3))
    held = HeldInputs(LANES, suspects)
    assert [held.take(r) for r in (record(0), record(7), record(8))] == [True] * 3
    assert [r.offset for r in held.next_piece(0, gate_open=True)] == [0]
    suspects.committed({ORDERS: 1})
    ((_, behind),) = held.released()
    assert [r.offset for r in behind] == [7, 8]
    assert not suspects


def test_a_batch_is_tried_partition_by_partition(path: Path) -> None:
    """Nearly always nothing in it was to blame: piece by piece it took minutes of a slow cluster.
    Another death is of one partition, and leaves it in pieces; the others stay as they were."""
    orders, results = records(0, PIECE_MAX + 200), records(0, 200, RESULTS)
    suspects = suspected(path, *orders, *results)
    held = HeldInputs(LANES, suspects)
    for r in (*orders, *results):
        held.take(r)
    pieces = [held.next_piece(0, gate_open=True) for _ in range(3)]
    assert [(p[0].topic, p[0].offset, len(p)) for p in pieces] == [
        ("orders", 0, PIECE_MAX), ("results", 0, 200), ("orders", PIECE_MAX, 200)
    ]  # fmt: skip
    suspects.took(pieces[1])
    suspects.close()
    after = started(path)
    assert [(after.until(tp), after.piece(tp)) for tp in (ORDERS, RESULTS)] == [
        (PIECE_MAX + 200, PIECE_MAX), (200, PIECE)
    ]  # fmt: skip


def test_pieces_take_partitions_in_turn(path: Path) -> None:
    """None waits for all of another."""
    size = 2 * PIECE_MAX
    suspects = suspected(path, *records(0, size), *records(0, size, RESULTS))
    held = HeldInputs(LANES, suspects)
    for r in (*records(0, size), *records(0, size, RESULTS)):
        held.take(r)
    pieces = [held.next_piece(0, gate_open=True) for _ in range(4)]
    assert [(p[0].topic, p[0].offset) for p in pieces] == [
        ("orders", 0), ("results", 0), ("orders", PIECE_MAX), ("results", PIECE_MAX)
    ]  # fmt: skip


def test_suspects_wait_for_their_time_and_their_gate(path: Path) -> None:
    """A tier's record is never early, and new orders stay held back."""
    tier = ("tier", 0)
    started(path).took([record(0), record(0, tier)])
    suspects = Suspects(path)
    suspects.start()
    suspects.assigned({ORDERS: 0, tier: 0})
    held = HeldInputs(LANES, suspects)
    held.take(record(0))
    held.take(record(0, tier, at_ms=5_000))
    assert held.next_piece(5_999, gate_open=False) == []
    assert [r.topic for r in held.next_piece(6_000, gate_open=False)] == ["tier"]
    assert [r.topic for r in held.next_piece(6_000, gate_open=True)] == ["orders"]


def test_a_partition_that_is_held_is_paused_before_it_fills_the_memory(path: Path) -> None:
    """What comes behind a suspect is bounded."""
    held = HeldInputs(LANES, suspected(path, record(0)))
    for r in records(0, HELD_MAX - 1):
        held.take(r)
    assert held.overfull() == []
    held.take(record(HELD_MAX))
    assert held.overfull() == [ORDERS]


# The worker --------------------------------------------------------------------------------------


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)


def test_only_suspects_go_alone_and_what_is_due_goes_with_the_others(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker was killed while three orders were under way: after its start each of them has a
    transaction of its own, results and timers have theirs in between, all in one, and what came
    behind the suspects is handled once and in order."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    orders = flow.topic("orders")
    dead.took([InputRecord(orders, 0, offset, 0, b"k", b"v") for offset in range(3)])
    dead.close()

    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
    for n in range(6):
        order = flow.order(f"o{n}")
        member.append(orders, key_of(f"o{n}"), flow.encode("order", order))
    timers = flow.topic("payment-retry-1")
    for n in range(5):
        due = flow.encode("payment-due", flow.due(flow.order(f"x{n}"), "retry"))
        member.append(timers, key_of(f"x{n}"), due, age_ms=3_600_000)
    seen: list[dict[str, int]] = []
    for _ in range(40):
        worker._turn()
        if commits.busy and commits.outcome is None:
            offsets = {topic: offset for (topic, _), offset in commits.works[-1].offsets.items()}
            seen.append(offsets)
            commits.end(Outcome.COMMITTED)
    assert seen == [{orders: 1}, {timers: 5}, {orders: 2}, {orders: 3}, {orders: 6}]
    assert not worker._suspects
    assert not worker._held


def test_suspects_have_half_of_the_time_beside_a_backlog(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full batch of others takes a second, a piece of suspects a tenth of one. In turn with them
    the suspects' partition, and all that lay behind them, stood for minutes."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    results, orders = flow.topic("gateway-results"), flow.topic("orders")
    dead.took([InputRecord(results, 0, offset, 0, b"k", b"v") for offset in range(20 * PIECE)])
    dead.close()
    member, commits = Member(), Commits()
    policy = CommitPolicy(records_max=10, age_ms_max=0)
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True, commit_policy=policy)
    result = flow.encode("gateway-result", flow.result(flow.order("x")))
    for _ in range(20 * PIECE):
        member.append(results, key_of("x"), result)
    now_s = 0.0
    monkeypatch.setattr(worker, "_monotonic_s", lambda: now_s)
    took_s = {results: 0.0, orders: 0.0}
    number = 0
    while worker._suspects:
        for _ in range(10):
            number += 1
            order = flow.order(f"o{number}")
            member.append(orders, key_of(order.order_id), flow.encode("order", order))
        worker._turn()
        if commits.busy and commits.outcome is None:
            ((topic, _),) = commits.works[-1].offsets
            spent_s = 0.125 if topic == results else 1.0
            now_s += spent_s
            took_s[topic] += spent_s
            commits.end(Outcome.COMMITTED)
    assert took_s[results] == 20 * 0.125
    assert 2 <= took_s[orders] <= 5


def test_more_suspects_than_are_held_at_a_time_all_come_to_their_turn(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two full batches of one partition were under way. It was paused when enough was held, and
    read on only behind its suspects: it stood for good."""
    results = flow.topic("gateway-results")
    result = flow.encode("gateway-result", flow.result(flow.order("x")))
    count = 2 * HELD_MAX + 100
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    dead.took([InputRecord(results, 0, offset, 0, b"k", b"v") for offset in range(2 * HELD_MAX)])
    dead.close()
    member, commits = Member(), Commits()
    for _ in range(count):
        member.append(results, key_of("x"), result)
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
    for _ in range(2_000):
        worker._turn()
        if commits.busy and commits.outcome is None:
            commits.end(Outcome.COMMITTED)
        if worker._positions[results, 0] == count:
            break
    assert worker._positions[results, 0] == count
    assert not member.paused


def test_suspects_that_always_fail_do_not_starve_the_others(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is read again after an abort, and then the others come first."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    results, orders = flow.topic("gateway-results"), flow.topic("orders")
    dead.took([InputRecord(results, 0, 0, 0, b"k", b"v")])
    dead.close()
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
    result = flow.encode("gateway-result", flow.result(flow.order("x")))
    member.append(results, key_of("x"), result)
    member.append(orders, key_of("o"), flow.encode("order", flow.order("o")))
    for _ in range(40):
        worker._turn()
        if commits.busy and commits.outcome is None:
            of_suspects = {topic for topic, _ in commits.works[-1].offsets} == {results}
            commits.end(Outcome.ABORTED if of_suspects else Outcome.COMMITTED)
    assert worker._positions == {**worker._positions, (orders, 0): 1, (results, 0): 0}


def test_the_log_says_when_suspects_begin_and_when_they_are_behind(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies behind them waits meanwhile: whoever looks for the reason reads it there."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    orders = flow.topic("orders")
    dead.took([InputRecord(orders, 0, 0, 0, b"k", b"v"), InputRecord("t.away", 7, 0, 0, b"", b"")])
    dead.close()
    member, commits = Member(), Commits()
    with caplog.at_level("INFO", "pipeline.runtime.table_worker"):
        worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
        member.append(orders, key_of("o"), flow.encode("order", flow.order("o")))
        for _ in range(10):
            worker._turn()
            if commits.busy and commits.outcome is None:
                commits.end(Outcome.COMMITTED)
    said = [r.getMessage() for r in caplog.records if "death" in r.message or "died" in r.message]
    assert ["1 input partitions" in said[0], "is past" in said[1]] == [True, True]
    assert len(said) == 2


def test_suspects_do_not_wait_for_a_batch_that_would_fill(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing joins the batch before them, so it would never be full, and they would never be
    handled."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    orders, results = flow.topic("orders"), flow.topic("gateway-results")
    dead.took([InputRecord(orders, 0, 0, 0, b"k", b"v")])
    dead.close()
    member, commits = Member(), Commits()
    policy = CommitPolicy(records_max=3, age_ms_max=0)
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True, commit_policy=policy)

    def append_results(*numbers: int) -> None:
        for n in numbers:
            result = flow.encode("gateway-result", flow.result(flow.order(f"x{n}")))
            member.append(results, key_of(f"x{n}"), result)

    worker._turn()
    append_results(0)
    worker._turn()
    append_results(1)
    worker._turn()
    member.append(orders, key_of("o"), flow.encode("order", flow.order("o")))
    append_results(2, 3, 4)
    for _ in range(8):
        if commits.busy and commits.outcome is None:
            commits.end(Outcome.COMMITTED)
        worker._turn()
    assert [sorted(work.offsets.values()) for work in commits.works] == [[1], [2], [1], [5]]


def test_while_suspects_are_handled_nothing_else_is_under_way(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a death could be another's. The file says so to the next process, and of ordinary
    batches it names every partition."""
    path = flow.spec("payments").slot_dir / "suspects.json"
    dead = Suspects(path)
    dead.start()
    orders, timers = flow.topic("orders"), flow.topic("payment-retry-1")
    dead.took([InputRecord(orders, 0, offset, 0, b"k", b"v") for offset in range(4)])
    dead.close()
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
    for n in range(8):
        member.append(orders, key_of(f"o{n}"), flow.encode("order", flow.order(f"o{n}")))
    alone, beside = 0, 0
    for turn in range(120):
        # Something ordinary is always at hand.
        due = flow.encode("payment-due", flow.due(flow.order(f"x{turn}"), "retry"))
        member.append(timers, key_of(f"x{turn}"), due, age_ms=3_600_000)
        worker._turn()
        written = {each.topic for each in left_by(path)}
        if worker._alone:
            assert written == {orders}
            assert {topic for work in commits.works[-1:] for topic, _ in work.offsets} == {orders}
            alone += 1
        elif worker._batch is not None:
            assert timers in written
            beside += 1
        if commits.busy and commits.outcome is None and turn % 3 == 0:
            commits.end(Outcome.COMMITTED)
    assert alone >= 4
    assert beside >= 4
    assert not worker._held


def test_a_worker_waits_for_suspects_that_commit_instead_of_turning(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ordinary orders at hand, which may not begin beside them, its loop went round without a
    pause for as long as the transaction took, and took the core from the commit."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    orders = flow.topic("orders")
    dead.took([InputRecord(orders, 0, 0, 0, b"k", b"v")])
    dead.close()
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
    member.append(orders, key_of("o0"), flow.encode("order", flow.order("o0")))
    worker._turn()
    due = flow.encode("payment-due", flow.due(flow.order("x"), "retry"))
    member.append(flow.topic("payment-retry-1"), key_of("x"), due, age_ms=3_600_000)
    while not worker._alone:
        worker._turn()
    assert commits.busy
    waits: list[float] = []
    monkeypatch.setattr(commits, "wait", waits.append)
    monkeypatch.setattr(member, "consume", None)
    for _ in range(3):
        worker._turn()
    assert len(waits) == 3, "each turn waits for the end, and asks for nothing else"


def left_by(path: Path) -> list[Any]:
    """What a process that dies now leaves behind."""
    read = Suspects(path)
    read.start()
    read.close()
    return read._left


def test_a_failed_transaction_of_suspects_is_tried_again(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held records are read again with all others; nothing is skipped, nothing done twice."""
    dead = Suspects(flow.spec("payments").slot_dir / "suspects.json")
    dead.start()
    orders = flow.topic("orders")
    dead.took([InputRecord(orders, 0, 0, 0, b"k", b"v")])
    dead.close()
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, suspects=True)
    for n in range(3):
        member.append(orders, key_of(f"o{n}"), flow.encode("order", flow.order(f"o{n}")))
    outcomes = iter([Outcome.ABORTED, Outcome.COMMITTED, Outcome.COMMITTED])
    for _ in range(20):
        worker._turn()
        if commits.busy and commits.outcome is None:
            commits.end(next(outcomes))
    said: list[Any] = [list(work.offsets.values()) for work in commits.works]
    assert said == [[1], [1], [3]]
    assert [topic for topic in inputs_of(flow) if worker._admission.buffered(topic)] == []
