"""Positions moved over lost records: never under a worker's feet, never without their entry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.batches import readable
from pipeline.batches.readable import FirstSeen, first_seen, reading_places
from pipeline.cli import app
from pipeline.commands.positions_text import position_lines, positions_json
from pipeline.errors import UserError
from pipeline.kafka_wire import Malformed
from pipeline.runtime.positions.mover import (
    MOVE_ACTION,
    Act,
    Move,
    move_positions,
    require_empty,
)
from pipeline.runtime.positions.standing import Position
from pipeline.runtime.positions.stepping import Step, parse_place, plan_step
from schemas.codec import default_codec
from tests.support.cli_runner import CliRunner
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import ZSTD, produce_raw, record_bytes
from topics.catalogue import TopicSettings, build_catalogue

CATALOGUE = build_catalogue(TopicSettings(prefix="eu-"))
ACT = Act(MOVE_ACTION, "anna", "INC-42")
MOVE = Move("eu-orders", 3, position=10, to=25, begin=10)
# No frame of zstd at all.
NOT_ZSTD = b"\x28\xb5\x2f\xfd\xff\xff\xff"


class FakeGroup:
    """``later``: its members once the offsets are in the transaction."""

    name = "eu-payments"

    def __init__(self, *, later: Sequence[str] = (), committed: int = 10) -> None:
        self._members: Sequence[str] = later
        self._committed = committed

    def members(self) -> Sequence[str]:
        return self._members

    def committed(self, places: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        return dict.fromkeys(places, self._committed)

    @contextmanager
    def bystander(self) -> Iterator[Any]:
        yield SimpleNamespace(consumer_group_metadata=lambda: "no member")


class FakeProducer:
    """Writes down what it is asked for; ``fails`` at one of it."""

    def __init__(self, fails: str = "") -> None:
        self.asked: list[str] = []
        self.config: dict[str, Any] = {}
        self.values: list[bytes] = []
        self.offsets: list[TopicPartition] = []
        self._fails = fails

    def __call__(self, config: dict[str, Any]) -> FakeProducer:
        self.config = config
        return self

    def produce(self, topic: str, value: bytes, key: bytes) -> None:
        self._ask(f"produce {topic} {key.decode()}")
        self.values.append(value)

    def send_offsets_to_transaction(self, offsets: Any, metadata: Any, _timeout_s: float) -> None:
        self._ask("send_offsets")
        assert metadata == "no member"
        self.offsets = offsets

    def __getattr__(self, call: str) -> Any:
        return lambda *_: self._ask(call)

    def _ask(self, call: str) -> None:
        self.asked.append(call)
        if self._fails == call:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "nobody answers"))


def moved(producer: FakeProducer, group: FakeGroup | None = None) -> Any:
    return move_positions(
        "localhost:1",
        CATALOGUE,
        default_codec(),
        group or FakeGroup(),
        [MOVE],
        ACT,
        clock_ms=lambda: 1_000,
        make_producer=producer,
    )


def test_positions_and_their_entry_are_one_transaction() -> None:
    """Whatever it is killed at, no offset is moved without who, why and what was skipped."""
    producer = FakeProducer()
    entry = moved(producer)
    assert producer.asked == [
        "init_transactions",
        "begin_transaction",
        "produce eu-audit positions",
        "send_offsets",
        "commit_transaction",
    ]
    assert producer.offsets == [TopicPartition("eu-orders", 3, 25)]
    assert producer.config["transactional.id"] == "paystream/eu-/positions"
    told = default_codec().decoder("audit-entry")(producer.values[0])
    assert (told["actor"], told["reason"], told["action"]) == ("anna", "INC-42", MOVE_ACTION)
    assert json.loads(told["detail"]) == {
        "group": "eu-payments",
        "skipped": [{"topic": "eu-orders", "partition": 3, "from": 10, "to": 24}],
    }
    assert told["entry_id"] == entry.entry_id == moved(FakeProducer()).entry_id


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (FakeGroup(later=["n1 at 10.0.0.1"]), r"eu-payments has members by now \(n1 at 10\.0\.0"),
        (FakeGroup(committed=12), r"eu-orders\[3\] was 10 and is 12 now"),
    ],
    ids=["members", "another position"],
)
def test_a_worker_that_comes_meanwhile_is_left_where_it_is(group: FakeGroup, said: str) -> None:
    """Whether the broker would have refused the transaction is not relied on."""
    producer = FakeProducer()
    with pytest.raises(UserError, match=said):
        moved(producer, group)
    assert producer.asked[-2:] == ["send_offsets", "abort_transaction"]


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("init_transactions", "^Nothing was moved .nobody answers"),
        ("send_offsets", "^Nothing was moved .nobody answers"),
        ("commit_transaction", "^It is not certain that the positions were moved"),
    ],
)
def test_what_a_broker_does_not_take_is_one_sentence(fails: str, said: str) -> None:
    producer = FakeProducer(fails)
    with pytest.raises(UserError, match=said):
        moved(producer)
    assert ("abort_transaction" in producer.asked) == (fails != "init_transactions")


class Turns:
    """A clock that sleeping moves, and members that are gone after so many seconds."""

    def __init__(self, gone_s: float) -> None:
        self.now_s = 0.0
        self._gone_s = gone_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self) -> list[str]:
        said: list[str] = []
        group = SimpleNamespace(
            name="payments",
            members=lambda: ["n1 at 10.0.0.1"] if self.now_s < self._gone_s else [],
        )
        self.said = said
        require_empty(
            group,  # type: ignore[arg-type]  # what is asked of it is there
            said.append,
            monotonic_s=lambda: self.now_s,
            sleep=self.sleep,
        )
        return said


def test_the_place_of_a_worker_that_was_stopped_is_waited_for() -> None:
    """Brokers keep a static member's place for ten seconds; a person is told what is waited for."""
    assert Turns(gone_s=0).wait() == []
    said = Turns(gone_s=10).wait()
    assert len(said) == 5
    assert said[0].startswith(
        "the group payments has members (n1 at 10.0.0.1): waiting 12 s more, since the place"
    )


def test_a_stage_that_runs_is_refused() -> None:
    turns = Turns(gone_s=1_000)
    with pytest.raises(UserError, match=r"stop the stage on every machine first\. Nothing was m"):
        turns.wait()
    assert turns.now_s == 12


# Damaged batches --------------------------------------------------------------------------------

GOOD = record_bytes(b"shop:1", b"value")
GOOD_BATCH: tuple[bytes, dict[str, Any]] = GOOD, {}
DAMAGED: tuple[bytes, dict[str, Any]] = GOOD, {"damaged": True}
UNREADABLE: tuple[bytes, dict[str, Any]] = NOT_ZSTD, {"codec": ZSTD}
THREE = (
    b"".join(record_bytes(b"k", b"v", offset=n) for n in range(3)),
    {
        "damaged": True,
        "count": 3,
    },
)


def stepped(batches: Sequence[tuple[bytes, dict[str, Any]]], committed: int, offset: int) -> Step:
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    for records, how in batches:
        produce_raw(cluster.bootstrap_servers, "orders", records, **how)
    position = Position("orders", 0, committed, 0, 99)
    with reading_places(cluster.bootstrap_servers) as consumer:
        return plan_step(consumer, position, offset)


@pytest.mark.parametrize(
    ("batches", "committed", "offset", "begin", "to"),
    [
        ([GOOD_BATCH, DAMAGED, GOOD_BATCH], 1, 1, 1, 2),
        ([GOOD_BATCH, DAMAGED], 1, 1, 1, 2),
        ([GOOD_BATCH, THREE, GOOD_BATCH], 1, 1, 1, 4),
        ([GOOD_BATCH, THREE, GOOD_BATCH], 2, 1, 2, 4),
        ([GOOD_BATCH, DAMAGED, THREE, GOOD_BATCH], 1, 1, 1, 5),
        ([GOOD_BATCH, UNREADABLE, DAMAGED, GOOD_BATCH], 1, 1, 1, 3),
    ],
    ids=["one", "the last", "three records", "begun", "two after the other", "of two kinds"],
)
def test_the_position_goes_behind_what_cannot_be_read_and_over_nothing_else(
    batches: Sequence[tuple[bytes, dict[str, Any]]],
    committed: int,
    offset: int,
    begin: int,
    to: int,
) -> None:
    step = stepped(batches, committed, offset)
    assert step.move == Move("orders", 0, committed, to, begin)
    assert step.is_damaged == (batches[1] is not UNREADABLE)


def test_where_no_broker_tells_of_batches_each_offset_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where clients are let in by Kerberos only."""

    def refused(*_: Any) -> Any:
        raise Malformed("nothing is told")

    monkeypatch.setattr(readable, "batch_as_it_lies", refused)
    assert stepped([GOOD_BATCH, THREE, GOOD_BATCH], 1, 1).move.to == 4


def test_a_head_that_is_damaged_itself_is_not_believed_beyond_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        readable, "batch_as_it_lies", lambda *_: SimpleNamespace(last_offset=1_000_000)
    )
    assert stepped([GOOD_BATCH, DAMAGED], 1, 1).move.to == 2


@pytest.mark.parametrize(
    ("batches", "committed", "offset", "said"),
    [
        ([GOOD_BATCH, DAMAGED], 0, 1, r"has not come to orders\[0\]@1 yet: it stands at 0"),
        ([GOOD_BATCH, GOOD_BATCH], 1, 1, r"orders\[0\] can be read from the group's position 1"),
        ([DAMAGED, GOOD_BATCH, DAMAGED], 0, 2, r"position 0 on is the one at 0, and not at 2"),
        ([GOOD_BATCH], 1, 1, r"nothing lies in orders\[0\] from the group's position 1 on"),
    ],
    ids=["unread before it", "readable", "another", "the end"],
)
def test_nothing_that_can_be_read_is_stepped_over(
    batches: Sequence[tuple[bytes, dict[str, Any]]], committed: int, offset: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        stepped(batches, committed, offset)


def test_what_the_client_asked_for_behind_a_damaged_batch_is_not_said_of_the_next_place() -> None:
    """It reads on at a wrong place there, and is told so when it has been put elsewhere."""

    def told(offset: int, code: int | None = None) -> Any:
        error = None if code is None else KafkaError(code)
        return SimpleNamespace(offset=lambda: offset, error=lambda: error)

    lost = KafkaError._AUTO_OFFSET_RESET
    client = SimpleNamespace(assign=lambda _: None, unassign=lambda: None)
    messages = [told(1 << 56, lost), told(3), told(3, lost)]
    client.poll = lambda _timeout_s: messages.pop(0)
    assert first_seen(client, "orders", 0, 3) == FirstSeen(3)
    with pytest.raises(UserError, match=r"orders\[0\] cannot be read from 3"):
        first_seen(client, "orders", 0, 3)


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (Position("orders", 0, None, 0, 9), "`paystream topics apply`"),
        (Position("orders", 0, 1, 5, 9), "begins at 5 and ends at 9"),
        (Position("orders", 0, 10, 5, 9), "begins at 5 and ends at 9"),
    ],
)
def test_a_position_that_is_not_in_the_log_is_another_case(position: Position, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_step(Consumer({"group.id": "unused"}), position, 5)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("orders[3]@1042", ("orders", 3, 1042)),
        (" eu-orders[0]@0 ", ("eu-orders", 0, 0)),
        ("orders[3]", None),
        ("orders@3", None),
        ("orders[3]@", None),
        ("orders[3]@-1", None),
    ],
)
def test_a_place_is_written_as_workers_write_it(
    text: str, place: tuple[str, int, int] | None
) -> None:
    assert parse_place(text) == place


# What people read -------------------------------------------------------------------------------

FOUND = [
    ("payments", Position("orders", 0, 10, 25, 30)),
    ("payments", Position("orders", 1, 7, 0, 9)),
    ("payments", Position("orders", 2, None, 0, 9)),
    ("gateway", Position("payment-requests", 0, 12, 0, 9)),
]


def test_only_partitions_with_a_gap_are_told_unless_all_are_asked_for() -> None:
    assert list(position_lines(FOUND, everything=False)) == [
        "group     partition            position  first  end            gone",
        "payments  orders[0]                  10     25   30              15",
        "payments  orders[2]                none      0    9               0",
        "gateway   payment-requests[0]        12      0    9  beyond the end",
        "",
        "15 offsets of 1 partition gone unread; `paystream positions move` goes on behind them",
        "1 without a position: `paystream topics apply` commits where they begin",
        "payment-requests[0] ends at 9, before the position 12: the cluster lost records that it "
        "had acknowledged. Find out which before anything is moved",
    ]
    assert "payments  orders[1]" in "\n".join(position_lines(FOUND, everything=True))
    assert list(position_lines(FOUND[1:2], everything=False)) == ["nothing is gone in 1 partitions"]
    told = positions_json(FOUND, everything=False)
    assert told["gone"] == 15
    assert told["positions"][0] == {
        "group": "payments", "topic": "orders", "partition": 0,
        "position": 10, "first": 25, "end": 30, "gone": 15,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "--stage", "ledger"], r"docs/ledger\.md, \"When the sink refuses to go on\""),
        (["show", "--stage", "notifications"], "go on behind deleted events by themselves"),
        (["move", "--stage", "orders", "--reason", "x"], "There is no stage 'orders'"),
        (["move", "--reason", "x"], "Say whose position"),
        (["move", "--stage", "risk", "--reason", " "], "Say why with --reason"),
        (["show", "--stage", "risk", "--group", "x"], "contradict each other"),
        (["step-over", "orders-3-1042", "--reason", "x"], "names no place in a topic"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_cannot_be_meant_is_said_before_any_broker_is_asked(
    words: list[str], said: str
) -> None:
    found = CliRunner().invoke(app, ["positions", *words, "--bootstrap-servers", "127.0.0.1:1"])
    assert isinstance(found.exception, UserError)
    with pytest.raises(UserError, match=said):
        raise found.exception
