"""The generated document of the topics, and what is said without a broker."""

from __future__ import annotations

import time

import pytest

from pipeline.errors import UserError
from schemas.files import SCHEMA_NAMES
from topics.admin import connect
from topics.catalogue import TopicSettings, build_catalogue
from topics.document import DOCUMENT, render
from topics.provisioning import ConfigChange, Growth, InitialOffset, Plan


def test_the_committed_document_is_what_the_catalogue_says() -> None:
    """docs/topics.md is regenerated whenever the catalogue changes."""
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run: python -m topics.document"


def test_every_topic_and_its_meaning_is_in_the_document() -> None:
    """A reader finds each topic by name, with its prefix."""
    text = render(build_catalogue(TopicSettings(prefix="eu-", partitions=4)))
    for spec in build_catalogue().topics.values():
        assert f"| `eu-{spec.role}` |" in text
        assert spec.meaning in text
    assert "the same number of partitions (4)" in text


def test_every_schema_has_a_topic_and_every_topic_a_known_schema() -> None:
    """No schema is left without a topic that carries it, and none is invented."""
    carried = {spec.schema for spec in build_catalogue().topics.values() if spec.schema}
    assert carried == set(SCHEMA_NAMES)


def test_the_flow_is_co_partitioned_by_its_catalogue() -> None:
    """Whatever the settings, every topic has the same partition count, prefix and time stamps."""
    for spec in build_catalogue(TopicSettings(prefix="x.", partitions=7)).topics.values():
        assert spec.partitions == 7
        assert spec.name == f"x.{spec.role}"
        assert spec.config["message.timestamp.type"] == "LogAppendTime"


def test_a_plan_reads_one_thing_a_line() -> None:
    """First offsets are summed by topic, refusals and notices follow the changes."""
    catalogue = build_catalogue(TopicSettings(partitions=2))
    planned = Plan(
        catalogue=catalogue,
        create=(catalogue["orders"],),
        configure=(ConfigChange("payments", "cleanup.policy", "delete", "compact"),),
        grow=(Growth("settlements", 1, 2),),
        offsets=(InitialOffset("payments", "orders", 0), InitialOffset("payments", "orders", 1)),
        refusals=("no",),
        notices=("well",),
    )
    assert planned.lines() == [
        "create topic orders: 2 partitions, replication 1",
        "set cleanup.policy of payments: delete -> compact",
        "grow settlements: 1 -> 2 partitions",
        "start group payments at the beginning of 2 partitions of orders",
        "refused: no",
        "note: well",
    ]


@pytest.mark.slow
def test_a_missing_broker_is_one_sentence_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a broker the address is named, within the time given, and nothing else printed."""
    begun_s = time.monotonic()
    with pytest.raises(UserError, match=r"^No Kafka broker answers at 127\.0\.0\.1:1 .*start one"):
        connect("127.0.0.1:1", timeout_s=0.5)
    assert time.monotonic() - begun_s < 5
    assert capfd.readouterr() == ("", "")
