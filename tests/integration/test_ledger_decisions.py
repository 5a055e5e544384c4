"""Decisions about the books on a real broker, and the books made anew from the topics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import Engine, text
from typer.testing import Result

from consumers.ledger_rebuild import compare, rebuild
from pipeline.cli import app
from pipeline.domain.decisions import Rules
from pipeline.domain.model import Settlement
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import current_rules, decide_close
from pipeline.ledger.queries import balances, booked_offsets, drifted_balances
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from producers.ledger_events import KEY, LedgerEvents
from schemas.codec import default_codec
from tests.integration.test_ledger_sink import PARTITIONS, WAIT_S, Flow, emptied
from tests.support.cli_runner import CliRunner
from tests.support.ledger import settlement
from tests.support.topics import create_topic, read_all
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

SCHEDULE = """
[[plans]]
name = "all-gbp"
currency = "GBP"
percentage = "1.5"
fixed_minor = 20
returned = "all"
disputes = "merchant"
tiers = [{ above_minor = 2_000, percentage = "1.0" }]

[[gateway_costs]]
percentage = "0.9"
"""


@pytest.fixture
def flow(kafka: str, topic_prefix: str) -> Flow:
    made = Flow(kafka, topic_prefix)
    spec = made.catalogue["ledger-events"]
    create_topic(kafka, spec.name, spec.partitions, config=spec.config)
    return made


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A live ledger's and an empty one's."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'live.db'}", f"sqlite:///{tmp_path / 'again.db'}"
    live = emptied(request.getfixturevalue("postgres_url"))
    return live, request.getfixturevalue("own_postgres_url")


@pytest.fixture
def environment(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYSTREAM_BOOTSTRAP_SERVERS", flow.kafka)
    monkeypatch.setenv("PAYSTREAM_TOPIC_PREFIX", flow.prefix)
    monkeypatch.setenv("PAYSTREAM_PARTITIONS", str(PARTITIONS))


def ledger(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["ledger", *arguments, "--ledger-url", url], catch_exceptions=False
    )


def sales(first: int, count: int, day: str, **changed: Any) -> list[Settlement]:
    return [settlement(n, business_date=day, **changed) for n in range(first, first + count)]


def booked(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.execute(
            text("SELECT count(*) FROM journal_entries WHERE settlement_id <> ''")
        ).scalar_one()


def caught_up(engine: Engine) -> bool:
    """Whether every cut is reached: the marks of transactions lie before some of them."""
    with reading(engine) as connection:
        closings = current_rules(connection, Rules()).closings
        stored = {o.partition: o.next_offset for o in booked_offsets(connection)}
    return all(
        stored.get(partition, 0) >= cut for c in closings for partition, cut in c.cuts.items()
    )


@pytest.mark.usefixtures("environment")
def test_a_rebuild_from_the_topics_has_the_same_entries_and_hashes(
    flow: Flow, urls: tuple[str, str], tmp_path: Path
) -> None:
    """Fees, a close with tiers, late truths, entries by hand, refusals, aborted transactions."""
    url, again_url = urls
    schedule = tmp_path / "fees.toml"
    schedule.write_text(SCHEDULE)
    engine = open_ledger(url)
    with flow.running(engine, batch_records_max=7) as counts:
        before = sales(0, 20, "2010-12-01")
        flow.publish(*before)
        wait_until(lambda: counts.booked == 20, WAIT_S, "those without terms are booked")
        done = ledger(url, "fees", "apply", str(schedule), "--reason", "prices", "--by", "anna",
                      "--from", "2023-11-15")  # fmt: skip
        assert done.exit_code == 0, done.output
        # All of these are settled after the schedule's begin, in 2023-11-16.
        priced = {"settled_at_ms": 1_700_100_000_000, "payment_method": "card"}
        flow.publish(*sales(100, 40, "2010-12-02", **priced))
        flow.publish(*sales(100, 20, "2010-12-03", kind="refund", amount_minor=-417,
                            operation_id="r1", **priced))  # fmt: skip
        flow.publish(*sales(500, 5, "2010-12-04"), abort=True)
        flow.publish(settlement(101, kind="refund", amount_minor=-833, operation_id="r2", **priced))
        flow.transaction([(b"m:poison", b"poison")])
        wait_until(lambda: counts.booked == 81 and len(counts.causes) == 1, WAIT_S, "are booked")
        done = ledger(url, "close", "2010-12", "--reason", "month end", "--by", "anna")
        assert done.exit_code == 0, done.output
        # Of three merchants, and what refunds of the same month take back of each.
        assert "6 corrections of tiers" in done.output
        # Nothing was ever reconciled here.
        assert "breaks" not in done.output
        # Too late for December, and one of a later month.
        flow.publish(
            *sales(200, 10, "2010-12-31", **priced), *sales(300, 5, "2011-01-09", **priced)
        )
        wait_until(lambda: counts.booked == 96, WAIT_S, "the late ones are booked")
        done = ledger(url, "post", "suspense:simulator=5.00:GBP",
                      "gateway_receivable:simulator=-5.00:GBP", "--date", "2010-12-24",
                      "--reason", "unexplained")  # fmt: skip
        assert done.exit_code == 0, done.output
        convert = (
            "convert", "suspense:simulator", "--sold", "7.00:GBP", "--bought", "1322:JPY",
            "--date", "2011-01-02", "--reason", "the rest comes", "--by", "anna",
        )  # fmt: skip
        with pytest.raises(UserError, match=r"has GBP 5\.00, and GBP 7\.00 .*--overdraw"):
            ledger(url, *convert)
        done = ledger(url, *convert, "--overdraw")
        assert done.exit_code == 0, done.output
    while seal(engine):
        pass
    with reading(engine) as connection:
        whole = verify_books(connection)
        assert whole.damages == ()
        late = connection.execute(
            text("SELECT booked_date, count(*) FROM journal_entries GROUP BY 1 ORDER BY 1")
        ).all()
        live_balances = balances(connection)
    assert [tuple(row) for row in late] == [("", 20 + 61 + 3 + 3 + 5 + 1), ("2011-01-01", 10 + 1)]

    done = ledger(url, "rebuild", "--into", again_url)
    assert done.exit_code == 0, done.output
    assert f"compared {96 + 3 + 3 + 2} entries with the live ledger: the SAME" in done.output
    again = open_ledger(again_url)
    with reading(again) as connection:
        rebuilt = verify_books(connection)
        assert rebuilt.damages == ()
        assert rebuilt.heads == whole.heads
        assert balances(connection) == live_balances
        assert drifted_balances(connection) == []
    # A rebuilt ledger takes over: the sink goes on from where it ends.
    with flow.running(again, "b") as counts:
        flow.publish(settlement(900))
        wait_until(lambda: counts.booked == 1, WAIT_S, "the rebuilt ledger goes on")
    with pytest.raises(UserError, match="is not empty"):
        ledger(url, "rebuild", "--into", again_url)
    again.dispose()
    engine.dispose()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("step", ["decided", "published"])
def test_a_close_that_was_interrupted_is_taken_further_once(
    flow: Flow, tmp_path: Path, step: str
) -> None:
    """Dead before or after the publication: the next command publishes and books it once."""

    class Crash(Exception):
        pass

    def die(name: str) -> None:
        if name == step:
            raise Crash

    url = f"sqlite:///{tmp_path / 'live.db'}"
    engine = open_ledger(url)
    with flow.running(engine) as counts:
        flow.publish(*sales(0, 10, "2010-12-01"))
        wait_until(lambda: counts.booked == 10, WAIT_S, "all are booked")
    with engine.begin() as connection:
        decide_close(connection, flow.topic, through="2010-12-31", actor="anna", reason="",
                     now_ms=1_700_000_000_000)  # fmt: skip
    log = LedgerEvents(flow.kafka, flow.catalogue, default_codec())
    with pytest.raises(Crash):
        log.publish(engine, die)
    assert "1 decisions are not published" in ledger(url, "verify").output
    assert ledger(url, "publish").exit_code == 0
    assert len(read_all(flow.kafka, flow.catalogue.name("ledger-events"))) == 1
    with engine.begin() as connection:
        assert connection.execute(text("SELECT sealed FROM closed_periods")).scalars().all() == [1]
    # The period is closed in a rebuild as well.
    again = open_ledger(f"sqlite:///{tmp_path / 'again.db'}")
    made = rebuild(flow.kafka, flow.catalogue, default_codec(), again)
    assert (made.entries, made.decisions) == (10, 1)
    while seal(engine):
        pass
    assert all(each.same for each in compare(engine, again))
    again.dispose()
    engine.dispose()


@pytest.mark.usefixtures("environment")
def test_a_second_ledger_cannot_decide_on_the_same_topics(flow: Flow, tmp_path: Path) -> None:
    """Its decision would contradict the first one's; it is refused and nothing is published."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("one", "two")]
    engines = [open_ledger(url) for url in urls]
    with engines[1].begin() as connection:
        decide_close(connection, flow.topic, through="2010-11-30", actor="bert", reason="",
                     now_ms=1_700_000_000_001)  # fmt: skip
    assert ledger(urls[0], "close", "2010-12", "--reason", "x").exit_code == 0
    with pytest.raises(UserError, match="another ledger decides"):
        ledger(urls[1], "publish")
    with pytest.raises(UserError, match="another ledger decides"):
        flow.sink(engines[1]).run(lambda: True)
    assert len(read_all(flow.kafka, flow.catalogue.name("ledger-events"))) == 1
    for engine in engines:
        engine.dispose()


@pytest.mark.usefixtures("environment")
def test_decisions_that_were_booked_are_not_read_again_and_are_missed_when_deleted(
    flow: Flow, tmp_path: Path
) -> None:
    """The topic is looked at from the last decision on that is booked. What another ledger decides
    afterwards under a number of ours is refused all the same, and so is a topic whose beginning is
    gone."""
    one, other = (f"sqlite:///{tmp_path / name}.db" for name in ("one", "other"))
    engine, stranger = open_ledger(one), open_ledger(other)
    topic = flow.catalogue.name("ledger-events")
    producer = Producer({"bootstrap.servers": flow.kafka, "partitioner": "murmur2_random"})
    assert ledger(one, "close", "2010-10", "--reason", "x").exit_code == 0
    with engine.begin() as connection:
        # As if it had been decided here and nothing of it were in the topic.
        decide_close(connection, flow.topic, through="2010-11-30", actor="anna", reason="",
                     now_ms=1_700_000_000_001)  # fmt: skip
    assert ledger(one, "publish").exit_code == 0
    for through in ("2010-10-31", "2010-11-29"):
        with stranger.begin() as connection:
            event = decide_close(connection, flow.topic, through=through, actor="bert", reason="",
                                 now_ms=1_700_000_000_002)  # fmt: skip
    producer.produce(topic, default_codec().encoder("ledger-event")(to_record(event)), KEY)
    assert producer.flush(WAIT_S) == 0
    with pytest.raises(UserError, match="another ledger decides"):
        ledger(one, "publish")
    (partition,) = {message.partition() for message in read_all(flow.kafka, topic)}
    deleted = TopicPartition(topic, partition, 1)
    admin = AdminClient({"bootstrap.servers": flow.kafka})
    admin.delete_records([deleted])[deleted].result(30)
    with pytest.raises(UserError, match="begins at offset 1: decisions were deleted"):
        ledger(one, "publish")
    engine.dispose()
    stranger.dispose()


@pytest.mark.long
@pytest.mark.usefixtures("environment")
def test_a_new_ledger_follows_what_was_decided(flow: Flow, tmp_path: Path) -> None:
    """A sink on an empty database makes the same books: decisions first, corrections last, and
    not before it has caught up."""
    schedule = tmp_path / "fees.toml"
    schedule.write_text(SCHEDULE)
    url, again_url = (f"sqlite:///{tmp_path / name}.db" for name in ("live", "again"))
    engine = open_ledger(url)
    assert ledger(url, "fees", "apply", str(schedule), "--reason", "prices",
                  "--from", "2023-01-01").exit_code == 0  # fmt: skip
    with flow.running(engine) as counts:
        flow.publish(*sales(0, 30, "2010-12-01", payment_method="card"))
        wait_until(lambda: counts.booked == 30, WAIT_S, "all are booked")
    assert "3 corrections" in ledger(url, "close", "2010-12", "--reason", "x").output
    # What was not booked in time is told: these two come after the sink has stopped.
    flow.publish(*sales(40, 2, "2011-01-31", payment_method="card"))
    told = ledger(url, "close", "2011-01", "--reason", "x").output
    assert "records of" in told
    assert "count under the first day after the period" in told
    with flow.running(engine) as counts:
        wait_until(lambda: counts.booked == 2, WAIT_S, "the late ones are booked")
    again = open_ledger(again_url)
    flow.sink(again).run(lambda: True)
    with pytest.raises(UserError, match="let the ledger catch up"):
        ledger(again_url, "publish")
    with flow.running(again) as counts:
        wait_until(lambda: booked(again) == 32, WAIT_S, "all are booked again")
        wait_until(lambda: caught_up(again), WAIT_S, "the ends are stored")
        done = ledger(again_url, "publish")
    assert "3 entries were made now" in done.output
    for each in (engine, again):
        while seal(each):
            pass
    assert all(each.same for each in compare(engine, again))
    with reading(engine) as one, reading(again) as other:
        assert balances(one) == balances(other)
    for each in (engine, again):
        each.dispose()


@pytest.mark.usefixtures("environment")
def test_a_damaged_live_ledger_differs_from_its_rebuild(flow: Flow, tmp_path: Path) -> None:
    """One entry that was never in the topics, sealed like the others: the hashes tell."""
    url = f"sqlite:///{tmp_path / 'live.db'}"
    engine = open_ledger(url)
    with flow.running(engine) as counts:
        flow.publish(*sales(0, 10, "2010-12-01"))
        wait_until(lambda: counts.booked == 10, WAIT_S, "all are booked")
    from tests.support.ledger_seals import without_guards

    with without_guards(engine) as connection:
        connection.execute(text("DELETE FROM entry_seals"))
        connection.execute(
            text("UPDATE journal_entries SET gateway_reference = 'mine' WHERE order_id = 'o3'")
        )
    while seal(engine):
        pass
    with reading(engine) as connection:
        assert verify_books(connection).damages == ()
    done = ledger(url, "rebuild", "--into", f"sqlite:///{tmp_path / 'again.db'}")
    assert done.exit_code == 1
    assert "differs within its first" in done.output
    engine.dispose()
