"""Callbacks in a database: kept once, in order of each payment, with what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from consumers.notifier.callback import Callback
from consumers.notifier.database import open_callbacks
from consumers.notifier.deliverer import judge
from consumers.notifier.patience import (
    RETRY_AFTER_S_MAX,
    TRIES_MAX,
    TROUBLE_AFTER,
    Condition,
    patience_ms,
    retry_after_s,
    wait_ms,
)
from consumers.notifier.sender import DELIVERED, GONE, REFUSED, TIMED_OUT, Delivery
from consumers.notifier.store import GIVEN_UP, WAITING, CallbackStore, Head
from pipeline.errors import UserError

NOW = 1_790_000_000_000
HOUR = 3_600_000
LANES = (0, 1)


def callback(payment: str = "p1", sequence: int = 1, endpoint: str = "e", **more: Any) -> Callback:
    fields: dict[str, Any] = {
        "endpoint": endpoint,
        "event_id": f"{payment}-{sequence}",
        "merchant_id": "shop",
        "order_id": payment,
        "payment_id": payment,
        "sequence": sequence,
        "type": "captured",
        "lane": 0,
        "occurred_at_ms": NOW + sequence,
        "body": b"{}",
        **more,
    }
    return Callback(**fields)


def delivery(outcome: str, **more: Any) -> Delivery:
    return Delivery(outcome=outcome, at_ms=NOW, took_ms=10, **more)


class StoreSuite:
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def engine(self, url: str) -> Iterator[Engine]:
        engine = open_callbacks(url)
        yield engine
        engine.dispose()

    @pytest.fixture
    def store(self, engine: Engine) -> CallbackStore:
        return CallbackStore(engine)

    def keep(self, store: CallbackStore, *new: Callback, offset: int = 1) -> None:
        store.take(list(new), "cluster", "topic", {0: offset}, NOW)

    def heads(self, store: CallbackStore, at_ms: int = NOW, endpoint: str = "e") -> list[Head]:
        return store.due(endpoint, LANES, at_ms, 10)

    def ids(self, store: CallbackStore, at_ms: int = NOW, endpoint: str = "e") -> list[str]:
        return [head.event_id for head in self.heads(store, at_ms, endpoint)]

    def end(self, store: CallbackStore, head: Head, outcome: str, **more: Any) -> None:
        store.record([judge(head, delivery(outcome, **more), first_ms=5_000)])

    def test_an_event_that_is_read_twice_is_kept_once(self, store: CallbackStore) -> None:
        """Redelivery from the topic makes no second callback and undoes nothing; the position only
        moves forwards."""
        self.keep(store, callback(), callback(endpoint="f"), offset=7)
        (head,) = self.heads(store)
        self.end(store, head, DELIVERED)
        self.keep(store, callback(), callback(endpoint="f"), offset=3)
        assert self.ids(store) == []
        assert self.ids(store, endpoint="f") == ["p1-1"]
        assert store.next_offset("cluster", "topic", 0) == 7
        assert store.next_offset("cluster", "made anew", 0) is None

    def test_callbacks_and_their_offset_are_kept_together(self, store: CallbackStore) -> None:
        """What breaks on the way leaves neither: the events are read again."""
        broken = callback(merchant_id=None)
        with pytest.raises(Exception, match="merchant_id"):
            self.keep(store, callback(), broken, offset=9)
        assert self.ids(store) == []
        assert store.next_offset("cluster", "topic", 0) is None

    def test_a_payments_events_come_one_after_the_other(self, store: CallbackStore) -> None:
        """The second waits while the first has not ended, also while that waits for its next try;
        other payments and other endpoints go on."""
        self.keep(store, callback(sequence=2), callback(sequence=1), callback("p2", 5))
        self.keep(store, callback(endpoint="f", sequence=2))
        assert self.ids(store) == ["p1-1", "p2-5"]
        assert self.ids(store, endpoint="f") == ["p1-2"]
        first = self.heads(store)[0]
        self.end(store, first, TIMED_OUT)
        assert self.ids(store) == ["p2-5"]
        # One that comes now waits as well, and is not even looked at before.
        self.keep(store, callback(sequence=3))
        assert store.waiting(LANES)["e"][:2] == (4, NOW)
        due_ms = NOW + 10 + wait_ms(1, 5_000)
        assert self.ids(store, due_ms) == ["p2-5", "p1-1"]
        self.end(store, self.heads(store, due_ms)[1], DELIVERED)
        assert self.ids(store, due_ms) == ["p2-5", "p1-2"]
        assert self.ids(store, NOW + 10) == ["p2-5", "p1-2"], "it waited only for the first"

    def test_what_waits_behind_another_is_not_looked_at_before(self, store: CallbackStore) -> None:
        """A dead endpoint's many callbacks cost no query until the first of them is due again."""
        self.keep(store, callback(sequence=1), callback(sequence=2))
        self.end(store, self.heads(store)[0], TIMED_OUT)
        self.keep(store, callback(sequence=3))
        assert store.waiting(LANES)["e"][:2] == (3, NOW + 10 + wait_ms(1, 5_000))

    def test_a_twin_that_fails_after_a_delivery_lets_the_next_one_go(
        self, store: CallbackStore
    ) -> None:
        """Two workers had the try open, as when a partition moves: once it is delivered, the
        failure of the other holds nobody up."""
        self.keep(store, callback(sequence=1), callback(sequence=2))
        (head,) = self.heads(store)
        self.end(store, head, DELIVERED)
        self.end(store, head, TIMED_OUT)
        assert self.ids(store, NOW + 10) == ["p1-2"]

    def test_what_a_twin_gave_up_may_have_been_delivered(self, store: CallbackStore) -> None:
        """The last try was open twice: the receiver took one, and the other timed out first."""
        self.keep(store, callback())
        (head,) = self.heads(store)
        self.end(store, head, GONE, status=410)
        self.end(store, head, DELIVERED)
        assert store.find()[0]["state"] == "delivered"

    def test_what_is_sent_again_does_not_wait_for_a_later_one(self, store: CallbackStore) -> None:
        """The try of a later event of the payment was open when somebody asked for it."""
        self.keep(store, callback(sequence=1), callback(sequence=2))
        self.end(store, self.heads(store)[0], DELIVERED)
        (head,) = self.heads(store, NOW + 10)
        store.resend([("e", "p1-1")], "alice", NOW + 20)
        self.end(store, head, TIMED_OUT)
        assert self.ids(store, NOW + 20) == ["p1-1"]

    @pytest.mark.parametrize("outcome", [DELIVERED, GONE, TIMED_OUT])
    def test_what_began_before_it_was_asked_for_again_ends_nothing(
        self, store: CallbackStore, outcome: str
    ) -> None:
        """A person asks while a try is open, and its answer comes late: the callback is sent all
        the same, from the first try and at once. So is what follows it, in its order."""
        self.keep(store, callback(sequence=1), callback(sequence=2))
        (head,) = self.heads(store)
        store.resend([("e", "p1-1")], "alice", NOW + 5)
        late = judge(head, delivery(outcome, detail="x" * 400), first_ms=5_000)
        assert store.record([late]) == [late]
        assert self.ids(store, NOW + 5) == ["p1-1"]
        (again,) = self.heads(store, NOW + 5)
        assert (again.tries, again.resends) == (0, 1)
        log = store.deliveries_of(["p1-1"])["e", "p1-1"]
        assert [row["outcome"] for row in log] == ["resend_asked", outcome]
        self.end(store, again, DELIVERED)
        assert self.ids(store, NOW + 10) == ["p1-2"]
        assert store.record([late]) == [late], "nor does it when the other has ended"
        assert store.find(event="p1-1")[0]["state"] == "delivered"

    def test_a_delivery_that_began_before_is_told_apart_in_the_log(
        self, store: CallbackStore
    ) -> None:
        self.keep(store, callback())
        (head,) = self.heads(store)
        store.resend([("e", "p1-1")], "alice", NOW)
        self.end(store, head, REFUSED, detail="busy")
        (again,) = self.heads(store)
        self.end(store, again, REFUSED, detail="busy")
        assert [row["detail"] for row in store.deliveries_of(["p1-1"])["e", "p1-1"]] == [
            "alice", "begun before it was asked for again; busy", "busy",
        ]  # fmt: skip

    def test_a_database_of_before_is_brought_forward(self, engine: Engine, url: str) -> None:
        """As version 1 made it, with what waits in it, also where two processes open it."""
        self.keep(CallbackStore(engine), callback())
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE callbacks DROP COLUMN resends")
            connection.exec_driver_sql("ALTER TABLE callbacks DROP COLUMN kept_ms")
            connection.exec_driver_sql("DROP TABLE callback_troubles")
            connection.exec_driver_sql("UPDATE callback_schema_version SET version = 1")
        with ThreadPoolExecutor(2) as both:
            opened = list(both.map(open_callbacks, [url, url]))
        store = CallbackStore(opened[0])
        (head,) = self.heads(store)
        assert head.resends == 0
        assert store.waiting(LANES)["e"] == (1, NOW, NOW + 1, NOW)
        self.end(store, head, TIMED_OUT)
        store.resend([("e", "p1-1")], "alice", NOW)
        assert [head.resends for head in self.heads(CallbackStore(opened[1]))] == [1]
        for each in opened:
            each.dispose()

    def test_a_database_of_a_later_version_is_left_alone(self, engine: Engine, url: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE callback_schema_version SET version = 99")
        with pytest.raises(UserError, match="have schema version 99"):
            open_callbacks(url)

    def test_what_is_given_up_lets_the_next_one_go(self, store: CallbackStore) -> None:
        """One event that a receiver never takes does not silence its payment for ever."""
        self.keep(store, callback(sequence=1), callback(sequence=2))
        self.end(store, self.heads(store)[0], GONE, status=410)
        assert self.ids(store) == ["p1-2"]
        (row,) = store.find(state=GIVEN_UP)
        assert (row["event_id"], row["tries"]) == ("p1-1", 1)

    def test_only_the_lanes_and_payments_that_were_asked_for(self, store: CallbackStore) -> None:
        """A worker delivers its own partitions, and nothing twice at the same time."""
        self.keep(store, callback("p1", lane=0), callback("p2", lane=2))
        assert self.ids(store) == ["p1-1"]
        assert store.due("e", (2,), NOW, 10)[0].event_id == "p2-1"
        assert store.due("e", (0, 2), NOW, 10, under_way={"p1", "p2"}) == []

    def test_the_log_tells_every_delivery(self, store: CallbackStore) -> None:
        """Tries, outcomes, status codes and who asked for a repetition, the oldest first."""
        self.keep(store, callback())
        self.end(store, self.heads(store)[0], REFUSED, status=503, detail="busy")
        later = NOW + 3_600_000
        self.end(store, self.heads(store, later)[0], DELIVERED, status=200)
        store.resend([("e", "p1-1")], "alice", later)
        (head,) = self.heads(store, later)
        assert (head.event_id, head.tries) == ("p1-1", 0)
        log = store.deliveries_of(["p1-1"])["e", "p1-1"]
        assert [(row["try_number"], row["outcome"], row["status"]) for row in log] == [
            (1, "refused", 503),
            (2, "delivered", 200),
            (0, "resend_asked", None),
        ]
        assert log[2]["detail"] == "alice"

    def test_what_ended_long_ago_is_forgotten_and_what_waits_is_not(
        self, store: CallbackStore
    ) -> None:
        """The database does not grow for ever."""
        self.keep(store, callback("p1"), callback("p2"))
        self.end(store, self.heads(store)[0], DELIVERED)
        assert store.forget(NOW) == 0
        assert store.forget(NOW + 1_000) == 1
        assert [row["event_id"] for row in store.find()] == ["p2-1"]
        assert store.deliveries_of(["p1-1"]) == {}

    def test_an_endpoint_that_is_gone_is_given_up_after_a_while(self, store: CallbackStore) -> None:
        """Its callbacks wait for three days in case its table comes back, then they end."""
        self.keep(store, callback(endpoint="gone"), callback())
        assert store.give_up_forgotten(["e"], NOW, NOW) == 0
        assert store.give_up_forgotten(["e"], NOW + 1, NOW) == 1
        assert [row["state"] for row in store.find(endpoint="gone")] == [GIVEN_UP]
        assert store.give_up_forgotten(["e"], NOW + 1, NOW) == 0
        (said,) = store.deliveries_of(["p1-1"])["gone", "p1-1"]
        assert (said["try_number"], said["outcome"]) == (0, "given_up")
        assert said["detail"] == "after 0 tries: its endpoint is not configured any more"
        assert self.ids(store) == ["p1-1"]

    def fail(self, store: CallbackStore, at_ms: int, outcome: str = TIMED_OUT) -> None:
        """One try of p1's callback, whatever is due."""
        (row,) = store.find(event="p1-1")
        head = Head(endpoint="e", event_id="p1-1", payment_id="p1", sequence=1, type="captured",
                    tries=row["tries"], body=b"", resends=row["resends"])  # fmt: skip
        said = Delivery(outcome=outcome, at_ms=at_ms, took_ms=10)
        store.record([judge(head, said, first_ms=5_000, tries_max=100)])

    def overdue(self, store: CallbackStore, at_ms: int, under_way: tuple[str, ...] = ()) -> int:
        return store.give_up_overdue("e", LANES, 29 * HOUR, at_ms, under_way)

    def test_many_callbacks_of_a_dead_endpoint_end_when_their_time_is_over(
        self, store: CallbackStore
    ) -> None:
        """Though it is tried too seldom for each to have its tries: the log has how many it had. A
        later one, another lane's and what is under way stay."""
        self.keep(store, callback(), callback("p2"), callback("p3"), callback("q", lane=7))
        for hours in range(0, 30, 4):
            self.fail(store, NOW + hours * HOUR)
        store.take([callback("later")], "cluster", "topic", {0: 2}, NOW + HOUR)
        assert self.overdue(store, NOW + 29 * HOUR - 1) == 0
        assert self.overdue(store, NOW + 29 * HOUR, ("p3",)) == 2
        assert {row["event_id"] for row in store.find(state=GIVEN_UP)} == {"p1-1", "p2-1"}
        log = store.deliveries_of(["p1-1", "p2-1"])
        (said,) = log["e", "p2-1"]
        assert (said["try_number"], said["outcome"]) == (0, "given_up")
        assert said["detail"] == (
            "after 0 tries: the time for all of them is over, and its endpoint has taken nothing "
            "since 2026-09-21 14:13:20"
        )
        assert log["e", "p1-1"][-1]["detail"].startswith("after 8 tries: ")
        assert self.overdue(store, NOW + 29 * HOUR) == 1, "p3, once it is not under way any more"
        store.resend([("e", "p2-1")], "alice", NOW + 29 * HOUR)
        assert self.overdue(store, NOW + 29 * HOUR) == 0, "who asks again gives it all its time"

    def test_callbacks_are_old_for_another_reason_than_a_dead_endpoint(
        self, store: CallbackStore
    ) -> None:
        """It takes something, or it was not tried for hours (paused, or no worker ran): nobody's
        time is over."""
        self.keep(store, callback(), callback("p2"))
        assert self.overdue(store, NOW + 40 * HOUR) == 0, "no try has failed"
        for hours in (*range(0, 29, 4), 34, 38, 42, 46, 50):
            self.fail(store, NOW + hours * HOUR)
        assert self.overdue(store, NOW + 50 * HOUR) == 0, "nobody tried between 28 and 34"
        for hours in range(54, 63, 4):
            self.fail(store, NOW + hours * HOUR)
        assert self.overdue(store, NOW + 62 * HOUR + 6 * HOUR) == 0, "nor since 62"
        self.fail(store, NOW + 63 * HOUR, DELIVERED)
        assert self.overdue(store, NOW + 63 * HOUR) == 0, "it has taken one"
        assert store.find(state=GIVEN_UP) == []


class TestSqlite(StoreSuite):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'callbacks.sqlite'}"


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "mysql://host/name"])
def test_a_database_that_cannot_be_used_is_named(url: str) -> None:
    """One sentence instead of a traceback."""
    with pytest.raises(UserError, match=r"sqlite:////absolute/path\.db"):
        open_callbacks(url)


def test_waits_grow_to_four_hours_and_end_after_a_day() -> None:
    """Seconds for a hiccup, minutes for a deployment, hours for a night; then a person."""
    waits = [wait_ms(tries, 5_000) // 1000 for tries in range(1, TRIES_MAX)]
    assert waits == [5, 60, 600, 3_600, *[14_400] * 7]
    assert 24 < sum(waits) / 3_600 < 36
    assert 29 * HOUR < patience_ms(5_000, TRIES_MAX, 10_000) < 30 * HOUR


def test_a_receiver_may_ask_for_patience_within_bounds() -> None:
    """Retry-After makes a wait longer, never shorter, and not for ever."""
    assert wait_ms(1, 5_000, 120) == 120_000
    assert wait_ms(2, 5_000, 1) == 60_000
    assert wait_ms(1, 5_000, 10**8) == RETRY_AFTER_S_MAX * 1000
    assert retry_after_s(" 17 ") == 17
    assert [retry_after_s(odd) for odd in (None, "soon", "-1", "9" * 30)] == [None] * 4


def test_the_last_try_ends_it() -> None:
    """A callback is tried so often and then given up; gone ends it at once."""
    head = Head(endpoint="e", event_id="1", payment_id="p", sequence=1, type="t", tries=1, body=b"")
    again = judge(head, delivery(TIMED_OUT), first_ms=100, tries_max=3)
    assert (again.state, again.due_ms) == (WAITING, NOW + 10 + 1_200)
    assert judge(head, delivery(TIMED_OUT), first_ms=100, tries_max=2).state == GIVEN_UP
    assert judge(head, delivery(GONE), first_ms=100).state == GIVEN_UP


def test_an_endpoint_in_trouble_is_left_alone_and_then_tried_by_one() -> None:
    """It holds no more than one open delivery, with growing rests, until something arrives."""
    condition = Condition()
    assert condition.room(4, 0.0) == 1, "it has not taken anything yet"
    condition.delivered()
    assert condition.room(4, 0.0) == 4
    for _ in range(TROUBLE_AFTER):
        condition.failed(100.0)
    assert condition.room(4, 100.1) == 0
    assert condition.room(4, 101.0) == 1
    for _ in range(50):
        condition.failed(200.0)
    assert condition.room(4, 231.0) == 1
    condition.delivered()
    assert condition.room(4, 231.0) == 4
